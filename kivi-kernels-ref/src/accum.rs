//! The types that the CPU computes in.

use core::iter::Sum;
use core::ops::{Add, Div, Mul, Neg, Sub};

use kivi_kernels::Element;
use kivi_kernels::ops::{AttendParts, LinearParts, SampleParts};

use crate::{Cpu, fast, oracle};

/// f32 or f64: activations and sums of [`Cpu`]. The ops here are the ones that f32 has faster ways for; by
/// default they are the oracle's.
pub trait Accum:
    Element
    + PartialOrd
    + Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// `e^x`.
    fn exp(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The sine, of radians.
    fn sin(self) -> Self;
    /// The cosine, of radians.
    fn cos(self) -> Self;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;

    /// [`kivi_kernels::ops::Linear`].
    fn linear(cpu: &Cpu<Self>, op: LinearParts<'_, Cpu<Self>>) {
        oracle::linear(cpu, op);
    }

    /// [`kivi_kernels::ops::Attend`].
    fn attend(cpu: &Cpu<Self>, op: AttendParts<'_, Cpu<Self>>) {
        oracle::attend(cpu, op);
    }

    /// [`kivi_kernels::ops::Sample`].
    fn sample(cpu: &Cpu<Self>, op: SampleParts<'_, Cpu<Self>>) {
        oracle::sample(cpu, op);
    }
}

macro_rules! functions {
    ($type:ty) => {
        fn exp(self) -> Self {
            <$type>::exp(self)
        }

        fn sqrt(self) -> Self {
            <$type>::sqrt(self)
        }

        fn sin(self) -> Self {
            <$type>::sin(self)
        }

        fn cos(self) -> Self {
            <$type>::cos(self)
        }

        fn tanh(self) -> Self {
            <$type>::tanh(self)
        }
    };
}

impl Accum for f64 {
    functions!(f64);
}

impl Accum for f32 {
    functions!(f32);

    fn linear(cpu: &Cpu<Self>, op: LinearParts<'_, Cpu<Self>>) {
        if cpu.is_yardstick() { oracle::linear(cpu, op) } else { fast::linear(cpu, op) }
    }

    fn attend(cpu: &Cpu<Self>, op: AttendParts<'_, Cpu<Self>>) {
        if cpu.is_yardstick() { oracle::attend(cpu, op) } else { fast::attend(cpu, op) }
    }

    fn sample(cpu: &Cpu<Self>, op: SampleParts<'_, Cpu<Self>>) {
        if cpu.is_yardstick() { oracle::sample(cpu, op) } else { fast::sample(cpu, op) }
    }
}
