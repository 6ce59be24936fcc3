//! Attention of new tokens over packed pages, tile by tile: one tile of one head is all that is ever unpacked.

use core::ops::Range;

use kivi_kernels::ops::AttendParts;
use kivi_quant::Side;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::math::{axpy, dot};
use super::matmul::{Mat, Rhs, matmul};
use super::packed::Unpacker;
use super::rows::{Head, Run, load, runs};
use super::softmax::State;
use crate::Cpu;
use crate::sequence::Sequence;
use crate::view::{row, row_mut};

/// Tokens of a tile.
const TILE: usize = 128;
/// Tokens of a part that one thread takes, where there are few queries.
const SPLIT: usize = 16 * TILE;
/// Up to so many queries of a head, codes are used as they are; more are worth dequantizing a tile for.
const FEW_QUERIES: usize = 8;
/// Queries of a block, where there are many.
const BLOCK: usize = 128;

/// What one thread does: the queries of `rows` (of the sequence's new rows) over `tokens`.
struct Task<'a> {
    head: &'a Head<'a>,
    rows: Range<usize>,
    tokens: Range<usize>,
}

/// [`kivi_kernels::ops::Attend`].
pub(crate) fn attend(_: &Cpu<f32>, mut op: AttendParts<'_, Cpu<f32>>) {
    let seqs: Vec<_> = Sequence::all(op.batch, op.group).collect();
    let ratio = op.n_heads / op.cache.n_kv_heads();
    let active = seqs.iter().filter(|seq| seq.active);
    let heads = active.flat_map(|seq| (0..op.cache.n_kv_heads()).map(move |head| (seq, head)));
    let heads: Vec<_> =
        heads.map(|(seq, head)| Head::new(op.cache, seq, head, [&op.k_new, &op.v_new])).collect();
    let tasks: Vec<Task<'_>> = heads.iter().flat_map(|head| tasks(head, ratio, op.window)).collect();
    let states: Vec<State> =
        tasks.par_iter().map(|task| Arch::new().dispatch(Work { op: &op, task, ratio })).collect();
    let mut done: Vec<(&Task<'_>, State)> = Vec::new();
    for (task, state) in tasks.iter().zip(states) {
        match done.last_mut() {
            Some((last, sum)) if core::ptr::eq(last.head, task.head) && last.rows == task.rows => {
                sum.merge(state)
            }
            _ => done.push((task, state)),
        }
    }
    for (task, state) in done {
        write(&mut op, task, ratio, &state.finish());
    }
    for seq in seqs.iter().filter(|seq| !seq.active) {
        seq.rows.clone().for_each(|i| row_mut(&mut op.out, i).fill(0.0));
    }
}

/// Cuts the work of a head: few queries by tokens, many by queries.
fn tasks<'a>(head: &'a Head<'a>, ratio: usize, window: Option<usize>) -> Vec<Task<'a>> {
    let seq = head.seq;
    let n_new = seq.rows.len();
    let few = n_new * ratio <= FEW_QUERIES;
    let block = if few { n_new } else { (BLOCK / ratio).max(1) };
    let mut tasks = Vec::new();
    for start in (0..n_new).step_by(block) {
        let rows = start..(start + block).min(n_new);
        let first = window.map_or(0, |w| (seq.len + rows.start + 1).saturating_sub(w));
        let end = seq.len + rows.end;
        let split = if few { SPLIT } else { usize::MAX };
        let mut token = first;
        while token < end {
            let next = (token / split + 1).saturating_mul(split).min(end);
            tasks.push(Task { head, rows: rows.clone(), tokens: token..next });
            token = next;
        }
    }
    tasks
}

/// Queries are numbered row by row, the heads of a row side by side.
fn write(op: &mut AttendParts<'_, Cpu<f32>>, task: &Task<'_>, ratio: usize, mixed: &[f32]) {
    let width = ratio * op.cache.layout().head_dim();
    for (r, mixed) in task.rows.clone().zip(mixed.chunks_exact(width)) {
        let out = row_mut(&mut op.out, task.head.seq.rows.start + r);
        out[task.head.head * width..][..width].copy_from_slice(mixed);
    }
}

struct Work<'a> {
    op: &'a AttendParts<'a, Cpu<f32>>,
    task: &'a Task<'a>,
    ratio: usize,
}

impl WithSimd for Work<'_> {
    type Output = State;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> State {
        run(simd, self.op, self.task, self.ratio)
    }
}

