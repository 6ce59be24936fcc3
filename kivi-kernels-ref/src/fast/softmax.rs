//! Online softmax: sums of weighted values whose largest logit is not known yet.

use super::math::{LANES, exp, sum};

/// For each of `n` queries: the largest logit so far, the sum of `e^(logit - largest)`, and the sum of values
/// weighted so.
pub(super) struct State {
    pub largest: Vec<f32>,
    pub total: Vec<f32>,
    /// `[n, head_dim]`.
    pub mixed: Vec<f32>,
}

impl State {
    pub fn new(n: usize, head_dim: usize) -> Self {
        Self { largest: vec![f32::NEG_INFINITY; n], total: vec![0.0; n], mixed: vec![0.0; n * head_dim] }
    }

    /// Takes the logits of query `i` in, in place of which it leaves their weights.
    #[inline(always)]
    pub fn weigh(&mut self, i: usize, logits: &mut [f32]) {
        let largest = largest(logits).max(self.largest[i]);
        if largest == f32::NEG_INFINITY && !logits.iter().any(|x| x.is_nan()) {
            return logits.fill(0.0); // nothing is visible yet
        }
        self.rescale(i, largest);
        for x in logits.iter_mut() {
            *x = exp(*x - largest);
        }
        let (blocks, rest) = logits.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for block in blocks {
            for l in 0..LANES {
                sums[l] += block[l];
            }
        }
        self.total[i] += sum(&sums) + rest.iter().sum::<f32>();
    }

    /// Makes `largest` the reference of query `i`.
    #[inline(always)]
    fn rescale(&mut self, i: usize, largest: f32) {
        let factor = exp(self.largest[i] - largest);
        if factor != 1.0 {
            let head_dim = self.mixed.len() / self.total.len();
            self.total[i] *= factor;
            self.mixed[i * head_dim..][..head_dim].iter_mut().for_each(|x| *x *= factor);
        }
        self.largest[i] = largest;
    }

    /// Adds the state over other tokens.
    pub fn merge(&mut self, mut other: Self) {
        let head_dim = self.mixed.len() / self.total.len();
        for i in 0..self.total.len() {
            if other.total[i] == 0.0 {
                continue; // it saw nothing
            }
            let largest = self.largest[i].max(other.largest[i]);
            self.rescale(i, largest);
            other.rescale(i, largest);
            self.total[i] += other.total[i];
            let mixed = &other.mixed[i * head_dim..][..head_dim];
            self.mixed[i * head_dim..][..head_dim].iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
        }
    }

    /// The weighted means, `[n, head_dim]`.
    pub fn finish(mut self) -> Vec<f32> {
        let head_dim = self.mixed.len() / self.total.len();
        for (mixed, total) in self.mixed.chunks_exact_mut(head_dim).zip(&self.total) {
            mixed.iter_mut().for_each(|x| *x /= total);
        }
        self.mixed
    }
}

/// The largest of `x`; NaN is passed over.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for l in 0..LANES {
            largest[l] = if block[l] > largest[l] { block[l] } else { largest[l] };
        }
    }
    largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of one channel, whose values are 1, over `tiles` of logits, each in a state of its own if `split`.
    fn mean(tiles: &[&[f32]], split: bool) -> f32 {
        let mut all = State::new(1, 1);
        for tile in tiles {
            let mut state =
                if split { State::new(1, 1) } else { std::mem::replace(&mut all, State::new(1, 1)) };
            let mut weights = tile.to_vec();
            state.weigh(0, &mut weights);
            state.mixed[0] += weights.iter().sum::<f32>();
            all.merge(state);
        }
        all.finish()[0]
    }

    /// A damaged logit damages the result wherever it stands; what nobody sees does not.
    #[test]
    fn nan_is_not_lost() {
        const HIDDEN: f32 = f32::NEG_INFINITY;
        for split in [false, true] {
            assert!(
                (mean(&[&[HIDDEN; 3], &[1.0, -90.0, 2.0], &[HIDDEN; 2], &[200.0]], split) - 1.0).abs() < 1e-6
            );
            let damaged: [[&[f32]; 2]; 6] = [
                [&[1.0, f32::NAN], &[2.0]],
                [&[f32::NAN, HIDDEN], &[2.0]],
                [&[2.0], &[f32::NAN; 20]],
                [&[2.0], &[HIDDEN, f32::NAN]],
                [&[f32::INFINITY], &[1.0]],
                [&[HIDDEN], &[HIDDEN]],
            ];
            for tiles in damaged {
                assert!(mean(&tiles, split).is_nan(), "{tiles:?}, split: {split}");
            }
        }
    }
}
