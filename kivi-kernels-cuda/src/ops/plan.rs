//! Who does what in decode's kernel: a launch before it, or one for all layers of a step.

use kivi_kernels::ops::PlanAttendParts;

use super::attention::{AttendParams, few};
use super::decode::{self, DecodeParams};
use super::source;
use crate::device::Cuda;
use crate::raw::{RawCache, RawPlan, RawRows, RawStep};
use crate::{Act, CudaError};

source!("plan.cu": DecodeParams);

/// Words of a plan for a block: `BlockPlan` in share.cuh.
const PLAN_WORDS: usize = 24;

/// Words of a plan for a device of so many multiprocessors.
pub(crate) fn plan_words(multiprocessors: usize) -> usize {
    PLAN_WORDS * multiprocessors
}

pub(crate) fn plan_attend<A: Act>(
    cuda: &Cuda<A>,
    mut op: PlanAttendParts<'_, Cuda<A>>,
) -> Result<(), CudaError> {
    let PlanAttendParts { ref mut batch, group, cache, n_heads, window } = op;
    let (step, plan) = (RawStep::new(batch, group), batch.groups[group].plan.at_mut(0));
    let raw = RawPlan { plan, cache: RawCache::from(cache), step, n_heads, window };
    // SAFETY: `PlanAttend::new` checked group and heads, `Batch::plan` the counts; the buffer has `attend_plan_words`.
    unsafe { plan_attend_raw(cuda, &raw) }?;
    op.done();
    Ok(())
}

/// # Safety
/// As for [`Cuda::plan_attend_raw`].
pub(crate) unsafe fn plan_attend_raw<A: Act>(cuda: &Cuda<A>, op: &RawPlan) -> Result<(), CudaError> {
    let params = AttendParams::new(op, [RawRows::default(); 2]);
    let Some(shape) = decode::shape(cuda, &op.cache.layout, &[], false) else { return Ok(()) };
    let (_, shape) = decode::sized(cuda, shape, &params);
    launch_plan(cuda, DecodeParams::new(cuda, shape, params, (few(op.step.max_new), op.plan, 0)))?;
    cuda.settled.wrote_plan();
    Ok(())
}

/// Plans the launch of decode's kernel with these parameters.
pub(super) fn launch_plan<A: Act>(cuda: &Cuda<A>, params: DecodeParams) -> Result<(), CudaError> {
    let blocks = usize::from(params.attend.rows() > 0);
    // SAFETY: as the caller of `plan_attend_raw` or `attend_raw` says; a plan has words for each block of decode's.
    unsafe { cuda.launch(&SOURCE, "plan_decode", [blocks, 1, 1], params) }
}
