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
    unused: u32,
}

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
    let params = PrefillParams { attend, few, unused: 0 };
    // SAFETY: as the caller of `attend_raw` says; blocks beyond the last do nothing.
    unsafe { cuda.launch_variant(&SOURCE, variant, [blocks, heads, 1], params) }
}
