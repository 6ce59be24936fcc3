//! The cache as kernels see it, and writing it.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::{AppendParts, ClearPagesParts};
use kivi_kernels::{Batch, KvLayer};
use kivi_quant::{KvDtype, PageLayout, Side};

use super::{ActRows, at, source};
use crate::device::Cuda;
use crate::{Act, CudaBuffer, CudaError};

source!("cache.cu": Cache, ClearParams);

/// Most blocks that pack one head of one sequence; they loop where there is more to pack.
const MAX_PARTS: usize = 4096;

/// `Side` in `page.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CacheSide {
    ring: u64,
    sink: u64,
    rows: u64,
    packed: u64,
    packed_next: u64,
    row_stride: u64,
    bits: u32,
    token_words: u32,
    codes_start: u32,
    params_start: u32,
}

/// `Cache` in `page.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Cache {
    pool: u64,
    k: CacheSide,
    v: CacheSide,
    row_start: u64,
    seq_of_row: u64,
    len: u64,
    active: u64,
    slots: u64,
    page_table: u64,
    max_pages: u32,
    pub n_kv_heads: u32,
    head_dim: u32,
    group_size: u32,
    residual: u32,
    page_tokens: u32,
    sinks: u32,
    kv_dtype: u32,
    row_words: u32,
    page_words: u32,
    value_groups: u32,
    pub n_seqs: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ClearParams {
    pool: u64,
    pages: u64,
    of_page: u64,
}

impl CacheSide {
    fn new<A: Act>(
        layout: &PageLayout,
        side: Side,
        [ring, sink]: [&CudaBuffer<u32>; 2],
        [packed, packed_next]: [&CudaBuffer<u32>; 2],
        rows: &ActRows<'_, A>,
    ) -> Self {
        Self {
            ring: ring.at(0),
            sink: sink.at(0),
            rows: at(rows),
            packed: packed.at(0),
            packed_next: packed_next.at(0),
            row_stride: rows.stride() as u64,
            bits: layout.bits(side).get(),
            token_words: layout.token_words(side) as u32,
            codes_start: layout.codes_start(side) as u32,
            params_start: layout.params_start(side) as u32,
        }
    }
}

impl Cache {
    /// `cache` and the step of `batch`, whose new rows are `k_new` and `v_new`.
    pub fn new<A: Act>(
        cache: &KvLayer<Cuda<A>>,
        (batch, group): (&Batch<Cuda<A>>, usize),
        (k_new, v_new): (&ActRows<'_, A>, &ActRows<'_, A>),
    ) -> Self {
        let (layout, arrays) = (cache.layout(), &batch.groups[group]);
        let config = layout.config();
        let k_packed = [&arrays.k_packed, &arrays.k_packed_next];
        let v_packed = [&arrays.v_packed, &arrays.v_packed_next];
        Self {
            pool: cache.pool.at(0),
            k: CacheSide::new(layout, Side::Key, [&cache.k_ring, &cache.k_sink], k_packed, k_new),
            v: CacheSide::new(layout, Side::Value, [&cache.v_ring, &cache.v_sink], v_packed, v_new),
            row_start: batch.row_start.at(0),
            seq_of_row: batch.seq_of_row.at(0),
            len: batch.len.at(0),
            active: batch.active.at(0),
            slots: arrays.slots.at(0),
            page_table: arrays.page_table.at(0),
            max_pages: arrays.max_pages as u32,
            n_kv_heads: cache.n_kv_heads() as u32,
            head_dim: layout.head_dim() as u32,
            group_size: config.group_size() as u32,
            residual: config.residual_length() as u32,
            page_tokens: config.page_tokens() as u32,
            sinks: config.sink_tokens() as u32,
            kv_dtype: number(config.kv_dtype()),
            row_words: layout.row_words() as u32,
            page_words: layout.page_words() as u32,
            value_groups: layout.value_groups() as u32,
            n_seqs: batch.n_seqs() as u32,
        }
    }
}

/// As in `page.cuh`.
fn number(dtype: KvDtype) -> u32 {
    match dtype {
        KvDtype::F16 => 0,
        KvDtype::Bf16 => 1,
        KvDtype::F32 => 2,
    }
}

pub(crate) fn append<A: Act>(cuda: &Cuda<A>, op: AppendParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let AppendParts { k_new, v_new, cache, batch, group } = op;
    let params = Cache::new(cache, (batch, group), (&k_new, &v_new));
    let config = cache.layout().config();
    if config.is_quantized() {
        // How much is due is known on the device alone: at least a block for each group of a full ring.
        let groups = config.residual_length() / config.group_size() + 1;
        let parts = batch.max_new().clamp(groups, MAX_PARTS.max(groups));
        let grid = [parts, cache.n_kv_heads(), batch.n_seqs()];
        // SAFETY: `Append::new` checked rows, pages and slots against the cache and `Batch::plan` the counts against
        // pages and rings; the kernel keeps to what they say is due.
        unsafe { cuda.launch(&SOURCE, "append_pack", grid, params)? };
    }
    // SAFETY: as above. The queue is in order, so the rings have been read.
    unsafe { cuda.launch(&SOURCE, "append_store", [batch.n_tokens(), cache.n_kv_heads(), 1], params) }
}

pub(crate) fn clear_pages<A: Act>(cuda: &Cuda<A>, op: ClearPagesParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let ClearPagesParts { cache, pages, n } = op;
    let of_page = (cache.n_kv_heads() * cache.layout().page_words()) as u64;
    let params = ClearParams { pool: cache.pool.at(0), pages: pages.at(0), of_page };
    // SAFETY: `ClearPages::new` checked the length of the list; that its pages are below `n_pages` is the op's contract
    // with its caller. A block a page.
    unsafe { cuda.launch(&SOURCE, "clear_pages", [n, 1, 1], params) }
}
