//! Drawing tokens without sorting the vocabulary: the oracle's weights, searched by halves, and its race, with few logarithms.

use core::cmp::Ordering;

use kivi_kernels::ops::{Draw, SampleParts};
use rayon::prelude::*;

use crate::Cpu;
use crate::oracle::sample::{distance, draw, numerator, passes_min_p, score, top_p_goal, weight};
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
    let k = draw.top_k as usize;
    if (1..=all.len()).contains(&k) {
        let last = all.select_nth_unstable_by(k - 1, Candidate::order).1.logit;
        all.retain(|c| c.logit >= last);
    }
    if let Some(goal) = top_p_goal(draw, weight_of(&all)) {
        let last = find(&mut all, goal.saturating_sub(1));
        all.retain(|c| c.order(&last).is_le());
    }
    all.retain(|c| passes_min_p(distance(c.logit, largest, draw), draw));
    first(&all, draw)
}

/// The winner of the race.
fn first(candidates: &[Candidate], draw: &Draw) -> u32 {
    let (mut best, mut id) = (0.0, u32::MAX);
    for c in candidates {
        let v = numerator(draw, c.id);
        // The logarithm's size is at least v, so that this candidate cannot win; the margin is for rounding.
        if (c.weight as f32) < best * (v as f32 * (0.999 * 2.0_f32.powi(-33))) {
            continue;
        }
        let score = score(c.weight, v);
        if score > best || score == best && c.id < id {
            (best, id) = (score, c.id);
        }
    }
    id
}

fn weight_of(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|c| c.weight).sum()
}

/// The first token in order whose cumulative weight is more than `goal`.
fn find(mut candidates: &mut [Candidate], goal: u64) -> Candidate {
    let mut before = 0;
    while candidates.len() > 1 {
        let half = candidates.len() / 2;
        candidates.select_nth_unstable_by(half, Candidate::order);
        let (likelier, others) = candidates.split_at_mut(half);
        let end = before + weight_of(likelier);
        (candidates, before) = if goal < end { (likelier, before) } else { (others, end) };
    }
    candidates[0]
}
