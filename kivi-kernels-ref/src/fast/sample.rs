//! Drawing tokens without sorting the vocabulary: the oracle's weights, searched by halves.

use core::cmp::Ordering;

use kivi_kernels::ops::{Draw, SampleParts};
use rayon::prelude::*;

use crate::Cpu;
use crate::oracle::sample::{distance, draw, share, top_p_goal, weight};
use crate::view::row;

/// A token with a weight.
#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
    weight: u64,
}

impl Candidate {
    /// The likelier first, the lower id first among equals.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal).then(self.id.cmp(&other.id))
    }
}

/// [`kivi_kernels::ops::Sample`], a task a row.
pub(crate) fn sample(_: &Cpu<f32>, op: SampleParts<'_, Cpu<f32>>) {
    let SampleParts { out, logits, draws } = op;
    out.0[..logits.rows()].par_iter_mut().enumerate().for_each(|(i, out)| {
        *out = token(row(&logits, i), &draw(&draws.0, i)).unwrap_or(u32::MAX);
    });
}

/// The token of a row, if that is finite.
fn token(x: &[f32], draw: &Draw) -> Option<u32> {
    let (mut best, mut finite) = (0, true);
    for (j, x_j) in x.iter().enumerate() {
        finite &= x_j.is_finite();
        best = if *x_j > x[best] { j } else { best };
    }
    let greedy = finite.then_some(best as u32);
    greedy.map(|best| if draw.temperature > 0.0 { drawn(x, x[best as usize], draw) } else { best })
}

/// The token that is drawn from finite logits. What weighs nothing is never drawn.
fn drawn(x: &[f32], largest: f32, draw: &Draw) -> u32 {
    let candidate = |(id, &logit)| Candidate { id, logit, weight: weight(distance(logit, largest, draw)) };
    let mut all: Vec<_> = (0..).zip(x).map(candidate).filter(|c| c.weight > 0).collect();
    let of_top_k = match draw.top_k as usize {
        k if k == 0 || k > all.len() => weight_of(&all, |_| true),
        k => {
            let last = all.select_nth_unstable_by(k - 1, Candidate::order).1.logit;
            weight_of(&all, |c| c.logit >= last)
        }
    };
    let goal = top_p_goal(draw, of_top_k);
    let of_top_p = goal.map_or(of_top_k, |goal| find(&mut all, goal.saturating_sub(1)).1);
    let of_min_p = weight_of(&all, |c| distance(c.logit, largest, draw) >= draw.min_log_p);
    let kept = of_top_k.min(of_top_p).min(of_min_p);
    find(&mut all, share(draw.place, kept)).0
}

fn weight_of(candidates: &[Candidate], keep: impl Fn(&Candidate) -> bool) -> u64 {
    candidates.iter().filter(|c| keep(c)).map(|c| c.weight).sum()
}

/// The first token in order whose cumulative weight is more than `place`, and that weight.
fn find(mut candidates: &mut [Candidate], place: u64) -> (u32, u64) {
    let mut before = 0;
    while candidates.len() > 1 {
        let half = candidates.len() / 2;
        candidates.select_nth_unstable_by(half, Candidate::order);
        let (likelier, others) = candidates.split_at_mut(half);
        let end = before + weight_of(likelier, |_| true);
        (candidates, before) = if place < end { (likelier, before) } else { (others, end) };
    }
    (candidates[0].id, before + candidates[0].weight)
}
