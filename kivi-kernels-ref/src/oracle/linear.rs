//! Embedding and matrix products with weights.

use kivi_kernels::ops::{EmbedParts, LinearParts};

use crate::view::{row, row_mut, weight};
use crate::{Accum, Cpu};

/// `out[i] = table[tokens[i]]`.
pub(crate) fn embed<A: Accum>(cpu: &Cpu<A>, mut op: EmbedParts<'_, Cpu<A>>) {
    let n = op.out.cols();
    for i in 0..op.out.rows() {
        let token = op.tokens.0[i] as usize;
        for (j, out) in row_mut(&mut op.out, i).iter_mut().enumerate() {
            *out = cpu.output(weight(op.table, token * n + j));
        }
    }
}

/// `out[i, j] = sum_c x[i, c] weight[j, c] + bias[j]`.
pub(crate) fn linear<A: Accum>(cpu: &Cpu<A>, mut op: LinearParts<'_, Cpu<A>>) {
    for i in 0..op.x.rows() {
        let x = row(&op.x, i);
        for (j, out) in row_mut(&mut op.out, i).iter_mut().enumerate() {
            let terms = x.iter().enumerate().map(|(c, &x_c)| x_c * weight(op.weight, j * x.len() + c));
            let bias = op.bias.map_or(0.0, |bias| f64::from(bias.0[j]));
            *out = cpu.output(terms.sum::<A>() + A::from_f64(bias));
        }
    }
}
