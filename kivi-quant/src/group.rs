//! One group: its scale and zero, its codes, and back. The scalar truth that every kernel is compared with.

use half::{bf16, f16};

use crate::Bits;

/// Element type of K and V rows.
pub trait KvElement: Copy {
    /// The value in f32 (exact).
    fn to_f32(self) -> f32;
}

impl KvElement for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

impl KvElement for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl KvElement for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

/// Scale and zero of a group, both stored as f16. `zero` is the group's minimum (a float), not an integer
/// offset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupParams {
    /// `(max - min) / (2^bits - 1)`, rounded to f16.
    pub scale: f16,
    /// `min`, rounded to f16.
    pub zero: f16,
}

/// Scale and zero of the group that `values` yields.
///
/// # Equation
/// `scale = f16((max - min) / (2^bits - 1))`, `zero = f16(min)` (KIVI, section 3.1), computed in f32 and
/// saturated to what f16 holds; a minimum of -0 is 0. A NaN is passed over; a group of NaN alone, or of nothing, gets scale and zero 0.
pub fn params<T: KvElement>(values: impl Iterator<Item = T>, bits: Bits) -> GroupParams {
    let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
    for x in values {
        let x = x.to_f32();
        min = min.min(x);
        max = max.max(x);
    }
    GroupParams::from_range(min, max, bits)
}

impl GroupParams {
    /// Scale and zero of a group whose smallest and largest element are `min` and `max`; both 0 if `min > max`.
    pub fn from_range(min: f32, max: f32, bits: Bits) -> Self {
        if min > max {
            return Self::default();
        }
        let limit = f16::MAX.to_f32();
        // The NaN of inf - inf counts as a range that f16 does not hold.
        let scale = ((max - min) / bits.max_code() as f32).min(limit);
        // Which of -0 and 0 is the smaller differs between machines: adding 0 makes both 0.
        Self { scale: f16::from_f32(scale), zero: f16::from_f32(min.clamp(-limit, limit) + 0.0) }
    }

    /// The code of `x`.
    ///
    /// # Equation
    /// `rint(clamp((x - zero) / scale, 0, 2^bits - 1))` in f32, ties to even; 0 where `scale` is 0 or `x` is NaN.
    pub fn quantize<T: KvElement>(self, x: T, bits: Bits) -> u32 {
        let scale = self.scale.to_f32();
        if scale == 0.0 {
            return 0;
        }
        let steps = (x.to_f32() - self.zero.to_f32()) / scale;
        round_ties_even(steps.clamp(0.0, bits.max_code() as f32)) as u32
    }

    /// The value that `code` stands for: `code * scale + zero`, in f32.
    pub fn dequantize(self, code: u32) -> f32 {
        code as f32 * self.scale.to_f32() + self.zero.to_f32()
    }
}

/// `x` to the nearest integer, ties to even, for `0 <= x < 2^22` (`f32::round_ties_even` needs `std`).
pub(crate) fn round_ties_even(x: f32) -> f32 {
    const SHIFT: f32 = 8_388_608.0; // 2^23: above it f32 has no fraction bits left
    (x + SHIFT) - SHIFT
}
