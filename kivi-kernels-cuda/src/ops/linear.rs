//! Embedding rows and products with weights.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::{EmbedParts, LinearParts};

use super::{at, at_mut, at_or_null, source, weight};
use crate::device::Cuda;
use crate::{Act, CudaError};

source!("linear.cu": EmbedParams, LinearParams);

/// Rows and columns of the outputs of a block: `TILE` in `linear.cu`.
const TILE: usize = 16;
/// Most blocks of a grid along y; they loop where there are more rows.
const MAX_DOWN: usize = 65_535;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct EmbedParams {
    out: u64,
    table: u64,
    tokens: u64,
    out_stride: u64,
    cols: u64,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinearParams {
    out: u64,
    x: u64,
    weight: u64,
    bias: u64,
    out_stride: u64,
    x_stride: u64,
    rows: u64,
    in_features: u64,
    out_features: u64,
}

pub(crate) fn embed<A: Act>(cuda: &Cuda<A>, op: EmbedParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let EmbedParts { mut out, table, tokens } = op;
    let (table, kernel) = weight(table, ["embed_f32", "embed_f16", "embed_bf16"]);
    let params = EmbedParams {
        out: at_mut(&mut out),
        table,
        tokens: tokens.at(0),
        out_stride: out.stride() as u64,
        cols: out.cols() as u64,
    };
    // SAFETY: `Embed::new` checked the view, the row length of the table and the number of tokens; that tokens lie in the
    // table is the op's contract with its caller. A block a row.
    unsafe { cuda.launch(&SOURCE, kernel, [out.rows(), 1, 1], params) }
}

pub(crate) fn linear<A: Act>(cuda: &Cuda<A>, op: LinearParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let LinearParts { mut out, x, weight: matrix, bias } = op;
    let (matrix, kernel) = weight(matrix, ["linear_f32", "linear_f16", "linear_bf16"]);
    let params = LinearParams {
        out: at_mut(&mut out),
        x: at(&x),
        weight: matrix,
        bias: at_or_null(bias),
        out_stride: out.stride() as u64,
        x_stride: x.stride() as u64,
        rows: x.rows() as u64,
        in_features: x.cols() as u64,
        out_features: out.cols() as u64,
    };
    let grid = [out.cols().div_ceil(TILE), x.rows().div_ceil(TILE).min(MAX_DOWN), 1];
    // SAFETY: `Linear::new` checked that views, weight and bias fit each other; the kernel keeps to rows and columns.
    unsafe { cuda.launch(&SOURCE, kernel, grid, params) }
}
