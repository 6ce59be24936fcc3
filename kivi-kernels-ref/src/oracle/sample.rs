//! Drawing tokens. The weights are integers and the same everywhere, so that sums have no order and no rounding.

use kivi_kernels::ops::{Draw, SampleParts};

use super::select::{descending, likeliest};
use crate::view::row;
use crate::{Accum, Cpu};

/// `out[i]` is the first token whose cumulative weight is beyond the draw's place, the largest logit first.
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
    let d = |j: usize| distance(x[j], x[order[0]], draw);
    let mut sum = 0;
    let cumulative: Vec<u64> = order
        .iter()
        .map(|&j| {
            sum += weight(d(j));
            sum
        })
        .collect();
    let kept = match draw.top_k as usize {
        k if k == 0 || k > x.len() => x.len(),
        k => order.iter().filter(|&&j| x[j] >= x[order[k - 1]]).count(),
    };
    let all = cumulative[kept - 1];
    let by_p = top_p_goal(draw, all).and_then(|goal| cumulative.iter().copied().find(|&c| c >= goal));
    let by_min_p = cumulative[order.iter().filter(|&&j| d(j) >= draw.min_log_p).count().max(1) - 1];
    let kept = all.min(by_p.unwrap_or(all)).min(by_min_p);
    let place = share(draw.place, kept);
    order[cumulative.iter().filter(|&&c| c <= place).count()]
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
    fn shares_are_rounded_down() {
        assert_eq!((share(0, 7), share(u64::MAX, 7), share(1 << 63, 7)), (0, 6, 3));
        let draw = |top_p| Draw { top_p, ..Draw::GREEDY };
        assert_eq!(top_p_goal(&draw(0.75), 8), Some(6));
        assert_eq!(top_p_goal(&draw(0.0), 8), Some(0));
        assert_eq!(top_p_goal(&draw(1.0), 8), None);
    }
}
