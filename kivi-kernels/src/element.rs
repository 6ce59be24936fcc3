//! Element types of device buffers.

use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
}

/// Type of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary64 (the oracle's activations).
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// 32-bit words: tokens, counts, packed pages.
    U32,
}

impl DType {
    /// The name used in messages and in compiled kernels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::U32 => "u32",
        }
    }
}

/// An element of a device buffer. Sealed: backends are written for exactly these types.
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync + core::fmt::Debug + PartialEq {
    /// The type as a value.
    const DTYPE: DType;

    /// `x` rounded to this type, to nearest, ties to even (`u32`: truncated).
    fn from_f64(x: f64) -> Self;

    /// The value in f64 (exact).
    fn to_f64(self) -> f64;
}

macro_rules! element {
    ($type:ty, $dtype:ident, $from:expr, $to:expr) => {
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;

            fn from_f64(x: f64) -> Self {
                $from(x)
            }

            fn to_f64(self) -> f64 {
                $to(self)
            }
        }
    };
}

element!(f64, F64, |x| x, |x| x);
element!(f32, F32, |x| x as f32, f64::from);
element!(f16, F16, f16::from_f64, f16::to_f64);
element!(bf16, Bf16, bf16::from_f64, bf16::to_f64);
element!(u32, U32, |x| x as u32, f64::from);
