//! An own kernel against the oracle: attention of one row over a packed cache, here in plain f32, compared with `Cpu<f64>`.
//!
//! ```sh
//! cargo run --release -p kivi-kernels-ref --example own_kernel
//! ```

use std::error::Error;

use kivi_kernels::ops::{Append, Attend};
use kivi_kernels::{Backend, Batch, BatchCapacity, GroupStep, KvLayer, Rows, RowsMut, SeqStep, StepPlan};
use kivi_kernels_ref::Cpu;
use kivi_quant::{Bits, GroupSize, KiviConfig, PageLayout, Side, page};

type Oracle = Cpu<f64>;

const HEAD_DIM: usize = 64;
/// Tokens in the cache, and those with the new one.
const LEN: usize = 300;
const ALL: usize = LEN + 1;

fn numbers(seed: f64) -> Vec<f64> {
    (0..ALL * HEAD_DIM).map(|i| f64::from(((i as f64 * 0.7 + seed) * seed).sin() as f32)).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let (keys, values, query) = (numbers(1.1), numbers(2.3), numbers(0.4)[..HEAD_DIM].to_vec());
    let layout = PageLayout::new(KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 128)?, HEAD_DIM)?;
    let scale = 1.0 / (HEAD_DIM as f32).sqrt();

    // The oracle: one head, one sequence, its pages in order.
    let cpu = Oracle::new();
    let config = *layout.config();
    let n_pages = config.pages(ALL);
    let table: Vec<u32> = (0..n_pages as u32).collect();
    let mut cache = KvLayer::new(&cpu, layout, 1, n_pages, 1)?;
    let max_pages = vec![n_pages];
    let capacity =
        BatchCapacity { max_seqs: 1, max_tokens: LEN, n_pages: max_pages.clone(), max_pages, n_slots: 1 };
    let mut batch = Batch::new(&cpu, capacity, &[config])?;
    let (k, v, q) = (cpu.upload(&keys)?, cpu.upload(&values)?, cpu.upload(&query)?);
    plan(&cpu, &mut batch, &config, (0, LEN), &table)?;
    let new = (Rows::new(&k, LEN, HEAD_DIM)?, Rows::new(&v, LEN, HEAD_DIM)?);
    cpu.append(Append::new(new, &mut cache, (&batch, 0))?)?;
    plan(&cpu, &mut batch, &config, (LEN, 1), &table)?;
    let (k, v) = (cpu.upload(&keys[LEN * HEAD_DIM..])?, cpu.upload(&values[LEN * HEAD_DIM..])?);
    let new = (Rows::new(&k, 1, HEAD_DIM)?, Rows::new(&v, 1, HEAD_DIM)?);
    let mut out = cpu.zeros(HEAD_DIM)?;
    let row = RowsMut::new(&mut out, 1, HEAD_DIM)?;
    cpu.attend(Attend::new(row, Rows::new(&q, 1, HEAD_DIM)?, new, &cache, (&batch, 0), scale)?)?;
    let mut expected = vec![0.0; HEAD_DIM];
    cpu.read(&out, 0, &mut expected)?;

    // The own kernel: what is packed comes from the oracle's pages, the rest from the rows.
    let mut pool = vec![0; n_pages * layout.page_words()];
    cpu.read(&cache.pool, 0, &mut pool)?;
    let found = attention(&layout, &pool, [&keys, &values], &query, scale);
    let error = found.iter().zip(&expected).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max);
    println!("largest difference from the oracle: {error:.1e}");
    if error < 1e-5 { Ok(()) } else { Err("the kernel is wrong".into()) }
}

/// Plans `new` tokens of a sequence that has `len`. Which tokens they are does not matter to the cache.
fn plan(
    cpu: &Oracle,
    batch: &mut Batch<Oracle>,
    config: &KiviConfig,
    (len, new): (usize, usize),
    pages: &[u32],
) -> Result<(), Box<dyn Error>> {
    let (packed, packed_next) = (config.packed(len), config.packed(len + new));
    let groups = vec![GroupStep { slot: 0, pages, packed, packed_next }];
    let tokens = vec![0; new];
    let seqs = vec![SeqStep { tokens: &tokens, len, active: true, groups }];
    Ok(batch.plan(cpu, &StepPlan { seqs })?)
}

/// `softmax(scale q K^T) V` over the cache as it was before the new token, and the new token.
fn attention(
    layout: &PageLayout,
    pool: &[u32],
    [keys, values]: [&[f64]; 2],
    query: &[f64],
    scale: f32,
) -> Vec<f32> {
    let (packed, per_page) = (layout.config().packed(LEN), layout.config().page_tokens());
    let dtype = layout.config().kv_dtype();
    let row = |side, rows: &[f64], token: usize, packed: usize| -> Vec<f32> {
        let exact = &rows[token * HEAD_DIM..][..HEAD_DIM];
        let mut row: Vec<f32> = exact.iter().map(|x| dtype.round(*x as f32)).collect();
        if token < packed {
            let words = &pool[token / per_page * layout.page_words()..][..layout.page_words()];
            page::read_row(layout, side, words, token % per_page, &mut row);
        }
        row
    };
    let score = |token| {
        let key = row(Side::Key, keys, token, packed.k);
        scale * key.iter().zip(query).map(|(k, q)| k * *q as f32).sum::<f32>()
    };
    let scores: Vec<f32> = (0..ALL).map(score).collect();
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|x| (x - most).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let mut out = vec![0.0; HEAD_DIM];
    for (token, weight) in weights.iter().enumerate() {
        let value = row(Side::Value, values, token, packed.v);
        out.iter_mut().zip(&value).for_each(|(out, v)| *out += weight / sum * v);
    }
    out
}
