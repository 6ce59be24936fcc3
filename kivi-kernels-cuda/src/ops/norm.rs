//! Normalisation of rows: one block a row, or one a head.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::{AddRmsNormParts, LayerNormParts, RmsNormParts};
use kivi_kernels::{Buffer, RowsMut};

use super::{ActRows, at, at_mut, at_or_null, source};
use crate::device::Cuda;
use crate::{Act, CudaError};

source!("norm.cu": NormParams, AddNormParams);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormParams {
    out: u64,
    x: u64,
    weight: u64,
    bias: u64,
    out_stride: u64,
    x_stride: u64,
    cols: u32,
    groups: u32,
    eps: f32,
    unused: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AddNormParams {
    out: u64,
    hidden: u64,
    x: u64,
    weight: u64,
    out_stride: u64,
    hidden_stride: u64,
    x_stride: u64,
    cols: u32,
    eps: f32,
}

impl NormParams {
    fn new<A: Act>(
        out: &mut RowsMut<'_, Cuda<A>, A>,
        x: &ActRows<'_, A>,
        (weight, bias): (u64, u64),
        groups: usize,
        eps: f32,
    ) -> Self {
        Self {
            out: at_mut(out),
            x: at(x),
            weight,
            bias,
            out_stride: out.stride() as u64,
            x_stride: x.stride() as u64,
            cols: (x.cols() / groups.max(1)) as u32,
            groups: groups as u32,
            eps,
            unused: 0,
        }
    }
}

pub(crate) fn rms_norm<A: Act>(cuda: &Cuda<A>, op: RmsNormParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let RmsNormParts { mut out, x, weight, eps } = op;
    let groups = x.cols() / weight.len();
    let params = NormParams::new(&mut out, &x, (weight.at(0), 0), groups, eps);
    // SAFETY: `RmsNorm::new` checked that views have `groups` times the columns of the weight; a block a group.
    unsafe { cuda.launch(&SOURCE, "rms_norm", [x.rows() * groups, 1, 1], params) }
}

pub(crate) fn add_rms_norm<A: Act>(
    cuda: &Cuda<A>,
    op: AddRmsNormParts<'_, Cuda<A>>,
) -> Result<(), CudaError> {
    let AddRmsNormParts { mut out, mut hidden, x, weight, eps } = op;
    let params = AddNormParams {
        out: at_mut(&mut out),
        hidden: at_mut(&mut hidden),
        x: at(&x),
        weight: weight.at(0),
        out_stride: out.stride() as u64,
        hidden_stride: hidden.stride() as u64,
        x_stride: x.stride() as u64,
        cols: x.cols() as u32,
        eps,
    };
    // SAFETY: `AddRmsNorm::new` checked that views and weight have `cols` columns; a block a row.
    unsafe { cuda.launch(&SOURCE, "add_rms_norm", [x.rows(), 1, 1], params) }
}

pub(crate) fn layer_norm<A: Act>(cuda: &Cuda<A>, op: LayerNormParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let LayerNormParts { mut out, x, weight, bias, eps } = op;
    let params = NormParams::new(&mut out, &x, (weight.at(0), at_or_null(bias)), 1, eps);
    // SAFETY: `LayerNorm::new` checked that views, weight and bias have `cols` columns; a block a row.
    unsafe { cuda.launch(&SOURCE, "layer_norm", [x.rows(), 1, 1], params) }
}
