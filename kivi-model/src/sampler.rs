//! How the next token is chosen from logits.
//!
//! Filters have the order and the meaning of transformers' logits processors: repetition penalty,
//! temperature, top-k, top-p, min-p, each on the distribution that the one before left. All but the penalty, and the choice, are
//! the backend's ([`kivi_kernels::ops::Sample`]); here are the parameters and the random numbers.

use kivi_kernels::ops::Draw;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How to choose the next token. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the k likeliest tokens, and those as likely as the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this likely relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that were there before; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Seed of the generator: the same seed and logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A sampling parameter is out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: expected {expected}, found {found}")]
pub struct SamplingError {
    /// The parameter, as the flag is called.
    pub field: &'static str,
    /// What would be valid.
    pub expected: &'static str,
    /// What was given.
    pub found: f32,
}

impl SamplingParams {
    /// Whether logits depend on the tokens before them.
    pub fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    /// Checks that every parameter is within its range.
    ///
    /// # Errors
    /// Names the first one that is not.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let fraction = |x: f32| (0.0..=1.0).contains(&x);
        let temperature_ok = self.temperature >= 0.0 && self.temperature.is_finite();
        let penalty_ok = self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite();
        let checks = [
            (temperature_ok, "temperature", "a number from 0 (greedy) on", self.temperature),
            (fraction(self.top_p), "top-p", "a number from 0 to 1", self.top_p),
            (fraction(self.min_p), "min-p", "a number from 0 to 1", self.min_p),
            (penalty_ok, "repetition-penalty", "a number above 0", self.repetition_penalty),
        ];
        match checks.into_iter().find(|(ok, ..)| !ok) {
            Some((_, field, expected, found)) => Err(SamplingError { field, expected, found }),
            None => Ok(()),
        }
    }
}

/// The random numbers of one sequence, and its penalty; a sequence has its own, so that nothing else in the batch changes what it
/// draws.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its random sequence. The parameters should be [validated].
    ///
    /// [validated]: SamplingParams::validate
    pub fn new(params: &SamplingParams) -> Sampler {
        Sampler { rng: ChaCha8Rng::seed_from_u64(params.seed), params: params.clone() }
    }

    /// How the next token is drawn, for [`kivi_kernels::ops::Sample`]. Each call is one token: one random number if tokens are drawn at
    /// all, whatever is kept, so that the sequence of numbers never shifts.
    pub fn draw(&mut self) -> Draw {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        if temperature == 0.0 {
            return Draw::GREEDY;
        }
        let top_k = u32::try_from(top_k).unwrap_or(u32::MAX);
        Draw { temperature, top_k, top_p, min_log_p: min_p.ln(), bits: self.rng.next_u64() }
    }

    /// Applies the repetition penalty to each token of `history` (prompt and text so far) once.
    ///
    /// # Shapes
    /// `logits`: `[vocab_size]`
    pub fn penalise(&self, logits: &mut [f32], history: &[u32]) {
        let penalty = self.params.repetition_penalty;
        let mut ids = history.to_vec();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }
}

#[cfg(test)]
mod tests;
