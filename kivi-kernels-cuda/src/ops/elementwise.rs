//! Activations and residual connections.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::{ActivateParts, Activation, AddParts};

use super::{at, at_mut, source};
use crate::device::Cuda;
use crate::launch::blocks_for;
use crate::{Act, CudaError};

source!("elementwise.cu": ElementwiseParams);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ElementwiseParams {
    out: u64,
    x: u64,
    up: u64,
    out_stride: u64,
    x_stride: u64,
    up_stride: u64,
    rows: u64,
    cols: u32,
    activation: u32,
}

/// As in `elementwise.cu`.
fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
    }
}

pub(crate) fn activate<A: Act>(cuda: &Cuda<A>, op: ActivateParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let ActivateParts { mut out, x, up, activation } = op;
    let params = ElementwiseParams {
        out: at_mut(&mut out),
        x: at(&x),
        up: up.map_or(0, |up| at(&up)),
        out_stride: out.stride() as u64,
        x_stride: x.stride() as u64,
        up_stride: up.map_or(0, |up| up.stride() as u64),
        rows: x.rows() as u64,
        cols: x.cols() as u32,
        activation: number(activation),
    };
    // SAFETY: `Activate::new` checked that all views have the same shape.
    unsafe { cuda.launch(&SOURCE, "activate", [blocks_for(x.rows() * x.cols()), 1, 1], params) }
}

pub(crate) fn add<A: Act>(cuda: &Cuda<A>, op: AddParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let AddParts { mut out, x } = op;
    let params = ElementwiseParams {
        out: at_mut(&mut out),
        x: at(&x),
        up: 0,
        out_stride: out.stride() as u64,
        x_stride: x.stride() as u64,
        up_stride: 0,
        rows: x.rows() as u64,
        cols: x.cols() as u32,
        activation: 0,
    };
    // SAFETY: `Add::new` checked that both views have the same shape.
    unsafe { cuda.launch(&SOURCE, "add", [blocks_for(x.rows() * x.cols()), 1, 1], params) }
}