#[inline(always)]
fn run<S: Simd>(simd: S, op: &AttendParts<'_, Cpu<f32>>, task: &Task<'_>, ratio: usize) -> State {
    let head_dim = op.cache.layout().head_dim();
    let width = ratio * head_dim;
    let rows = task.rows.clone().flat_map(|r| {
        let q = row(&op.q, task.head.seq.rows.start + r);
        &q[task.head.head * width..][..width]
    });
    let q: Vec<f32> = rows.map(|x| x * op.scale).collect();
    let n = q.len() / head_dim;
    let mut state = State::new(n, head_dim);
    let mut logits = vec![0.0; n * TILE];
    let mut scratch = vec![0.0; TILE * head_dim];
    let mut unpacker = Unpacker::new(op.cache.layout());
    let mut token = task.tokens.start;
    while token < task.tokens.end {
        let tile = token..((token / TILE + 1) * TILE).min(task.tokens.end);
        token = tile.end;
        keys(simd, task.head, &q, &mut logits, &mut scratch, tile.clone(), &mut unpacker);
        for i in 0..n {
            let logits = &mut logits[i * TILE..][..tile.len()];
            let at = task.head.seq.len + task.rows.start + i / ratio;
            mask(op, logits, tile.start, at, task.head.head * ratio + i % ratio);
            state.weigh(i, logits);
        }
        values(simd, task.head, &logits, &mut state.mixed, &mut scratch, tile, &mut unpacker);
    }
    state
}

/// Adds ALiBi and hides what the token at position `at` must not see.
#[inline(always)]
fn mask(op: &AttendParts<'_, Cpu<f32>>, logits: &mut [f32], start: usize, at: usize, head: usize) {
    if let Some(slopes) = op.alibi {
        let slope = slopes.0[head];
        for (x, t) in logits.iter_mut().zip(start..) {
            *x -= slope * (at as f32 - t as f32);
        }
    }
    let n = logits.len();
    logits[(at + 1).saturating_sub(start).min(n)..].fill(f32::NEG_INFINITY);
    let first = op.window.map_or(0, |w| (at + 1).saturating_sub(w));
    logits[..first.saturating_sub(start).min(n)].fill(f32::NEG_INFINITY);
}

/// `logits[i][t] = q_i . k_t` for the tokens of `tile`.
#[inline(always)]
fn keys<S: Simd>(
    simd: S,
    head: &Head<'_>,
    q: &[f32],
    logits: &mut [f32],
    scratch: &mut [f32],
    tile: Range<usize>,
    unpacker: &mut Unpacker<'_>,
) {
    let layout = head.cache.layout();
    let head_dim = layout.head_dim();
    let n = q.len() / head_dim;
    for (run, range) in runs(head, Side::Key, tile.clone()) {
        let out = range.start - tile.start..range.end - tile.start;
        if let (Run::Packed(page, at), true) = (&run, n <= FEW_QUERIES) {
            unpacker.key_logits(simd, page, (*at, range.len()), q, (&mut logits[out.start..], TILE));
            continue;
        }
        let rows = full(head, Side::Key, &run, range.len(), scratch, unpacker);
        if n <= FEW_QUERIES {
            for (i, q) in q.chunks_exact(head_dim).enumerate() {
                for (x, k) in logits[i * TILE..][out.clone()].iter_mut().zip(rows.chunks_exact(head_dim)) {
                    *x = dot(simd, k, q);
                }
            }
        } else {
            let (a, b) = (Mat { data: q, stride: head_dim }, Mat { data: rows, stride: head_dim });
            let shape = (n, range.len(), head_dim);
            matmul((&mut logits[out.start..], TILE), shape, a, (b, Rhs::Transposed), false);
        }
    }
}

/// `mixed_i += sum_t p_it v_t` over the tokens of `tile`.
#[inline(always)]
fn values<S: Simd>(
    simd: S,
    head: &Head<'_>,
    p: &[f32],
    mixed: &mut [f32],
    scratch: &mut [f32],
    tile: Range<usize>,
    unpacker: &mut Unpacker<'_>,
) {
    let layout = head.cache.layout();
    let head_dim = layout.head_dim();
    let n = p.len() / TILE;
    for (run, range) in runs(head, Side::Value, tile.clone()) {
        let out = range.start - tile.start..range.end - tile.start;
        if let (Run::Packed(page, at), true) = (&run, n <= FEW_QUERIES) {
            unpacker.mix_values(simd, page, (*at, range.len()), (&p[out.start..], TILE), mixed);
            continue;
        }
        let rows = full(head, Side::Value, &run, range.len(), scratch, unpacker);
        if n <= FEW_QUERIES {
            for (p, mixed) in p.chunks_exact(TILE).zip(mixed.chunks_exact_mut(head_dim)) {
                for (&p, v) in p[out.clone()].iter().zip(rows.chunks_exact(head_dim)) {
                    axpy(mixed, p, v);
                }
            }
        } else {
            let (a, b) = (Mat { data: &p[out.start..], stride: TILE }, Mat { data: rows, stride: head_dim });
            matmul((mixed, head_dim), (n, head_dim, range.len()), a, (b, Rhs::Plain), true);
        }
    }
}

/// The rows of a run as f32, unpacked into `scratch` unless they are that already.
#[inline(always)]
fn full<'a>(
    head: &Head<'_>,
    side: Side,
    run: &Run<'a>,
    n: usize,
    scratch: &'a mut [f32],
    unpacker: &mut Unpacker<'_>,
) -> &'a [f32] {
    let layout = head.cache.layout();
    let out = &mut scratch[..n * layout.head_dim()];
    match run {
        Run::New(rows) => return rows,
        Run::Stored(words) => load(layout.kv_dtype(), words, out),
        Run::Packed(page, at) => unpacker.dequantize(side, page, (*at, n), out),
    }
    out
}
