//! The cache's kernels on a stream and on memory that are somebody else's.

use std::sync::Arc;

use half::f16;
use kivi_kernels::ops::{Append, Attend};
use kivi_kernels::{
    Backend, Batch, BatchCapacity, Buffer, GroupStep, KvLayer, Rows, RowsMut, SeqStep, StepPlan,
};
use kivi_kernels_cuda::cudarc::driver::{CudaContext, CudaStream, DevicePtr};
use kivi_kernels_cuda::raw::{
    RawAppend, RawAttend, RawCache, RawPlan, RawRows, RawStep, plan_words, scratch_words,
};
use kivi_kernels_cuda::{Cuda, CudaBuffer, CudaError, device_count};
use kivi_kernels_ref::conformance::skip;
use kivi_quant::{Bits, GroupSize, KiviConfig, PageLayout};

type B = Cuda<f16>;

const N_HEADS: usize = 4;
const N_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const COLS: usize = N_KV_HEADS * HEAD_DIM;
const LEN: usize = 200;
const SCALE: f32 = 0.125;

/// A stream with a [`Cuda`] on it; none, and a line that says so, without a device.
fn on_stream() -> Option<(Arc<CudaStream>, B)> {
    let start = || {
        device_count()?;
        let driver = |error| CudaError::Driver { what: "starting", error };
        let stream = CudaContext::new(0).and_then(|context| context.new_stream()).map_err(driver)?;
        Ok::<_, CudaError>((Arc::clone(&stream), B::on_stream(stream)?))
    };
    start().map_err(|why| skip(&format!("doors: {why}"))).ok()
}

fn layout() -> PageLayout {
    let config = KiviConfig::new(Bits::B2, Bits::B4, GroupSize::G32, 64).unwrap();
    PageLayout::new(config.with_sink_tokens(4).unwrap(), HEAD_DIM).unwrap()
}

/// A layer's cache in slices of cudarc's.
fn cache(stream: &Arc<CudaStream>, cuda: &B) -> KvLayer<B> {
    let words = |rows: usize, of_row: usize| {
        cuda.adopt(stream.alloc_zeros::<u32>(rows * N_KV_HEADS * of_row).unwrap()).unwrap()
    };
    let layout = layout();
    let pair = |rows: usize| [(); 2].map(|()| words(rows, layout.row_words()));
    let pool = words(2, layout.page_words());
    KvLayer::from_buffers((layout, N_KV_HEADS), (2, 1), pool, pair(64), pair(4)).unwrap()
}

/// A batch whose step is `new` tokens after `len`.
fn batch(cuda: &B, len: usize, new: usize) -> Batch<B> {
    let config = *layout().config();
    let max_pages = vec![2];
    let capacity =
        BatchCapacity { max_seqs: 1, max_tokens: LEN, n_pages: max_pages.clone(), max_pages, n_slots: 1 };
    let mut batch = Batch::new(cuda, capacity, &[config]).unwrap();
    let (packed, packed_next) = (config.packed(len), config.packed(len + new));
    let groups = vec![GroupStep { slot: 0, pages: &[1, 0], packed, packed_next }];
    let seq = SeqStep { tokens: &vec![0; new], len, active: true, groups };
    batch.plan(cuda, &StepPlan { seqs: vec![seq] }).unwrap();
    batch
}

fn numbers(seed: u32, count: usize) -> Vec<f16> {
    let hash = |i: u32| (i ^ seed << 24).wrapping_mul(0x9E37_79B9).rotate_left(15).wrapping_mul(0x85EB_CA6B);
    (0..count as u32).map(|i| f16::from_f32((hash(i) >> 8) as f32 / (1 << 23) as f32 - 1.0)).collect()
}

fn read<T: kivi_kernels::Element>(cuda: &B, buffer: &CudaBuffer<T>) -> Vec<T> {
    let mut host = vec![T::from_f64(0.0); buffer.len()];
    cuda.read(buffer, 0, &mut host).unwrap();
    host
}

