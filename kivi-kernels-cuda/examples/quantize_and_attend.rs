//! The cache and its attention alone, in an engine that has its own stream and memory: a prompt's keys and values are
//! quantized to 2 bits, one row attends to them, and the result is compared with f64 arithmetic on what the pages hold.

use std::error::Error;
use std::sync::Arc;

use half::f16;
use kivi_kernels::ops::{Append, Attend};
use kivi_kernels::{Backend, Batch, BatchCapacity, GroupStep, KvLayer, Rows, RowsMut, SeqStep, StepPlan};
use kivi_kernels_cuda::cudarc::driver::{CudaContext, CudaSlice};
use kivi_kernels_cuda::{Cuda, device_count};
use kivi_quant::{Bits, GroupSize, KiviConfig, PageLayout, Side, page};

/// The backend, with activations in f16.
type B = Cuda<f16>;

const N_HEADS: usize = 8;
const N_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
/// Elements of a row of keys or values.
const COLS: usize = N_KV_HEADS * HEAD_DIM;
const PROMPT: usize = 300;

fn main() -> Result<(), Box<dyn Error>> {
    if let Err(why) = device_count() {
        println!("skipped: {why}");
        return Ok(());
    }
    // What the engine has: a stream, and keys, values and queries in its own memory.
    let stream = CudaContext::new(0)?.new_stream()?;
    let [k, v] = [1, 2].map(|seed| numbers(seed, (PROMPT + 1) * COLS));
    let q = numbers(3, N_HEADS * HEAD_DIM);
    let (k_rows, v_rows) = (stream.clone_htod(&k)?, stream.clone_htod(&v)?);
    let q_row = stream.clone_htod(&q)?;

    // The cache of one layer: 2 bits, 32 elements to a scale, 128 tokens in full precision; room for one sequence.
    let cuda = B::on_stream(Arc::clone(&stream))?;
    let config = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 128)?;
    let layout = PageLayout::new(config, HEAD_DIM)?;
    cuda.prepare(&layout, false)?;
    let pages: Vec<u32> = (0..config.pages(PROMPT + 1) as u32).collect();
    let words = |count| Ok::<_, Box<dyn Error>>(cuda.adopt(stream.alloc_zeros(count)?)?);
    let pool = words(pages.len() * N_KV_HEADS * layout.page_words())?;
    let ring = N_KV_HEADS * config.residual_length() * layout.row_words();
    let (rings, sinks) = ([words(ring)?, words(ring)?], [cuda.zeros(0)?, cuda.zeros(0)?]);
    let mut cache = KvLayer::from_buffers((layout, N_KV_HEADS), (pages.len(), 1), pool, rings, sinks)?;

    // The prompt goes into the cache.
    let max_pages = vec![pages.len()];
    let capacity =
        BatchCapacity { max_seqs: 1, max_tokens: PROMPT, n_pages: max_pages.clone(), max_pages, n_slots: 1 };
    let mut batch = Batch::new(&cuda, capacity, &[config])?;
    plan(&cuda, &mut batch, (0, PROMPT), &pages)?;
    let (k_new, v_new) = (k_rows.slice(..PROMPT * COLS), v_rows.slice(..PROMPT * COLS));
    let (k_new, v_new) = (cuda.view(k_new)?, cuda.view(v_new)?);
    let new = (Rows::<B, _>::new(&k_new, PROMPT, COLS)?, Rows::<B, _>::new(&v_new, PROMPT, COLS)?);
    cuda.append(Append::new(new, &mut cache, (&batch, 0))?)?;

    // The next token attends to it.
    plan(&cuda, &mut batch, (PROMPT, 1), &pages)?;
    let (k_new, v_new) = (k_rows.slice(PROMPT * COLS..), v_rows.slice(PROMPT * COLS..));
    let (k_new, v_new, q_new) = (cuda.view(k_new)?, cuda.view(v_new)?, cuda.view(q_row.as_view())?);
    let new = (Rows::<B, _>::new(&k_new, 1, COLS)?, Rows::<B, _>::new(&v_new, 1, COLS)?);
    let mut out = cuda.adopt(stream.alloc_zeros::<f16>(q.len())?)?;
    let out_row = RowsMut::<B, _>::new(&mut out, 1, q.len())?;
    let scale = 1.0 / (HEAD_DIM as f32).sqrt();
    let q_new = Rows::<B, _>::new(&q_new, 1, q.len())?;
    cuda.attend(Attend::new(out_row, q_new, new, &cache, (&batch, 0), scale)?)?;

    // Everything is the engine's again.
    let out: CudaSlice<f16> = out.into_slice().ok_or("adopted memory")?;
    let pool: CudaSlice<u32> = cache.pool.into_slice().ok_or("adopted memory")?;
    let (out, pool) = (stream.clone_dtoh(&out)?, stream.clone_dtoh(&pool)?);
    let expected = attention(&layout, &pool, [&k, &v], &q);
    let error = out.iter().zip(&expected).map(|(x, y)| (x.to_f64() - y).abs()).fold(0.0, f64::max);
    let largest = expected.iter().fold(0.0, |a: f64, x| a.max(x.abs()));
    println!("{PROMPT} tokens in {} bytes of pages", 4 * pool.len());
    println!("largest error {error:.1e} of numbers up to {largest:.2}");
    if error < 2e-3 * largest { Ok(()) } else { Err("attention is wrong".into()) }
}

