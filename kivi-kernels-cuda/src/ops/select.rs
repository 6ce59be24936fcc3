//! Choosing rows and tokens: one block a row.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::{ArgmaxParts, GatherParts, TopKParts};

use super::{at, at_mut, source};
use crate::device::Cuda;
use crate::{Act, CudaError};

source!("select.cu": GatherParams, SelectParams);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GatherParams {
    out: u64,
    x: u64,
    rows: u64,
    out_stride: u64,
    x_stride: u64,
    cols: u64,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SelectParams {
    values: u64,
    indices: u64,
    logits: u64,
    values_stride: u64,
    logits_stride: u64,
    cols: u32,
    k: u32,
}

pub(crate) fn gather<A: Act>(cuda: &Cuda<A>, op: GatherParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let GatherParts { mut out, x, rows } = op;
    let params = GatherParams {
        out: at_mut(&mut out),
        x: at(&x),
        rows: rows.at(0),
        out_stride: out.stride() as u64,
        x_stride: x.stride() as u64,
        cols: x.cols() as u64,
    };
    // SAFETY: `Gather::new` checked both views' columns and the number of rows; that these are rows of `x` is the op's
    // contract with its caller. A block a row.
    unsafe { cuda.launch(&SOURCE, "gather", [out.rows(), 1, 1], params) }
}

pub(crate) fn argmax<A: Act>(cuda: &Cuda<A>, op: ArgmaxParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let ArgmaxParts { out, logits } = op;
    let params = SelectParams {
        values: 0,
        indices: out.at(0),
        logits: at(&logits),
        values_stride: 0,
        logits_stride: logits.stride() as u64,
        cols: logits.cols() as u32,
        k: 1,
    };
    // SAFETY: `Argmax::new` checked the view and that there is an index a row; a block a row.
    unsafe { cuda.launch(&SOURCE, "argmax", [logits.rows(), 1, 1], params) }
}

pub(crate) fn top_k<A: Act>(cuda: &Cuda<A>, op: TopKParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let TopKParts { mut values, indices, logits } = op;
    let params = SelectParams {
        values: at_mut(&mut values),
        indices: indices.at(0),
        logits: at(&logits),
        values_stride: values.stride() as u64,
        logits_stride: logits.stride() as u64,
        cols: logits.cols() as u32,
        k: values.cols() as u32,
    };
    // SAFETY: `TopK::new` checked the views, that `k` is at most their columns and that there are `k` indices a row; a
    // block a row.
    unsafe { cuda.launch(&SOURCE, "top_k", [logits.rows(), 1, 1], params) }
}
