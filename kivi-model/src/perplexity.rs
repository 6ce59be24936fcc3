//! What settings of the cache cost: perplexity of a text, and how far the predictions are from those over a 16-bit cache.
//!
//! # Protocol
//! The text is cut into windows of `ctx_size` tokens, each `stride` tokens after the one before. The first `ctx_size - stride`
//! tokens of a window are its prompt, read in one step over an empty cache as any prompt is. Each of the other `stride` tokens
//! is scored where it stands and then taken, one token a step, so that all but the first are predicted over the quantized past
//! that decoding sees. All settings run in the same steps, and each is compared with the first one.

use std::collections::BTreeMap;

use kivi_kernels::{Backend, KernelError, StepError};

use crate::engine::{
    CacheUse, Engine, EngineConfig, EngineError, Event, Request, SequenceError, SubmitError,
};
use crate::fake::{FakeCache, FakeQuantizer};
use crate::model::Model;
use crate::policy::CachePolicy;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Tokens of a window.
    pub ctx_size: usize,
    /// Scored tokens of a window, from 1 to `ctx_size - 1`.
    pub stride: usize,
}

impl Cut {
    /// The windows of `text`, each beginning with `begin` (the tokens that every text of the model begins with). What is left
    /// at the end is not used.
    pub fn windows(&self, begin: &[u32], text: &[u32]) -> Vec<Vec<u32>> {
        let own = self.ctx_size.saturating_sub(begin.len()).max(1);
        let starts = (0..(text.len() + 1).saturating_sub(own)).step_by(self.stride.max(1));
        starts.map(|start| [begin, &text[start..start + own]].concat()).collect()
    }

    fn prompt(&self) -> usize {
        self.ctx_size - self.stride
    }
}

/// A cache that a text is scored over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A cache that keeps what it says.
    Cache(CachePolicy),
    /// A cache of 16 bits, read back as if it were quantized.
    Fake(FakeCache),
}

impl From<CachePolicy> for Setting {
    fn from(policy: CachePolicy) -> Self {
        Self::Cache(policy)
    }
}

impl From<FakeCache> for Setting {
    fn from(cache: FakeCache) -> Self {
        Self::Fake(cache)
    }
}

/// What came of one setting of the cache.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Negative log-likelihood of each scored token, in nats.
    pub nll: Vec<f64>,
    /// Kullback-Leibler divergence of each prediction from that of the first setting, in nats:
    /// `sum_t p(t) ln(p(t) / q(t))`, `p` of the first setting.
    pub kld: Vec<f64>,
    /// The place of each scored token in its window.
    pub places: Vec<usize>,
    /// Predictions whose likeliest token is that of the first setting.
    pub same_top: usize,
    /// What the caches of all windows took at their ends.
    pub cache: CacheUse,
}

impl Scores {
    /// Mean of the negative log-likelihoods and its standard error, in nats.
    pub fn mean_nll(&self) -> (f64, f64) {
        mean_and_error(&self.nll)
    }

    /// Perplexity, `exp` of the mean, and its standard error.
    pub fn perplexity(&self) -> (f64, f64) {
        let (mean, error) = self.mean_nll();
        (mean.exp(), mean.exp() * error)
    }

    /// Mean of the divergences and its standard error, in nats.
    pub fn mean_kld(&self) -> (f64, f64) {
        mean_and_error(&self.kld)
    }