#[test]
fn foreign_memory_holds_the_same_cache_by_every_door() {
    let Some((stream, cuda)) = on_stream() else { return };
    let (k, v) = (numbers(1, LEN * COLS), numbers(2, LEN * COLS));
    let (k_slice, v_slice) = (stream.clone_htod(&k).unwrap(), stream.clone_htod(&v).unwrap());
    let step = batch(&cuda, 0, LEN);

    // Its own stream and memory: what is right.
    let own = B::new(0).unwrap();
    let mut expected = KvLayer::new(&own, layout(), N_KV_HEADS, 2, 1).unwrap();
    let (k_own, v_own) = (own.upload(&k).unwrap(), own.upload(&v).unwrap());
    let rows = (Rows::new(&k_own, LEN, COLS).unwrap(), Rows::new(&v_own, LEN, COLS).unwrap());
    own.append(Append::new(rows, &mut expected, (&batch(&own, 0, LEN), 0)).unwrap()).unwrap();

    // Slices of cudarc's.
    let mut adopted = cache(&stream, &cuda);
    {
        let (k, v) = (cuda.view(k_slice.as_view()).unwrap(), cuda.view(v_slice.as_view()).unwrap());
        let rows = (Rows::<B, _>::new(&k, LEN, COLS).unwrap(), Rows::<B, _>::new(&v, LEN, COLS).unwrap());
        cuda.append(Append::new(rows, &mut adopted, (&step, 0)).unwrap()).unwrap();
    }

    // Addresses, by another value on the same stream.
    let by_address = cache(&stream, &cuda);
    // SAFETY: the stream is of the primary context, and there until the end.
    let raw = unsafe { B::on_raw_stream(0, stream.cu_stream()) }.unwrap();
    let rows = |slice| RawRows { ptr: DevicePtr::<f16>::device_ptr(slice, &stream).0, stride: COLS };
    let (k_new, v_new) = (rows(&k_slice), rows(&v_slice));
    let append = RawAppend { k_new, v_new, cache: RawCache::from(&by_address), step: RawStep::new(&step, 0) };
    // SAFETY: the arrays are those of a checked step and a cache of its layout.
    unsafe { raw.append_raw(&append) }.unwrap();

    for found in [&adopted, &by_address] {
        assert!(read(&cuda, &found.pool) == read(&own, &expected.pool));
        assert!(read(&cuda, &found.k_ring) == read(&own, &expected.k_ring));
        assert!(read(&cuda, &found.v_ring) == read(&own, &expected.v_ring));
        assert!(read(&cuda, &found.k_sink) == read(&own, &expected.k_sink));
    }
    let pool = read(&own, &expected.pool);
    let slice = adopted.pool.into_slice().expect("adopted");
    assert!(stream.clone_dtoh(&slice).unwrap() == pool);
}

