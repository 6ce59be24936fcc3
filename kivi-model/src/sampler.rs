//! The next token from logits.
//!
//! Filters have the order and the meaning of transformers' logits processors: repetition penalty,
//! temperature, top-k, top-p, min-p, each on the distribution that the one before left.
//!
//! # Equation
//! Of the tokens that are kept, with weights `w_i` in proportion to their probabilities, the one of the largest `w_i / e_i` is
//! taken, where each `e_i` is drawn from the exponential distribution: that is token `i` with probability `w_i / sum w`
//! (an exponential race, the Gumbel-max trick in other words). Rounding of the logits changes the token only where two
//! nearly tie. Along a cumulative distribution it would wherever it moves one of as many boundaries as there are tokens.

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
    /// Whether the next token is the one of the largest logit, whatever came before.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
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

/// Chooses the tokens of one sequence; a sequence has its own, so that nothing else in the batch
/// changes what it draws.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// Logits after the penalty; kept to save an allocation a token.
    scores: Vec<f32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// A logit first, then an unnormalised probability.
    weight: f32,
}

impl Sampler {
    /// A sampler at the start of its random sequence. The parameters should be [validated].
    ///
    /// [validated]: SamplingParams::validate
    pub fn new(params: &SamplingParams) -> Sampler {
        Sampler {
            rng: ChaCha8Rng::seed_from_u64(params.seed),
            params: params.clone(),
            scores: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Chooses a token.
    ///
    /// `history` are the tokens that the repetition penalty counts: prompt and text so far. NaN counts
    /// as minus infinity; if nothing is left the token is 0.
    ///
    /// # Shapes
    /// `logits`: `[vocab_size]`
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> u32 {
        if self.params.repetition_penalty == 1.0 && self.params.temperature == 0.0 {
            return argmax(logits);
        }
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        penalise(&mut self.scores, logits, history, self.params.repetition_penalty);
        if self.params.temperature == 0.0 {
            return argmax(&self.scores);
        }
        // One draw for each token, whatever is kept, so that the sequence of draws never shifts.
        let draw = self.rng.next_u64();
        self.collect_candidates();
        if self.candidates.is_empty() {
            return argmax(&self.scores); // No finite logit, or one is plus infinity.
        }
        keep_top_p(&mut self.candidates, self.params.top_p);
        keep_min_p(&mut self.candidates, self.params.min_p);
        pick(&self.candidates, draw)
    }

    /// Tokens that top-k keeps, with probabilities relative to the likeliest.
    fn collect_candidates(&mut self) {
        self.candidates.clear();
        let temperature = self.params.temperature;
        let scaled = self.scores.iter().map(|score| score / temperature);
        let all = (0u32..).zip(scaled).map(|(id, weight)| Candidate { id, weight });
        self.candidates.extend(all.filter(|c| c.weight > f32::NEG_INFINITY));
        keep_top_k(&mut self.candidates, self.params.top_k);
        let max = self.candidates.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.weight));
        if max == f32::INFINITY {
            self.candidates.clear();
        }
        self.candidates.iter_mut().for_each(|c| c.weight = (c.weight - max).exp());
    }
}

/// The index of the largest value, the first of equals, as `torch.argmax` on a CPU; 0 if there is none.
pub fn argmax(values: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &value) in (0u32..).zip(values) {
        if value > best.1 {
            best = (id, value);
        }
    }
    best.0
}

/// Penalises each token of the history once. `scores` equals `logits` before.
fn penalise(scores: &mut [f32], logits: &[f32], history: &[u32], penalty: f32) {
    for &id in history {
        // From the logits and not from the score: a token that occurs twice is penalised once.
        if let Some(&logit) = logits.get(id as usize) {
            scores[id as usize] = if logit < 0.0 { logit * penalty } else { logit / penalty };
        }
    }
}

/// Keeps the `k` largest and those equal to the last of them, in O(n).
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    let mut weights: Vec<f32> = candidates.iter().map(|c| c.weight).collect();
    let (_, threshold, _) = weights.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    candidates.retain(|c| c.weight >= threshold);
}

/// Keeps the likeliest tokens until their probabilities reach `p`, at least one.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let total: f64 = sum(candidates);
    let budget = (1.0 - f64::from(p)) * total;
    // All tokens below this together weigh less than the budget, so they go without being sorted.
    let negligible = budget / candidates.len() as f64;
    let max = candidates.iter().fold(0f32, |max, c| max.max(c.weight));
    let mut dropped = 0.0;
    candidates.retain(|c| {
        let keep = f64::from(c.weight) >= negligible || c.weight == max;
        dropped += if keep { 0.0 } else { f64::from(c.weight) };
        keep
    });
    candidates.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id)));
    while let [_, .., last] = candidates[..] {
        dropped += f64::from(last.weight);
        if dropped > budget {
            break;
        }
        candidates.pop();
    }
}

/// Keeps tokens with at least `min_p` of the probability of the likeliest.
fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f32) {
    let max = candidates.iter().fold(0f32, |max, c| max.max(c.weight));
    candidates.retain(|c| c.weight >= min_p * max);
}

/// The token that wins the race of `draw`.
fn pick(candidates: &[Candidate], draw: u64) -> u32 {
    let mut best = (0.0, candidates.first().map_or(0, |c| c.id));
    for c in candidates {
        let (weight, v) = (f64::from(c.weight), uniform(draw, c.id));
        // -ln(1 - v) is at least v: most tokens lose without a logarithm.
        if weight > best.0 * v && weight > best.0 * -(-v).ln_1p() {
            best = (weight / -(-v).ln_1p(), c.id);
        }
    }
    best.1
}

/// Number `id` of the SplitMix64 sequence that starts at `draw`, uniform in (0, 1).
fn uniform(draw: u64, id: u32) -> f64 {
    let mut z = draw.wrapping_add((u64::from(id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((z >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

#[cfg(test)]
mod tests;
