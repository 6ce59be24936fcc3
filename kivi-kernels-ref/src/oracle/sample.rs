//! Drawing tokens. The weights are integers and the same everywhere, so that sums have no order and no rounding; so are the numbers of
//! the race, each operation being rounded by itself.

use kivi_kernels::ops::{Draw, SampleParts};

use super::select::{descending, likeliest};
use crate::view::row;
use crate::{Accum, Cpu};

/// `out[i]` is the token that wins the race among those that the filters keep.
pub(crate) fn sample<A: Accum>(_: &Cpu<A>, op: SampleParts<'_, Cpu<A>>) {
    for i in 0..op.logits.rows() {
        let x = row(&op.logits, i);
        let draw = draw(&op.draws.0, i);
        let token = likeliest(x).map(|best| if draw.temperature > 0.0 { drawn(x, &draw) } else { best });
        op.out.0[i] = token.map_or(u32::MAX, |token| token as u32);
    }
}

/// How row `i` is drawn.
pub(crate) fn draw(words: &[u32], i: usize) -> Draw {
    let mut of_row = [0; Draw::WORDS];
    of_row.copy_from_slice(&words[i * Draw::WORDS..][..Draw::WORDS]);
    Draw::from_words(of_row)
}

/// The token that is drawn from finite logits.
fn drawn<A: Accum>(x: &[A], draw: &Draw) -> usize {
    let x: Vec<f32> = x.iter().map(|x| x.to_f64() as f32).collect();
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| descending(&x, a, b));
    let best = order[0];
    let d = |j: usize| distance(x[j], x[best], draw);
    if let Some(&last) = (draw.top_k as usize).checked_sub(1).and_then(|k| order.get(k)) {
        order.retain(|&j| x[j] >= x[last]);
    }
    let all = order.iter().map(|&j| weight(d(j))).sum();
    if let Some(goal) = top_p_goal(draw, all) {
        let mut sum = 0;
        let last = order.iter().position(|&j| {
            sum += weight(d(j));
            sum >= goal
        });
        order.truncate(last.map_or(order.len(), |last| last + 1));
    }
    order.retain(|&j| passes_min_p(d(j), draw));
    let score = |j: usize| score(weight(d(j)), numerator(draw, j as u32));
    order.into_iter().min_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b))).unwrap_or(best)
}

/// How far a logit is below the largest, as the temperature has it: `d` of [`kivi_kernels::ops::Sample`].
pub(crate) fn distance(x: f32, largest: f32, draw: &Draw) -> f32 {
    (x - largest) / draw.temperature
}

/// The weight that top-p is to reach, of `all`; none if it keeps everything.
pub(crate) fn top_p_goal(draw: &Draw, all: u64) -> Option<u64> {
    (draw.top_p < 1.0).then(|| share((draw.top_p * 2.0_f32.powi(64)) as u64, all))
}

/// `part * all / 2^64`, rounded down.
pub(crate) fn share(part: u64, all: u64) -> u64 {
    ((u128::from(part) * u128::from(all)) >> 64) as u64
}

/// Whether min-p keeps a token; it keeps the likeliest, whose `d` is 0.
pub(crate) fn passes_min_p(d: f32, draw: &Draw) -> bool {
    d >= draw.min_log_p.min(0.0)
}

/// `2^33 v`, where `v` in (0, 1) is the random number of a token: SplitMix64 at the token's place, starting from the draw's bits.
pub(crate) fn numerator(draw: &Draw, id: u32) -> u64 {
    let mut z = draw.bits.wrapping_add((u64::from(id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ z >> 31) >> 32 << 1 | 1
}

/// What the largest of wins: a token's weight by its time `-ln(1 - v)`, with `v` from [`numerator`].
pub(crate) fn score(weight: u64, numerator: u64) -> f32 {
    weight as f32 / exponential(numerator)
}

/// `-ln(1 - v)`, as docs/numerics.md defines it: with `1 - v = 2^-k (1 + g)`, `1 + g` in [0.75, 1.5).
fn exponential(numerator: u64) -> f32 {
    let rest = (1 << 33) - numerator;
    let normal = rest.leading_zeros() - 31; // from here on in [0.5, 1)
    let k = normal + u32::from(rest << normal < 3 << 31);
    let g = ((rest << k) as i64 - (1 << 33)) as f32 * 2.0_f32.powi(-33);
    let s = g / (2.0 + g);
    let q = s * s;
    let series = [1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0].into_iter().fold(0.0, |sum, c| sum * q + c);
    k as f32 * core::f32::consts::LN_2 - 2.0 * s * series
}

/// `2^40 e^d` for `d <= 0`, as docs/numerics.md defines it: every backend has these bits.
pub(crate) fn weight(d: f32) -> u64 {
    let y = d * core::f32::consts::LOG2_E;
    if y >= -41.0 {
        let whole = y.round_ties_even();
        let rest = y - whole;
        let power = POWERS.iter().rev().fold(0.0, |sum, factor| sum * rest + factor);
        (u64::from((power * 2.0_f32.powi(31)) as u32) << 9) >> -whole as u32
    } else {
        0 // Of a NaN, too.
    }
}

/// `(ln 2)^k / k!`: the series of `2^x`.
const POWERS: [f32; 8] = [
    1.0,
    core::f32::consts::LN_2,
    0.240_226_5,
    0.055_504_11,
    0.009_618_129,
    0.001_333_355_8,
    0.000_154_035_3,
    1.525_273_4e-5,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_the_exponential() {
        assert_eq!(weight(0.0), 1 << 40);
        assert_eq!((weight(f32::NEG_INFINITY), weight(f32::NAN), weight(-29.0)), (0, 0, 0));
        for i in 0..280_000 {
            let d = -1e-4 * i as f32;
            let exact = (f64::from(d) + 40.0 * core::f64::consts::LN_2).exp();
            let near = (weight(d) as f64 - exact).abs() <= 2.5e-6 * exact + 1.0;
            assert!(near, "{d}: {} instead of {exact}", weight(d));
        }
    }

    #[test]
    fn times_are_those_of_the_logarithm() {
        let whole = 1_u64 << 33;
        let ends = (1..20_000).step_by(2).flat_map(|v| [v, whole - v, (whole >> 2) + v, (whole >> 2) - v]);
        for v in ends.chain((0..200_000).map(|i| (i * 42_949 + 7) | 1)) {
            let exact = -(-(v as f64) / whole as f64).ln_1p();
            let error = (f64::from(exponential(v)) - exact).abs() / exact;
            assert!(error <= 5e-7, "{v}: {} instead of {exact}", exponential(v));
        }
    }

    #[test]
    fn numbers_are_those_of_splitmix64() {
        // The generator's first outputs from the seed 1234567, as published with it.
        let draw = Draw { bits: 1_234_567, ..Draw::GREEDY };
        for (id, z) in [(0, 6_457_827_717_110_365_317_u64), (1, 3_203_168_211_198_807_973)] {
            assert_eq!(numerator(&draw, id), z >> 32 << 1 | 1);
        }
    }

    #[test]
    fn shares_are_rounded_down() {
        assert_eq!((share(0, 7), share(u64::MAX, 7), share(1 << 63, 7)), (0, 6, 3));
        let draw = |top_p| Draw { top_p, ..Draw::GREEDY };
        assert_eq!(top_p_goal(&draw(0.75), 8), Some(6));
        assert_eq!(top_p_goal(&draw(0.0), 8), Some(0));
        assert_eq!(top_p_goal(&draw(1.0), 8), None);
    }
}
