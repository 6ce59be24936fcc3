//! Reading memory.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::Buffer;

use super::source;
use crate::device::Cuda;
use crate::launch::BLOCK;
use crate::{Act, CudaBuffer, CudaError};

source!("bandwidth.cu": SumParams);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SumParams {
    words: u64,
    sums: u64,
    count: u64,
}

pub(crate) fn sum_words<A: Act>(
    cuda: &Cuda<A>,
    words: &CudaBuffer<u32>,
    sums: &mut CudaBuffer<u32>,
) -> Result<(), CudaError> {
    let params = SumParams { words: words.at(0), sums: sums.at(0), count: words.len() as u64 };
    // At least one, which sums up nothing.
    let blocks = words.len().div_ceil(4 * BLOCK).max(1).min(sums.len());
    // SAFETY: the kernel reads the words of one buffer, which allocations align to 256 bytes, and writes one sum a block.
    unsafe { cuda.launch(&SOURCE, "sum_words", [blocks, 1, 1], params) }
}
