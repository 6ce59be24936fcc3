//! Measuring one row on an engine as users have it: submit, then step until it is idle.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use kivi_kernels::Backend;
use kivi_model::engine::{Engine, Event, Request, SeqId};
use serde::{Deserialize, Serialize};

use super::case::Case;

/// Tokens to generate before it counts.
const WARM_UP: usize = 16;
/// Tokens of the text that fills a cache: some pages of it are packed at any usual setting.
const PATTERN: usize = 1024;

/// One repetition of a row; times are in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// From the first step to the end of the queue.
    pub seconds: f64,
    /// From there until each sequence has its first token.
    pub first_token_seconds: f64,
    /// Steps of all sequences, one new token each: how many, the median, and the time that 90 % keep; none in a row of prompts.
    pub steps: Option<Steps>,
}

/// The steps of generation of a repetition, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// How many.
    pub count: usize,
    /// The median.
    pub median_ms: f64,
    /// The time that 90 % of them keep.
    pub p90_ms: f64,
}

/// The row's sequences, on an engine made for them.
pub struct Bench<'a, 'b, B: Backend> {
    backend: &'a B,
    engine: &'b mut Engine<'a, B>,
    case: &'b Case,
    vocab_size: usize,
}

impl<'a, 'b, B: Backend> Bench<'a, 'b, B> {
    /// Fills the cache, if the row begins with one that has something.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn new(
        backend: &'a B,
        engine: &'b mut Engine<'a, B>,
        case: &'b Case,
        vocab_size: usize,
    ) -> Result<Self> {
        let bench = Self { backend, engine, case, vocab_size };
        if case.depth > 0 { bench.fill() } else { Ok(bench) }
    }

    fn fill(self) -> Result<Self> {
        let prompt = self.tokens(0, self.case.depth.min(PATTERN));
        let id = self.engine.submit(Request { keep: true, ..Request::new(prompt, 1) })?;
        while !self.engine.is_idle() {
            check(&self.engine.step()?)?;
        }
        if !self.engine.fill(id)? {
            bail!("the cache could not be filled");
        }
        Ok(self)
    }

    /// Runs the row for a few tokens, with prompts of one step at most; twice, so that pages are used again, too.
    ///
    /// # Errors
    /// As [`Bench::run`].
    pub fn warm_up(&mut self, budget: usize) -> Result<()> {
        let prompt = (self.case.prompt_len() - self.case.depth).min(budget);
        for _ in 0..2 {
            self.run_for(prompt, self.case.n_gen.min(WARM_UP))?;
        }
        Ok(())
    }

    /// Runs the row once.
    ///
    /// # Errors
    /// A failure of the device, or of a sequence.
    pub fn run(&mut self) -> Result<Sample> {
        self.run_for(self.case.prompt_len() - self.case.depth, self.case.n_gen)
    }

    fn run_for(&mut self, n_prompt: usize, n_gen: usize) -> Result<Sample> {
        for i in 0..self.case.batch_size {
            let request = self.request(i, n_prompt, n_gen)?;
            self.engine.submit(request)?;
        }
        let mut watch = Watch::new(self.case);
        self.backend.synchronize()?;
        let start = Instant::now();
        while !self.engine.is_idle() {
            let events = self.engine.step()?;
            watch.step(start.elapsed(), &events)?;
        }
        self.backend.synchronize()?;
        Ok(watch.sample(start.elapsed()))
    }

    /// What sequence `i` continues, and with what.
    fn request(&mut self, i: usize, n_prompt: usize, n_gen: usize) -> Result<Request> {
        let depth = self.case.depth;
        let mut prompt = self.tokens(0, depth);
        let past = match depth {
            0 => None,
            _ => Some(
                self.engine.keep_filled(prompt.clone()).ok_or_else(|| anyhow!("no room for the caches"))?,
            ),
        };
        prompt.extend(self.tokens(1 + i, n_prompt));
        Ok(Request { past, ..Request::new(prompt, n_gen.max(1)) })
    }

    /// Tokens without a meaning, others for each `seed`.
    fn tokens(&self, seed: usize, n: usize) -> Vec<u32> {
        let token = |i: usize| (i * 7919 + seed * 104_729 + 17) % self.vocab_size;
        (0..n).map(|i| token(i) as u32).collect()
    }
}

/// Fails if a sequence did.
fn check(events: &[Event]) -> Result<()> {
    for event in events {
        if let Event::Failed { error, .. } = event {
            bail!("a sequence failed: {error}");
        }
    }
    Ok(())
}

/// Sorts steps into those that read prompts, those in which every sequence gets a token, and the rest.
struct Watch {
    batch_size: usize,
    /// Whether steps count that give a sequence its first token.
    from_first: bool,
    begun: BTreeSet<SeqId>,
    last: Duration,
    first_token: Option<Duration>,
    steps: Vec<f64>,
}

impl Watch {
    fn new(case: &Case) -> Self {
        Self {
            batch_size: case.batch_size,
            from_first: case.n_prompt == 0,
            begun: BTreeSet::new(),
            last: Duration::ZERO,
            first_token: None,
            steps: Vec::new(),
        }
    }

    /// A step has ended `at` this time.
    fn step(&mut self, at: Duration, events: &[Event]) -> Result<()> {
        check(events)?;
        let ids = events.iter().filter_map(|event| match event {
            Event::Token { id, .. } => Some(*id),
            _ => None,
        });
        let (all_had_one, ids) = (self.begun.len() == self.batch_size, ids.collect::<Vec<_>>());
        if ids.len() == self.batch_size && (all_had_one || self.from_first) {
            self.steps.push((at - self.last).as_secs_f64() * 1e3);
        }
        self.begun.extend(ids);
        if self.first_token.is_none() && self.begun.len() == self.batch_size {
            self.first_token = Some(at);
        }
        self.last = at;
        Ok(())
    }

    fn sample(mut self, end: Duration) -> Sample {
        self.steps.sort_unstable_by(f64::total_cmp);
        let steps = Steps {
            count: self.steps.len(),
            median_ms: quantile(&self.steps, 0.5),
            p90_ms: quantile(&self.steps, 0.9),
        };
        Sample {
            seconds: end.as_secs_f64(),
            first_token_seconds: self.first_token.unwrap_or(end).as_secs_f64(),
            steps: (steps.count > 0).then_some(steps),
        }
    }
}

/// The value that a share of sorted `values` does not exceed; for the median of an even number, the mean of the middle two.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let place = share * values.len().saturating_sub(1) as f64;
    let at = |i: f64| values.get(i as usize).copied().unwrap_or(f64::NAN);
    at(place.floor()) + (at(place.ceil()) - at(place.floor())) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 10.0], 0.5), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), 2.0);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
