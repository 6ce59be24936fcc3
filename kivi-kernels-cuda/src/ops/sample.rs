//! Drawing tokens: one block a row.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::SampleParts;

use super::{at, source};
use crate::device::Cuda;
use crate::{Act, CudaError};

source!("sample.cu": SampleParams);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SampleParams {
    out: u64,
    logits: u64,
    draws: u64,
    logits_stride: u64,
    cols: u64,
}

pub(crate) fn sample<A: Act>(cuda: &Cuda<A>, op: SampleParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let SampleParts { out, logits, draws } = op;
    let params = SampleParams {
        out: out.at(0),
        logits: at(&logits),
        draws: draws.at(0),
        logits_stride: logits.stride() as u64,
        cols: logits.cols() as u64,
    };
    // SAFETY: `Sample::new` checked the view, and that there is a token and a draw a row; a block a row.
    unsafe { cuda.launch(&SOURCE, "sample", [logits.rows(), 1, 1], params) }
}
