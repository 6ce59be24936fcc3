//! Activations and residual connections.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::{ActivateParts, Activation, AddParts};

use super::{PACK, at, at_mut, source};
use crate::device::Cuda;
use crate::launch::{BLOCK, MAX_DOWN};
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
    unsafe { launch(cuda, ["activate", "activate_packs"], params) }
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
    unsafe { launch(cuda, ["add", "add_packs"], params) }
}

/// Queues the kernel for single elements, or the one for packs where rows are made of them.
///
/// # Safety
/// The views of `p` have its rows and columns.
unsafe fn launch<A: Act>(
    cuda: &Cuda<A>,
    [single, packs]: [&'static str; 2],
    p: ElementwiseParams,
) -> Result<(), CudaError> {
    let whole = [p.out, p.x, p.up].iter().all(|row| row.is_multiple_of(16))
        && [p.out_stride, p.x_stride, p.up_stride, u64::from(p.cols)].iter().all(|n| n.is_multiple_of(PACK));
    let (kernel, each) = if whole { (packs, PACK as usize) } else { (single, 1) };
    let grid = [(p.cols as usize).div_ceil(BLOCK * each), (p.rows as usize).min(MAX_DOWN), 1];
    // SAFETY: as the caller says; the kernels keep to rows and columns.
    unsafe { cuda.launch(&SOURCE, kernel, grid, p) }
}
