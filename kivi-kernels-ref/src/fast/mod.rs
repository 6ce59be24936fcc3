//! The ops that decide the speed of `Cpu<f32>`.

use kivi_kernels::ops::{AppendParts, AttendParts, LinearParts};

use crate::{Cpu, oracle};

/// [`kivi_kernels::ops::Linear`].
pub(crate) fn linear(cpu: &Cpu<f32>, op: LinearParts<'_, Cpu<f32>>) {
    oracle::linear(cpu, op);
}

/// [`kivi_kernels::ops::Attend`].
pub(crate) fn attend(cpu: &Cpu<f32>, op: AttendParts<'_, Cpu<f32>>) {
    oracle::attend(cpu, op);
}

/// [`kivi_kernels::ops::Append`].
pub(crate) fn append(cpu: &Cpu<f32>, op: AppendParts<'_, Cpu<f32>>) {
    oracle::append(cpu, op);
}
