//! Choosing rows and tokens.

use core::cmp::Ordering;

use kivi_kernels::ops::{ArgmaxParts, GatherParts, TopKParts};

use crate::view::{row, row_mut};
use crate::{Accum, Cpu};

/// `out[i] = x[rows[i]]`.
pub(crate) fn gather<A: Accum>(_: &Cpu<A>, mut op: GatherParts<'_, Cpu<A>>) {
    for i in 0..op.out.rows() {
        row_mut(&mut op.out, i).copy_from_slice(row(&op.x, op.rows.0[i] as usize));
    }
}

/// `out[i] = argmax_j logits[i, j]`, `u32::MAX` unless all are finite.
pub(crate) fn argmax<A: Accum>(_: &Cpu<A>, op: ArgmaxParts<'_, Cpu<A>>) {
    for i in 0..op.logits.rows() {
        op.out.0[i] = likeliest(row(&op.logits, i)).map_or(u32::MAX, |j| j as u32);
    }
}

/// Where the largest element is, the first of equals, if all are finite.
pub(super) fn likeliest<A: Accum>(x: &[A]) -> Option<usize> {
    (0..x.len()).min_by(|&a, &b| descending(x, a, b)).filter(|_| all_finite(x))
}

fn all_finite<A: Accum>(x: &[A]) -> bool {
    x.iter().all(|x| x.to_f64().is_finite())
}

/// The `k` largest of each row, descending.
pub(crate) fn top_k<A: Accum>(_: &Cpu<A>, mut op: TopKParts<'_, Cpu<A>>) {
    let k = op.values.cols();
    for i in 0..op.logits.rows() {
        let x = row(&op.logits, i);
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| descending(x, a, b));
        for (j, &at) in order[..k].iter().enumerate() {
            row_mut(&mut op.values, i)[j] = x[at];
            op.indices.0[i * k + j] = at as u32;
        }
    }
}

/// The larger element first, the lower index first among equals, a NaN last.
pub(super) fn descending<A: Accum>(x: &[A], a: usize, b: usize) -> Ordering {
    let nan = |i: usize| x[i].partial_cmp(&x[i]).is_none();
    let larger = x[b].partial_cmp(&x[a]).unwrap_or_else(|| nan(a).cmp(&nan(b)));
    larger.then(a.cmp(&b))
}