/// Attention of `new` rows after [`LEN`] tokens that were appended, by ops and by addresses.
fn attend_by_both_doors(new: usize) {
    let Some((stream, cuda)) = on_stream() else { return };
    cuda.prepare(&layout(), false).unwrap();
    let [k, v] = [1, 2].map(|seed| cuda.upload(&numbers(seed, LEN * COLS)).unwrap());
    let q = stream.clone_htod(&numbers(3, new * N_HEADS * HEAD_DIM)).unwrap();
    let mut cache = cache(&stream, &cuda);
    let rows =
        |rows| (Rows::<B, _>::new(&k, rows, COLS).unwrap(), Rows::<B, _>::new(&v, rows, COLS).unwrap());
    cuda.append(Append::new(rows(LEN), &mut cache, (&batch(&cuda, 0, LEN), 0)).unwrap()).unwrap();

    let step = batch(&cuda, LEN, new);
    let cols = N_HEADS * HEAD_DIM;
    let mut by_ops = stream.alloc_zeros::<f16>(new * cols).unwrap();
    {
        let q = cuda.view(q.as_view()).unwrap();
        // SAFETY: the buffer stays in the view.
        let mut out = unsafe { cuda.view_mut(by_ops.as_view_mut()) }.unwrap();
        let out = RowsMut::<B, _>::new(&mut out, new, cols).unwrap();
        let q = Rows::<B, _>::new(&q, new, cols).unwrap();
        cuda.attend(Attend::new(out, q, rows(new), &cache, (&step, 0), SCALE).unwrap()).unwrap();
    }

    let by_address = cuda.zeros::<f16>(new * cols).unwrap();
    let scratch = cuda.zeros::<u32>(scratch_words(cuda.multiprocessors().unwrap())).unwrap();
    let row = |ptr, stride| RawRows { ptr, stride };
    let attend = RawAttend {
        out: row(by_address.device_ptr(), cols),
        q: row(q.device_ptr(&stream).0, cols),
        k_new: row(k.device_ptr(), COLS),
        v_new: row(v.device_ptr(), COLS),
        cache: RawCache::from(&cache),
        step: RawStep::new(&step, 0),
        n_heads: N_HEADS,
        scale: SCALE,
        window: None,
        alibi: 0,
        plan: 0,
        scratch: scratch.device_ptr(),
    };
    let words = cuda.zeros::<u32>(plan_words(cuda.multiprocessors().unwrap())).unwrap();
    let plan = words.device_ptr();
    let RawAttend { cache, step, window, .. } = attend;
    // SAFETY: as below.
    unsafe { cuda.plan_attend_raw(&RawPlan { plan, cache, step, n_heads: N_HEADS, window }) }.unwrap();
    for plan in [0, plan] {
        // SAFETY: the arrays are those of a checked step and a cache of its layout; scratch was zero.
        unsafe { cuda.attend_raw(&RawAttend { plan, ..attend }) }.unwrap();
        let (by_ops, by_address) = (stream.clone_dtoh(&by_ops).unwrap(), read(&cuda, &by_address));
        assert!(by_ops == by_address && by_ops.iter().any(|x| *x != f16::ZERO));
    }
}

#[test]
fn a_row_attends_by_both_doors() {
    attend_by_both_doors(1);
}

#[test]
fn many_rows_attend_by_both_doors() {
    attend_by_both_doors(40);
}

#[test]
fn memory_that_cannot_be_used_is_refused() {
    let Some((stream, cuda)) = on_stream() else { return };
    let other = stream.context().new_stream().unwrap();
    let foreign = |error: Option<CudaError>| matches!(error, Some(CudaError::Foreign(_)));
    assert!(foreign(cuda.adopt(other.alloc_zeros::<u32>(4).unwrap()).err()));
    let slice = other.alloc_zeros::<u32>(4).unwrap();
    assert!(foreign(cuda.view(slice.as_view()).err()));
    let slice = stream.alloc_zeros::<u32>(8).unwrap();
    assert!(cuda.view(slice.slice(4..)).is_ok() && foreign(cuda.view(slice.slice(1..)).err()));
    let words = scratch_words(cuda.multiprocessors().unwrap());
    let scratch = |words| B::with_scratch(Arc::clone(&stream), stream.alloc_zeros(words).unwrap());
    assert!(scratch(words).is_ok() && foreign(scratch(words - 1).err()));
    let per_thread = stream.context().per_thread_stream();
    assert!(foreign(B::on_stream(per_thread).err()));
}

#[test]
fn only_what_is_owned_is_given_back() {
    let Some((stream, cuda)) = on_stream() else { return };
    let buffer = cuda.upload(&[1_u32, 2, 3]).unwrap();
    // SAFETY: `buffer` outlives the copy, and nothing writes.
    let borrowed = unsafe { CudaBuffer::<u32>::from_raw(buffer.device_ptr(), 3) };
    assert_eq!(read(&cuda, &borrowed), [1, 2, 3]);
    assert!(borrowed.into_slice().is_none());
    let slice = buffer.into_slice().expect("its own");
    assert_eq!(stream.clone_dtoh(&slice).unwrap(), [1, 2, 3]);
    assert!(cuda.zeros::<u32>(0).unwrap().into_slice().expect("its own").is_empty());
}
