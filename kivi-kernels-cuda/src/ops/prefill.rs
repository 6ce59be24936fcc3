//! Attention of many rows a sequence, on tensor cores.

use bytemuck::{Pod, Zeroable};

use super::attention::AttendParams;
use super::source;
use crate::device::Cuda;
use crate::jit::{Plan, Shape, Variant};
use crate::{Act, CudaError};

source!(shaped "prefill.cu": PrefillParams);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PrefillParams {
    attend: AttendParams,
    few: u32,
    together: u32,
}

/// Bytes of new rows that blocks read at the same time at most, so that the second-level cache keeps them.
const AT_ONCE: usize = 32 << 20;

/// Attention of the rows of `attend` of sequences that have more than `few` new ones.
pub(super) fn prefill<A: Act>(
    cuda: &Cuda<A>,
    (shape, plan): (Shape, Plan),
    attend: AttendParams,
    few: u32,
) -> Result<(), CudaError> {
    // Each sequence that is not a whole number of blocks has one more. Those that are not this kernel's have none.
    let rows = attend.rows() * attend.ratio();
    let blocks = rows / plan.prefill.rows() + attend.sequences().min(attend.rows() / (few as usize + 1));
    let heads = attend.kv_heads();
    let variant = Variant { kernel: "prefill", shape: Some(shape), shared: plan.prefill.shared };
    let together = (AT_ONCE / attend.bytes_of_head().max(1)).clamp(1, heads.max(1));
    let params = PrefillParams { attend, few, together: together as u32 };
    let grid = [blocks * heads, 1, 1];
    // SAFETY: as the caller of `attend_raw` says; blocks beyond the last do nothing.
    unsafe { cuda.launch_blocks(&SOURCE, variant, (grid, 32 * plan.prefill.warps), params) }
}
