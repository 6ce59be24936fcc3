//! Products with weight matrices.

use core::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use kivi_kernels::Weight;
use kivi_kernels::ops::LinearParts;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::math::dot;
use super::matmul::{Mat, Rhs, matmul};
use crate::Cpu;
use crate::view::row;

/// Up to so many rows, each weight is used too seldom for a matrix product to pay: they are dot products.
const FEW_ROWS: usize = 4;
/// f32 elements of a tile of weights; with its operands it stays in a core's second-level cache.
const TILE: usize = 64 * 1024;

/// [`kivi_kernels::ops::Linear`]. Weights are converted to f32 tile by tile, never as a whole.
pub(crate) fn linear(_: &Cpu<f32>, mut op: LinearParts<'_, Cpu<f32>>) {
    let (m, k) = op.x.shape();
    let n = op.out.cols();
    if m == 0 {
        return;
    }
    let rows: Vec<&[f32]> = (0..m).map(|i| row(&op.x, i)).collect();
    let tile = if m <= FEW_ROWS { 2 * TILE } else { TILE };
    let per_tile = (tile / k.max(1)).clamp(16, 1024);
    let tiles: Vec<_> = (0..n).step_by(per_tile).map(|start| start..(start + per_tile).min(n)).collect();
    let x = Mat { data: &op.x.buffer().0[op.x.offset()..], stride: op.x.stride() };
    let weight = op.weight;
    let product = |tile: &Range<usize>| {
        let mut out = vec![0.0; m * tile.len()];
        if m <= FEW_ROWS {
            Arch::new().dispatch(FewRows { out: &mut out, x: &rows, weight, tile: tile.clone(), k });
        } else {
            let mut scratch = Vec::new();
            let b = Mat { data: tile_of(weight, tile.start * k..tile.end * k, &mut scratch), stride: k };
            matmul((&mut out, tile.len()), (m, tile.len(), k), x, (b, Rhs::Transposed), false);
        }
        out
    };
    // A single tile is not worth waking other threads for.
    let products: Vec<Vec<f32>> =
        if tiles.len() == 1 { vec![product(&tiles[0])] } else { tiles.par_iter().map(product).collect() };
    let (offset, stride) = (op.out.offset(), op.out.stride());
    let out = &mut op.out.buffer().0;
    for (tile, product) in tiles.iter().zip(&products) {
        for (i, values) in product.chunks_exact(tile.len()).enumerate() {
            let out = &mut out[offset + i * stride..][tile.clone()];
            out.copy_from_slice(values);
            if let Some(bias) = op.bias {
                out.iter_mut().zip(&bias.0[tile.clone()]).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// A part of the weights in f32: borrowed, or converted into `scratch`.
fn tile_of<'a>(weight: &'a Weight<Cpu<f32>>, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
    match weight {
        Weight::F32(x) => return &x.0[range],
        Weight::F16(x) => {
            scratch.resize(range.len(), 0.0);
            x.0[range].convert_to_f32_slice(scratch);
        }
        Weight::Bf16(x) => {
            scratch.clear();
            scratch.extend(x.0[range].iter().map(|x| widen(*x)));
        }
    }
    scratch
}

/// A bf16 as f32, in a form that vectorises.
#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// `out[i][j] = x[i] . weight[j]` for the weights' rows `j` in `tile`.
struct FewRows<'a> {
    out: &'a mut [f32],
    x: &'a [&'a [f32]],
    weight: &'a Weight<Cpu<f32>>,
    tile: Range<usize>,
    k: usize,
}

impl WithSimd for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (n, k) = (self.tile.len(), self.k);
        let mut converted = vec![0.0; k];
        for j in 0..n {
            let range = (self.tile.start + j) * k..(self.tile.start + j + 1) * k;
            let w: &[f32] = match self.weight {
                Weight::F32(w) => &w.0[range],
                Weight::F16(w) => {
                    w.0[range].convert_to_f32_slice(&mut converted);
                    &converted
                }
                Weight::Bf16(w) => {
                    for (to, from) in converted.iter_mut().zip(&w.0[range]) {
                        *to = widen(*from);
                    }
                    &converted
                }
            };
            for (i, x) in self.x.iter().enumerate() {
                self.out[i * n + j] = dot(simd, w, x);
            }
        }
    }
}