    /// The divergence that the share `q` (0 to 1) of all predictions does not exceed: the smallest such value.
    pub fn kld_quantile(&self, q: f64) -> f64 {
        let mut sorted = self.kld.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (q * sorted.len() as f64).ceil() as usize;
        sorted.get(place.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
    }

    /// Mean of the divergences by place in the window: the places are cut into at most `bins` runs of one length; the first place
    /// of each, and its mean.
    pub fn kld_by_position(&self, bins: usize) -> Vec<(usize, f64)> {
        let (Some(first), Some(last)) = (self.places.iter().min(), self.places.iter().max()) else {
            return Vec::new();
        };
        let run = (last - first + 1).div_ceil(bins.max(1));
        let mut sums: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
        for (place, kld) in self.places.iter().zip(&self.kld) {
            let (sum, n) = sums.entry((place - first) / run).or_default();
            (*sum, *n) = (*sum + kld, *n + 1);
        }
        sums.into_iter().map(|(i, (sum, n))| (first + i * run, sum / n as f64)).collect()
    }

    /// Share of predictions with the same likeliest token.
    pub fn same_top_share(&self) -> f64 {
        self.same_top as f64 / self.nll.len().max(1) as f64
    }
}

/// Mean and standard error of independent values.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

/// Why a text could not be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PerplexityError<E: KernelError> {
    /// The stride leaves no prompt, or nothing to score.
    #[error("stride: expected 1 to {most} for windows of {ctx_size} tokens, found {stride}")]
    Stride {
        /// The largest stride.
        most: usize,
        /// Tokens of a window.
        ctx_size: usize,
        /// What was asked for.
        stride: usize,
    },
    /// A setting does not fit the model, or there is no memory.
    #[error(transparent)]
    Engine(#[from] EngineError<E>),
    /// A window is refused.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A window failed.
    #[error("window {window}: {error}")]
    Sequence {
        /// Its place.
        window: usize,
        /// Why.
        #[source]
        error: SequenceError,
    },
    /// The device failed.
    #[error("device: {0}")]
    Step(#[from] StepError<E>),
}

/// Scores `windows` over each of `settings`, `batch_size` windows at a time. `progress` is called with the number of scored
/// tokens of the first setting.
///
/// # Errors
/// The stride or a setting is impossible, or the device fails.
pub fn compare<B: Backend>(
    backend: &B,
    model: &Model<B>,
    settings: &[Setting],
    (cut, windows): (Cut, &[Vec<u32>]),
    batch_size: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Scores>, PerplexityError<B::Error>> {
    let Cut { ctx_size, stride } = cut;
    if stride == 0 || stride >= ctx_size {
        return Err(PerplexityError::Stride { most: ctx_size.saturating_sub(1), ctx_size, stride });
    }
    let engines = settings.iter().map(|setting| {
        let engine = Engine::new(backend, model, sizes(setting, cut, batch_size))?;
        let quantizer = match setting {
            Setting::Cache(_) => None,
            Setting::Fake(cache) => Some(FakeQuantizer::new(cache.clone())),
        };
        Ok(Runner { engine, quantizer, ids: Vec::new(), next: Vec::new() })
    });
    let mut engines = engines.collect::<Result<Vec<_>, PerplexityError<B::Error>>>()?;
    let mut scores = vec![Scores::default(); settings.len()];
    for (n, batch) in windows.chunks(batch_size.max(1)).enumerate() {
        let first = n * batch_size.max(1);
        engines.iter_mut().try_for_each(|runner| runner.submit(cut, batch))?;
        while engines.iter().any(|runner| !runner.engine.is_idle()) {
            let mut base: Vec<Option<Prediction>> = batch.iter().map(|_| None).collect();
            for (runner, scores) in engines.iter_mut().zip(&mut scores) {
                for (window, token, logits) in runner.step(first, scores)? {
                    scores.places.push(runner.next[window]);
                    runner.next[window] += 1;
                    let prediction = Prediction::of(&logits);
                    let base = base[window].get_or_insert_with(|| prediction.clone());
                    scores.add(base, &prediction, token);
                }
            }
            progress(scores[0].nll.len());
        }
    }
    Ok(scores)
}

/// The engine of [`compare`] for a setting: `batch_size` windows run in it from the first step on.
pub fn sizes(setting: &Setting, cut: Cut, batch_size: usize) -> EngineConfig {
    let seqs = batch_size.max(1);
    EngineConfig {
        cache: match setting {
            Setting::Cache(policy) => policy.clone(),
            Setting::Fake(cache) => cache.engine_cache(),
        },
        max_context: cut.ctx_size + 1,
        max_seqs: seqs,
        max_batched_tokens: cut.prompt().saturating_mul(seqs),
        // A page more than a window needs, whatever its tokens.
        pool_tokens: cut.ctx_size.next_multiple_of(1 << 8).saturating_mul(seqs),
    }
}

/// A window, the token at its next place, and the logits there.
type Scored = (usize, u32, Vec<f32>);

/// An engine and the windows that run in it.
struct Runner<'a, B: Backend> {
    engine: Engine<'a, B>,
    quantizer: Option<FakeQuantizer>,
    ids: Vec<crate::engine::SeqId>,
    /// Where the next token of each window stands in it.
    next: Vec<usize>,
}

impl<B: Backend> Runner<'_, B> {
    fn submit(&mut self, cut: Cut, windows: &[Vec<u32>]) -> Result<(), SubmitError> {
        let (engine, prompt) = (&mut self.engine, cut.prompt());
        let submit = |window: &Vec<u32>| {
            let forced = window[prompt..].to_vec();
            let request = Request::new(window[..prompt].to_vec(), cut.stride);
            engine.submit(Request { forced, want_logits: true, ..request })
        };
        self.next = vec![prompt; windows.len()];
        self.ids = windows.iter().map(submit).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// One step: what each window that has a prediction has.
    fn step(&mut self, first: usize, scores: &mut Scores) -> Result<Vec<Scored>, PerplexityError<B::Error>> {
        let events = self.engine.step()?;
        if let Some(quantizer) = &mut self.quantizer {
            quantizer.update(&mut self.engine, &self.ids).map_err(StepError::from)?;
        }
        let place = |id| self.ids.iter().position(|known| *known == id).unwrap_or(0);
        let mut predictions = Vec::new();
        for event in events {
            match event {
                Event::Token { id, token, logits } => {
                    predictions.push((place(id), token, logits.unwrap_or_default()));
                }
                Event::Finished { cache, .. } => scores.cache = scores.cache + cache,
                Event::Failed { id, error } => {
                    return Err(PerplexityError::Sequence { window: first + place(id), error });
                }
            }
        }
        Ok(predictions)
    }
}

/// What a model says of the next token.
#[derive(Clone)]
struct Prediction {
    /// Natural logarithms of the probabilities.
    log: Vec<f64>,
    /// The likeliest token.
    top: usize,
}

impl Prediction {
    fn of(logits: &[f32]) -> Self {
        let top =
            (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap_or(0);
        let max = f64::from(logits.get(top).copied().unwrap_or(0.0));
        let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
        let norm = max + sum.ln();
        Self { log: logits.iter().map(|x| f64::from(*x) - norm).collect(), top }
    }

    /// `sum_t p(t) ln(p(t) / q(t))`.
    fn divergence(&self, q: &Self) -> f64 {
        let terms = self.log.iter().zip(&q.log).map(|(p, q)| p.exp() * (p - q));
        terms.sum::<f64>().max(0.0)
    }
}

impl Scores {
    fn add(&mut self, base: &Prediction, own: &Prediction, token: u32) {
        self.nll.push(-own.log[token as usize]);
        self.kld.push(base.divergence(own));
        self.same_top += usize::from(base.top == own.top);
    }
}
