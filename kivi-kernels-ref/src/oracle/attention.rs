//! Attention of new tokens over a KIVI cache.

use kivi_kernels::ops::AttendParts;
use kivi_quant::{Side, page};

use super::cache::new_row;
use crate::sequence::Sequence;
use crate::view::{row, row_mut};
use crate::{Accum, Cpu};

/// A key or value as codes with their scales and zeros: channel `c` is `code[c] * scale[c] + zero[c]`. A row in
/// full precision has scale 1 and zero 0.
struct KvRow<A> {
    code: Vec<A>,
    scale: Vec<A>,
    zero: Vec<A>,
}

/// `out = sum_j p_j v_j`, `p = softmax_j(scale q . k_j + alibi (j - i))`, for every sequence, head and new token.
pub(crate) fn attend<A: Accum>(cpu: &Cpu<A>, mut op: AttendParts<'_, Cpu<A>>) {
    let head_dim = op.cache.layout().head_dim();
    let ratio = op.n_heads / op.cache.n_kv_heads();
    for seq in Sequence::all(op.batch, op.group) {
        if !seq.active {
            seq.rows.for_each(|i| row_mut(&mut op.out, i).fill(A::from_f64(0.0)));
            continue;
        }
        for kv_head in 0..op.cache.n_kv_heads() {
            let rows =
                |side| -> Vec<_> { (0..seq.end()).map(|t| kv_row(&op, &seq, side, kv_head, t)).collect() };
            let (keys, values) = (rows(Side::Key), rows(Side::Value));
            for head in kv_head * ratio..(kv_head + 1) * ratio {
                let channels = head * head_dim..(head + 1) * head_dim;
                for (i, at) in seq.rows.clone().zip(seq.len..) {
                    let first = op.window.map_or(0, |w| (at + 1).saturating_sub(w));
                    let q = &row(&op.q, i)[channels.clone()];
                    let logits: Vec<A> =
                        (first..=at).map(|j| logit(cpu, &op, q, &keys[j], head, at - j)).collect();
                    let o = mix(cpu, &softmax(&logits), &values[first..=at]);
                    row_mut(&mut op.out, i)[channels.clone()].copy_from_slice(&o);
                }
            }
        }
    }
}

/// `scale q . k - alibi distance`, with `q . k = sum_c (q_c scale_c) code_c + sum_c q_c zero_c`.
fn logit<A: Accum>(
    cpu: &Cpu<A>,
    op: &AttendParts<'_, Cpu<A>>,
    q: &[A],
    key: &KvRow<A>,
    head: usize,
    distance: usize,
) -> A {
    let scale = A::from_f64(op.scale.into());
    let slope = op.alibi.map_or(0.0, |slopes| slopes.0[head].into());
    let codes: A = (0..q.len()).map(|c| cpu.operand(q[c] * scale * key.scale[c]) * key.code[c]).sum();
    let zeros: A = (0..q.len()).map(|c| q[c] * scale * key.zero[c]).sum();
    codes + zeros - A::from_f64(slope) * A::from_f64(distance as f64)
}

/// `e^(logit - largest)` of each logit.
fn softmax<A: Accum>(logits: &[A]) -> Vec<A> {
    let largest = logits.iter().fold(logits[0], |m, &x| if x > m { x } else { m });
    logits.iter().map(|&x| (x - largest).exp()).collect()
}

/// `sum_j p_j v_j / sum_j p_j`, with `p v = (p scale_c) code_c + p zero_c`.
fn mix<A: Accum>(cpu: &Cpu<A>, p: &[A], values: &[KvRow<A>]) -> Vec<A> {
    let total: A = p.iter().copied().sum();
    let channel = |c: usize| {
        let codes: A = p.iter().zip(values).map(|(&p, v)| cpu.operand(p * v.scale[c]) * v.code[c]).sum();
        let zeros: A = p.iter().zip(values).map(|(&p, v)| p * v.zero[c]).sum();
        cpu.output((codes + zeros) / total)
    };
    (0..values[0].code.len()).map(channel).collect()
}

/// The key or value of token `t`: of the step itself, a sink, in the ring, or in a page.
fn kv_row<A: Accum>(
    op: &AttendParts<'_, Cpu<A>>,
    seq: &Sequence<'_>,
    side: Side,
    head: usize,
    t: usize,
) -> KvRow<A> {
    let (cache, config) = (op.cache, op.cache.layout().config());
    let (new, packed, ring, sink) = match side {
        Side::Key => (&op.k_new, seq.packed.k, &cache.k_ring, &cache.k_sink),
        Side::Value => (&op.v_new, seq.packed.v, &cache.v_ring, &cache.v_sink),
    };
    let quantized = cache.layout().bits(side).is_quantized();
    if t >= seq.len {
        full(&new_row(cache, seq, head, new, t))
    } else if quantized && t < config.sink_tokens() {
        stored(op, &sink.0[seq.sink(cache, head, t)])
    } else if t >= packed {
        stored(op, &ring.0[seq.ring(cache, head, t)])
    } else {
        let page = &cache.pool.0[seq.page(cache, head, t)];
        let t = t % config.page_tokens();
        if quantized {
            codes(op, side, page, t)
        } else {
            stored(op, &page[cache.layout().row_start(side, t)..])
        }
    }
}

/// A row in full precision.
fn full<A: Accum>(row: &[f32]) -> KvRow<A> {
    let constant = |x: f64| vec![A::from_f64(x); row.len()];
    let code = row.iter().map(|&x| A::from_f64(x.into())).collect();
    KvRow { code, scale: constant(1.0), zero: constant(0.0) }
}

/// A row in full precision, in the words of a ring, a sink or a 16-bit page.
fn stored<A: Accum>(op: &AttendParts<'_, Cpu<A>>, words: &[u32]) -> KvRow<A> {
    let mut row = vec![0.0; op.cache.layout().head_dim()];
    page::load_row(op.cache.layout().kv_dtype(), words, &mut row);
    full(&row)
}

/// A quantized row of a page.
fn codes<A: Accum>(op: &AttendParts<'_, Cpu<A>>, side: Side, page: &[u32], t: usize) -> KvRow<A> {
    let layout = op.cache.layout();
    let max_code = layout.bits(side).max_code();
    let each = |f: &dyn Fn(usize) -> f64| (0..layout.head_dim()).map(|c| A::from_f64(f(c))).collect();
    let params = |c| page::params(layout, side, page, t, c);
    KvRow {
        code: each(&|c| {
            let at = layout.code(side, t, c);
            f64::from(page[at.word] >> at.shift & max_code)
        }),
        scale: each(&|c| params(c).scale.to_f64()),
        zero: each(&|c| params(c).zero.to_f64()),
    }
}
