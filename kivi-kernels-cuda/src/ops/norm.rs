//! Normalisation of rows: one block a row, or one a head.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::{AddRmsNormParts, LayerNormParts, RmsNormParts};
use kivi_kernels::{Buffer, RowsMut};

use super::{ActRows, PACK, at, at_mut, at_or_null, source};
use crate::device::Cuda;
use crate::launch::BLOCK;
use crate::{Act, CudaBuffer, CudaError};

source!("norm.cu": NormParams);

/// Packs that a thread takes of a row: `PACKS` in `norm.cu`.
const PACKS: usize = 4;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormParams {
    out: u64,
    hidden: u64,
    x: u64,
    weight: u64,
    bias: u64,
    out_stride: u64,
    hidden_stride: u64,
    x_stride: u64,
    cols: u32,
    groups: u32,
    eps: f32,
    settled: u32,
}

impl NormParams {
    fn new<A: Act>(
        out: &mut RowsMut<'_, Cuda<A>, A>,
        x: &ActRows<'_, A>,
        weight: &CudaBuffer<f32>,
        groups: usize,
        eps: f32,
    ) -> Self {
        Self {
            out: at_mut(out),
            hidden: 0,
            x: at(x),
            weight: weight.at(0),
            bias: 0,
            out_stride: out.stride() as u64,
            hidden_stride: 0,
            x_stride: x.stride() as u64,
            cols: (x.cols() / groups.max(1)) as u32,
            groups: groups as u32,
            eps,
            settled: u32::from(weight.is_settled()),
        }
    }

    /// Whether a block takes a row at once, 16 bytes at a time.
    fn fits_packs(&self) -> bool {
        let rows = [self.out, self.hidden, self.x, self.weight, self.bias];
        let strides = [self.out_stride, self.hidden_stride, self.x_stride, u64::from(self.cols)];
        rows.iter().all(|row| row.is_multiple_of(16))
            && strides.iter().all(|n| n.is_multiple_of(PACK))
            && self.cols as usize <= PACKS * PACK as usize * BLOCK
    }
}

pub(crate) fn rms_norm<A: Act>(cuda: &Cuda<A>, op: RmsNormParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let RmsNormParts { mut out, x, weight, eps } = op;
    let groups = x.cols() / weight.len();
    let params = NormParams::new(&mut out, &x, weight, groups, eps);
    let kernel = if params.fits_packs() { "rms_norm_packs" } else { "rms_norm" };
    // SAFETY: `RmsNorm::new` checked that views have `groups` times the columns of the weight; a block a group.
    unsafe { cuda.launch(&SOURCE, kernel, [x.rows() * groups, 1, 1], params) }
}

pub(crate) fn add_rms_norm<A: Act>(
    cuda: &Cuda<A>,
    op: AddRmsNormParts<'_, Cuda<A>>,
) -> Result<(), CudaError> {
    let AddRmsNormParts { mut out, mut hidden, x, weight, eps } = op;
    let params = NormParams {
        hidden: at_mut(&mut hidden),
        hidden_stride: hidden.stride() as u64,
        ..NormParams::new(&mut out, &x, weight, 1, eps)
    };
    let kernel = if params.fits_packs() { "add_rms_norm_packs" } else { "add_rms_norm" };
    // SAFETY: `AddRmsNorm::new` checked that views and weight have `cols` columns; a block a row.
    unsafe { cuda.launch(&SOURCE, kernel, [x.rows(), 1, 1], params) }
}

pub(crate) fn layer_norm<A: Act>(cuda: &Cuda<A>, op: LayerNormParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let LayerNormParts { mut out, x, weight, bias, eps } = op;
    let settled = weight.is_settled() && bias.is_none_or(CudaBuffer::is_settled);
    let params = NormParams {
        bias: at_or_null(bias),
        settled: u32::from(settled),
        ..NormParams::new(&mut out, &x, weight, 1, eps)
    };
    let kernel = if params.fits_packs() { "layer_norm_packs" } else { "layer_norm" };
    // SAFETY: `LayerNorm::new` checked that views, weight and bias have `cols` columns; a block a row.
    unsafe { cuda.launch(&SOURCE, kernel, [x.rows(), 1, 1], params) }
}
