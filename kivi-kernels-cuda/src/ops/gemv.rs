//! Products of few rows with weights.

use bytemuck::{Pod, Zeroable};

use super::linear::LinearParams;
use super::{PACK, source};
use crate::device::Cuda;
use crate::launch::BLOCK;
use crate::{Act, CudaError};

source!(streaming "gemv.cu": GemvParams);

/// Most rows that the kernel takes.
pub(super) const MOST_ROWS: u64 = 8;
/// Warps of a block.
const WARPS: u64 = BLOCK as u64 / 32;
/// Warps of a multiprocessor that keep its memory busy.
const BUSY: u64 = 32;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GemvParams {
    out: u64,
    x: u64,
    weight: u64,
    bias: u64,
    out_stride: u64,
    x_stride: u64,
    rows: u32,
    in_features: u32,
    out_features: u32,
    split: u32,
    settled: u32,
    unused: u32,
}

/// The versions for one type of weights: for up to 1, 2, 4 and 8 rows.
pub(super) type Kernels = [&'static str; 4];
pub(super) const F32: Kernels = ["gemv_f32_1", "gemv_f32_2", "gemv_f32_4", "gemv_f32_8"];
pub(super) const F16: Kernels = ["gemv_f16_1", "gemv_f16_2", "gemv_f16_4", "gemv_f16_8"];
pub(super) const BF16: Kernels = ["gemv_bf16_1", "gemv_bf16_2", "gemv_bf16_4", "gemv_bf16_8"];

/// Whether the kernel takes this product: few rows, all of them read 16 bytes at a time.
pub(super) fn takes(p: &LinearParams) -> bool {
    let aligned = [p.x, p.weight].iter().all(|address| address.is_multiple_of(16));
    let packed = [p.in_features, p.x_stride].iter().all(|n| n.is_multiple_of(PACK));
    let small = [p.in_features, p.out_features].iter().all(|n| *n < 1 << 31);
    (1..=MOST_ROWS).contains(&p.rows) && aligned && packed && small
}

/// Queues the product, whose first weights are read while the launch before may still run if they are `settled`.
///
/// # Safety
/// [`takes`], what `p` names is there, and no launch writes weights that are settled.
pub(super) unsafe fn gemv<A: Act>(
    cuda: &Cuda<A>,
    p: &LinearParams,
    kernels: Kernels,
    settled: bool,
) -> Result<(), CudaError> {
    let version = p.rows.next_power_of_two().trailing_zeros() as usize;
    let warps = p.out_features.div_ceil(if version < 2 { 1 } else { 2 });
    let split = split(warps, p.in_features, cuda.multiprocessors as u64);
    let params = GemvParams {
        out: p.out,
        x: p.x,
        weight: p.weight,
        bias: p.bias,
        out_stride: p.out_stride,
        x_stride: p.x_stride,
        rows: p.rows as u32,
        in_features: p.in_features as u32,
        out_features: p.out_features as u32,
        split: split as u32,
        settled: u32::from(settled),
        unused: 0,
    };
    let blocks = warps.div_ceil(WARPS / split) as usize;
    // SAFETY: as the caller says; the kernel keeps to rows and features.
    unsafe { cuda.launch(&SOURCE, kernels[version], [blocks, 1, 1], params) }
}

/// Warps that share an output: as many as keep the device busy, and have something to do.
fn split(warps: u64, in_features: u64, multiprocessors: u64) -> u64 {
    let mut split = 1;
    while split < WARPS && warps * split < BUSY * multiprocessors && in_features >= 2 * split * 32 * PACK {
        split *= 2;
    }
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_split_where_there_are_few() {
        assert_eq!(split(32_000, 4096, 132), 1);
        assert_eq!(split(4096, 4096, 132), 2);
        assert_eq!(split(512, 4096, 132), 8);
        assert_eq!(split(512, 64, 132), 1, "nothing to share");
    }
}