/// Plans `new` tokens of one sequence that has `len`. (Which tokens they are does not matter to the cache.)
fn plan(
    cuda: &B,
    batch: &mut Batch<B>,
    (len, new): (usize, usize),
    pages: &[u32],
) -> Result<(), Box<dyn Error>> {
    let config = batch.groups[0].config;
    let (packed, packed_next) = (config.packed(len), config.packed(len + new));
    let groups = vec![GroupStep { slot: 0, pages, packed, packed_next }];
    let seq = SeqStep { tokens: &vec![0; new], len, active: true, groups };
    Ok(batch.plan(cuda, &StepPlan { seqs: vec![seq] })?)
}

/// Numbers from -1 to 1.
fn numbers(seed: u32, count: usize) -> Vec<f16> {
    let hash = |i: u32| (i ^ seed << 24).wrapping_mul(0x9E37_79B9).rotate_left(15).wrapping_mul(0x85EB_CA6B);
    (0..count as u32).map(|i| f16::from_f32((hash(i) >> 8) as f32 / (1 << 23) as f32 - 1.0)).collect()
}

/// Attention of `q` as its equation says, in f64; packed tokens are read from `pool`.
fn attention(layout: &PageLayout, pool: &[u32], [k, v]: [&[f16]; 2], q: &[f16]) -> Vec<f64> {
    let packed = layout.config().packed(PROMPT);
    let row = |side, rows: &[f16], packed: usize, head: usize, token: usize| -> Vec<f64> {
        let start = token * COLS + head * HEAD_DIM;
        let mut row: Vec<f32> = rows[start..][..HEAD_DIM].iter().map(|x| x.to_f32()).collect();
        if token < packed {
            let tokens = layout.config().page_tokens();
            let page = &pool[(token / tokens * N_KV_HEADS + head) * layout.page_words()..];
            page::read_row(layout, side, &page[..layout.page_words()], token % tokens, &mut row);
        }
        row.into_iter().map(f64::from).collect()
    };
    let head = |(h, q): (usize, &[f16])| {
        let head = h * N_KV_HEADS / N_HEADS;
        let key = |token| row(Side::Key, k, packed.k, head, token);
        let dot = |token| key(token).iter().zip(q).map(|(k, q)| k * q.to_f64()).sum::<f64>();
        let p: Vec<f64> = (0..=PROMPT).map(|t| (dot(t) / (HEAD_DIM as f64).sqrt()).exp()).collect();
        let total: f64 = p.iter().sum();
        let mut out = vec![0.0; HEAD_DIM];
        for (token, p) in p.iter().enumerate() {
            let value = row(Side::Value, v, packed.v, head, token);
            out.iter_mut().zip(value).for_each(|(out, x)| *out += p / total * x);
        }
        out
    };
    q.chunks(HEAD_DIM).enumerate().flat_map(head).collect()
}
