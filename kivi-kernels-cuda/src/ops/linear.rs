//! Embedding rows and products with weights.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::{EmbedParts, LinearParts};
use kivi_kernels::{DType, Weight};

use super::{at, at_mut, at_or_null, gemv, source, weight};
use crate::blas::{Operands, Shape};
use crate::device::Cuda;
use crate::launch::MAX_DOWN;
use crate::{Act, CudaError};

source!("linear.cu": EmbedParams, LinearParams);

/// Rows and columns of the outputs of a block: `TILE` in `linear.cu`.
const TILE: usize = 16;

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
pub(super) struct LinearParams {
    pub out: u64,
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub out_stride: u64,
    pub x_stride: u64,
    pub rows: u64,
    pub in_features: u64,
    pub out_features: u64,
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

/// Few rows by the kernel that reads weights at the speed of memory, more by cuBLASLt, and what these do not take by the plain
/// kernel.
pub(crate) fn linear<A: Act>(cuda: &Cuda<A>, op: LinearParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let LinearParts { mut out, x, weight: matrix, bias } = op;
    let (dtype, settled) = match matrix {
        Weight::F32(x) => (DType::F32, x.is_settled()),
        Weight::F16(x) => (DType::F16, x.is_settled()),
        Weight::Bf16(x) => (DType::Bf16, x.is_settled()),
    };
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
    let most = if dtype == A::DTYPE && cuda.blas().is_some() { cuda.gemv_rows } else { gemv::MOST_ROWS };
    if params.rows <= most && gemv::takes(&params) {
        let kernels = match dtype {
            DType::F16 => gemv::F16,
            DType::Bf16 => gemv::BF16,
            _ => gemv::F32,
        };
        // SAFETY: `Linear::new` checked that views, weight and bias fit each other; what is settled is a buffer's to know.
        return unsafe { gemv::gemv(cuda, &params, kernels, settled) };
    }
    // SAFETY: as above.
    if dtype == A::DTYPE && unsafe { by_blas(cuda, &params)? } {
        return Ok(());
    }
    let grid = [out.cols().div_ceil(TILE), x.rows().div_ceil(TILE).min(MAX_DOWN), 1];
    // SAFETY: as above; the kernel keeps to rows and columns.
    unsafe { cuda.launch(&SOURCE, kernel, grid, params) }
}

/// Queues the product by cuBLASLt; false, and nothing is queued, if it does not take it or is not there.
///
/// # Safety
/// Views, weight and bias fit each other, and the weight is of the type of activations.
unsafe fn by_blas<A: Act>(cuda: &Cuda<A>, params: &LinearParams) -> Result<bool, CudaError> {
    let Some(blas) = cuda.blas().filter(|_| params.rows > 0 && params.out_features > 0) else {
        return Ok(false);
    };
    let LinearParams { out, x, weight, .. } = *params;
    let operands = Operands { out, x, weight };
    let shape = Shape {
        rows: params.rows,
        n: params.out_features,
        k: params.in_features,
        x_stride: params.x_stride,
        out_stride: params.out_stride,
        alignment: operands.alignment(),
    };
    // SAFETY: as the caller says.
    if !unsafe { blas.product(&cuda.stream, shape, operands)? } {
        return Ok(false);
    }
    if params.bias != 0 {
        let grid = [params.rows as usize, 1, 1];
        // SAFETY: as the caller says; a block a row.
        unsafe { cuda.launch(&SOURCE, "add_bias", grid, *params)? };
    } else if cuda.sync {
        cuda.stream.synchronize().map_err(CudaError::driver("cuBLASLt"))?;
    }
    Ok(true)
}
