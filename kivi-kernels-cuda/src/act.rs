//! Types of activations.

use half::{bf16, f16};
use kivi_kernels::Element;

mod sealed {
    pub trait Sealed {}
}

/// A type that activations may have on CUDA: f16 or bf16, which tensor cores take. Sealed.
pub trait Act: sealed::Sealed + Element {
    /// Tells the kernels, when they are compiled, what this type is.
    const DEFINE: &'static str;
}

impl sealed::Sealed for f16 {}
impl sealed::Sealed for bf16 {}

impl Act for f16 {
    const DEFINE: &'static str = "-DKIVI_ACT_BF16=0";
}

impl Act for bf16 {
    const DEFINE: &'static str = "-DKIVI_ACT_BF16=1";
}
