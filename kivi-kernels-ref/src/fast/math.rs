//! Scalar functions that compilers vectorise.

use pulp::Simd;

/// Lanes that a loop handles at a time: one AVX-512 register, two of AVX2.
pub(super) const LANES: usize = 16;

/// `e^x` for `x <= 88`, within 2 units in the last place; 0 below -87, NaN of NaN.
///
/// # Equation
/// `e^x = 2^n e^r`, `n = rint(x / ln 2)`, `|r| <= ln 2 / 2`, `e^r` by its Taylor polynomial of degree 7 (its
/// remainder is 5e-9).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4; // 11 bits, so that n * LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x }; // unlike `max`, lets NaN through
    let shifted = clamped * core::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let taylor = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mut p = taylor[0];
    for c in &taylor[1..] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * power }
}

/// The sum of `a[i] b[i]`.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = S::as_simd_f32s(a);
    let (b, b_rest) = S::as_simd_f32s(b);
    // Four independent sums hide the latency of an addition.
    let (a_blocks, a_tail) = a.as_chunks::<4>();
    let (b_blocks, b_tail) = b.as_chunks::<4>();
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for s in 0..4 {
            sums[s] = simd.mul_add_e_f32s(a[s], b[s], sums[s]);
        }
    }
    for (a, b) in a_tail.iter().zip(b_tail) {
        sums[0] = simd.mul_add_e_f32s(*a, *b, sums[0]);
    }
    let [first, second, third, fourth] = sums;
    let sum = simd.add_f32s(simd.add_f32s(first, second), simd.add_f32s(third, fourth));
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(sum) + rest
}

/// The sum of all lanes, pairwise.
#[inline(always)]
pub(super) fn sum(x: &[f32; LANES]) -> f32 {
    let mut x = *x;
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            x[l] += x[l + half];
        }
        half /= 2;
    }
    x[0]
}

/// `out[i] += a x[i]`.
#[inline(always)]
pub(super) fn axpy(out: &mut [f32], a: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = x.mul_add(a, *out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -880_000..=880_000 {
            let x = i as f32 * 1e-4;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            let tolerance = if x < -86.9 { 1e-37 } else { 2.4e-7 * expected };
            assert!((found - expected).abs() <= tolerance, "exp({x}): expected {expected}, found {found}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl pulp::WithSimd for Dot<'_> {
        type Output = f32;

        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            dot(simd, self.0, self.1)
        }
    }

    #[test]
    fn dot_takes_every_element() {
        for n in 0..200 {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected: f32 = a.iter().map(|x| x * 2.0).sum();
            let found = pulp::Arch::new().dispatch(Dot(&a, &vec![2.0; n]));
            assert_eq!(found, expected);
        }
    }
}
