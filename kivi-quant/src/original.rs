//! The authors' arithmetic: every step rounded to f16. Kept to prove that kivi computes the same function; a
//! cache is made by [`crate::group`], which divides in f32 (`docs/numerics.md` says how many codes differ).

use half::f16;

use crate::group::round_ties_even;
use crate::{Bits, GroupParams};

/// Quantizes one group of f16 values into `codes`, one code an element, each step rounded to f16.
///
/// # Equation
/// `scale = f16(f16(max - min) / Q)`, `code = rint(clamp(f16(f16(x - min) / scale), 0, Q))`, `Q = 2^bits - 1`
/// (the KIVI code, `triton_quantize_and_pack_along_last_dim`). Scale 0 gives code 0.
///
/// # Panics
/// If `codes` is shorter than `values`.
pub fn quantize(values: &[f16], bits: Bits, codes: &mut [u32]) -> GroupParams {
    let (min, max) =
        values.iter().fold((f16::INFINITY, f16::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    let q = bits.max_code() as f32;
    let scale = rounded(rounded(max.to_f32() - min.to_f32()).to_f32() / q);
    for (code, x) in codes[..values.len()].iter_mut().zip(values) {
        let offset = rounded(x.to_f32() - min.to_f32());
        let steps = rounded(offset.to_f32() / scale.to_f32());
        *code = if scale == f16::ZERO { 0 } else { round_ties_even(steps.to_f32().clamp(0.0, q)) as u32 };
    }
    GroupParams { scale, zero: min }
}

/// One correctly rounded f16 operation: the f32 result of two f16 operands, rounded once more, is exact enough
/// (24 >= 2 * 11 + 2 bits, so double rounding does no harm).
fn rounded(x: f32) -> f16 {
    f16::from_f32(x)
}
