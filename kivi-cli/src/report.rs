//! What a run did: its figures, and the statistics that people read.

use std::fmt::Write;
use std::time::Duration;

use kivi_model::engine::CacheUse;
use kivi_model::generate::Generation;
use kivi_model::policy::CachePolicy;
use kivi_quant::KiviConfig;

use crate::format::{mib, rate, size, thousands, times_less};
use crate::memory;
use crate::settings::Seed;

/// A run that is complete.
pub struct Run {
    /// What messages call the model.
    pub model: String,
    /// The device.
    pub device: String,
    /// Bytes of the weights.
    pub weights_bytes: u64,
    /// The cache's settings.
    pub cache: CachePolicy,
    /// The seed, unless nothing was drawn.
    pub seed: Option<Seed>,
    /// From the start to a loaded model.
    pub load: Duration,
    /// From a loaded model to an engine that is ready.
    pub setup: Duration,
    /// The texts, with what messages call their prompts.
    pub texts: Vec<(String, Generation)>,
}

/// How long the parts of a run took, in seconds.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Timings {
    /// Loading the model.
    pub load: f64,
    /// From a ready engine to the first token: the time that the prompt took.
    pub prompt: f64,
    /// From a loaded model to the first token.
    pub first_token: f64,
    /// From the first token to the last one.
    pub generation: f64,
    /// All together.
    pub total: f64,
}

impl Timings {
    /// Of some texts of a run, made at the same time: prompts end with the last first token, and generation starts
    /// with the first one.
    pub fn of<'a>(run: &Run, texts: impl Iterator<Item = &'a Generation> + Clone) -> Self {
        let firsts = texts.clone().map(|text| text.first_token.unwrap_or(text.total));
        let end = texts.map(|text| text.total).max().unwrap_or_default();
        let first = firsts.clone().min().unwrap_or_default();
        let prompt = firsts.max().unwrap_or_default();
        // Whole microseconds: more digits would be noise.
        let seconds = |time: Duration| time.as_micros() as f64 / 1e6;
        Self {
            load: seconds(run.load),
            prompt: seconds(prompt),
            first_token: seconds(run.setup + first),
            generation: seconds(end - first),
            total: seconds(run.load + run.setup + end),
        }
    }
}

/// What the caches of some texts took together.
pub fn cache_use<'a>(texts: impl Iterator<Item = &'a Generation>) -> CacheUse {
    texts.map(|text| text.cache).fold(CacheUse::default(), |a, b| a + b)
}

/// The statistics, one line a topic.
pub fn statistics(run: &Run) -> String {
    let mut out = String::new();
    let texts = || run.texts.iter().map(|(_, text)| text);
    let timings = Timings::of(run, texts());
    let prompt: usize = texts().map(|text| text.prompt_tokens).sum();
    let new: usize = texts().map(|text| text.token_ids.len()).sum();
    let first: usize = texts().filter(|text| !text.token_ids.is_empty()).count();
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12} {text}").expect("a string grows");
    line("model", format!("{}   on {}   loaded in {:.2} s", run.model, run.device, timings.load));
    let tokens = |n: usize, seconds: f64, counted: usize| {
        let rate = rate(counted, seconds);
        format!("{:>7} tokens  {seconds:>7.2} s  {rate:>8} tok/s", thousands(n as u64))
    };
    let reused = cache_use(texts()).reused;
    let loaded =
        if reused > 0 { format!("   {} of them loaded", thousands(reused as u64)) } else { String::new() };
    let first_token = format!("   first token {:.2} s{loaded}", timings.first_token);
    line("prompt", tokens(prompt, timings.prompt, prompt - reused) + &first_token);
    // The first token of each text comes with its prompt.
    line("generated", tokens(new, timings.generation, new - first));
    line("kv cache", cache_line(&run.cache, &cache_use(texts())));
    let peak = memory::peak_bytes().map(|bytes| format!("peak {}   ", size(bytes)));
    line("memory", format!("{}weights {}", peak.unwrap_or_default(), size(run.weights_bytes)));
    if let Some(seed) = run.seed.filter(|seed| seed.random) {
        line("seed", seed.value.to_string());
    }
    out
}

/// Settings and bytes of the cache, all in MiB.
pub fn cache_line(policy: &CachePolicy, cache: &CacheUse) -> String {
    let used = cache.used;
    let part = |bytes: usize| mib(bytes as u64);
    format!(
        "{}   {} MiB  (fp16 {} MiB, {}; codes {}, scales {}, residual {})   allocated {} MiB",
        settings(policy),
        part(used.used()),
        part(used.fp16),
        times_less(used.used() as u64, used.fp16 as u64),
        part(used.codes),
        part(used.scales),
        part(used.residual),
        part(cache.allocated),
    )
}

/// The settings of all layers, and those of layers that have others.
pub fn settings(policy: &CachePolicy) -> String {
    let mut out = policy.base().to_string();
    let mut others: Vec<(KiviConfig, Vec<String>)> = Vec::new();
    for (layer, config) in policy.overrides() {
        match others.iter_mut().find(|(known, _)| known == config) {
            Some((_, layers)) => layers.push(layer.to_string()),
            None => others.push((*config, vec![layer.to_string()])),
        }
    }
    for (config, layers) in others {
        let _ = write!(out, ", layers {}: {config}", layers.join(","));
    }
    out
}
