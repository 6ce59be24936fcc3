//! Normalisation of rows.

use kivi_kernels::ops::{LayerNormParts, RmsNormParts};

use crate::view::{row, row_mut};
use crate::{Accum, Cpu};

fn mean<A: Accum>(terms: impl ExactSizeIterator<Item = A>) -> A {
    let n = terms.len() as f64;
    terms.sum::<A>() / A::from_f64(n)
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`, for each group of as many columns as there are weights.
pub(crate) fn rms_norm<A: Accum>(cpu: &Cpu<A>, mut op: RmsNormParts<'_, Cpu<A>>) {
    let weight = &op.weight.0;
    for i in 0..op.x.rows() {
        let groups = row(&op.x, i).chunks_exact(weight.len());
        for (out, x) in row_mut(&mut op.out, i).chunks_exact_mut(weight.len()).zip(groups) {
            let root = (mean(x.iter().map(|&x| x * x)) + A::from_f64(op.eps.into())).sqrt();
            for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                *out = cpu.output(x / root * A::from_f64(weight.into()));
            }
        }
    }
}

/// `out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias`.
pub(crate) fn layer_norm<A: Accum>(cpu: &Cpu<A>, mut op: LayerNormParts<'_, Cpu<A>>) {
    for i in 0..op.x.rows() {
        let x = row(&op.x, i);
        let center = mean(x.iter().copied());
        let variance = mean(x.iter().map(|&x| (x - center) * (x - center)));
        let root = (variance + A::from_f64(op.eps.into())).sqrt();
        for (j, (out, &x)) in row_mut(&mut op.out, i).iter_mut().zip(x).enumerate() {
            let weight = A::from_f64(op.weight.0[j].into());
            let bias = A::from_f64(op.bias.map_or(0.0, |bias| bias.0[j].into()));
            *out = cpu.output((x - center) / root * weight + bias);
        }
    }
}
