//! How far apart the predictions of two models are, and how far they may be.

use kivi_kernels::DType;

/// Fewer predictions than this are a short run.
const FEW: usize = 1024;

/// How far a model may be from the CPU's: the share of predictions with another likeliest token, and the mean divergence.
/// Rounding activations to 16 bits takes any implementation so far (docs/numerics.md, "Whole models on CUDA").
#[derive(Clone, Copy)]
pub struct Limits {
    other_top: f64,
    kld: f64,
}

impl Limits {
    pub fn of(act: DType, bits: u32) -> Self {
        let (other_top, kld) = match (act, bits) {
            (DType::Bf16, 2) => (0.04, 5e-3),
            (DType::Bf16, _) => (0.025, 1e-3),
            (_, 2) => (0.02, 2e-3),
            _ => (0.005, 1e-4),
        };
        Self { other_top, kld }
    }
}

/// How far apart two models are.
#[derive(Default)]
pub struct Difference {
    positions: usize,
    other_top: usize,
    kld: f64,
    max_kld: f64,
}

impl Difference {
    pub fn add(&mut self, expected: &[f32], found: &[f32]) {
        let (p, q) = (log_softmax(expected), log_softmax(found));
        let kld: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        self.positions += 1;
        self.other_top += usize::from(top(expected) != top(found));
        self.kld += kld;
        self.max_kld = self.max_kld.max(kld);
    }

    /// One other token is no failure, and few predictions may be three times as far.
    pub fn is_within(&self, limits: Limits) -> bool {
        let (n, slack) = (self.positions as f64, if self.positions < FEW { 3.0 } else { 1.0 });
        let others = (n * slack * limits.other_top).max(1.0);
        self.positions > 0 && self.other_top as f64 <= others && self.kld / n <= slack * limits.kld
    }

    pub fn line(&self, pass: bool) -> String {
        let (n, verdict) = (self.positions as f64, if pass { "pass" } else { "FAIL" });
        let same = 100.0 * (1.0 - self.other_top as f64 / n);
        format!(
            "{:>9} {same:>7.2} % {:>10.1e} {:>10.1e}  {verdict}",
            self.positions,
            self.kld / n,
            self.max_kld
        )
    }
}

pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    logits.iter().map(|x| f64::from(*x) - largest - total.ln()).collect()
}

fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_models_have_no_difference_and_others_have() {
        let mut difference = Difference::default();
        difference.add(&[1.0, 2.0, 0.5], &[1.0, 2.0, 0.5]);
        let limits = |kld| Limits { other_top: 0.005, kld };
        assert!(difference.is_within(limits(1e-12)));
        difference.add(&[1.0, 2.0, 0.5], &[2.0, 1.0, 0.5]);
        assert!(difference.other_top == 1 && !difference.is_within(limits(1e-3)));
    }
}
