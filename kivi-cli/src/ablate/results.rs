//! What `ablate` found, as JSON and as a table.

use std::fmt::Write;

use kivi_model::fake::FakeCache;
use kivi_model::perplexity::Scores;
use kivi_quant::KvDtype;
use serde::Serialize;

use super::passkey::Prompt;
use crate::format::thousands;
use crate::provenance::Provenance;

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where and when it ran, and what was asked for.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// What messages call the model.
    pub model: String,
    /// The text.
    pub file: String,
    /// Its tokens.
    pub text_tokens: usize,
    /// Tokens of a window.
    pub ctx_size: usize,
    /// Tokens from one window to the next, all scored.
    pub stride: usize,
    /// Windows.
    pub windows: usize,
    /// Scored tokens of all windows.
    pub scored_tokens: usize,
    /// What was found; the first is of 16 bits.
    pub settings: Vec<Setting>,
}

/// One setting; divergences are in nats, from the first one.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// What it is called.
    pub name: String,
    /// `channel` or `token`.
    pub k_axis: String,
    /// Likewise, of values.
    pub v_axis: String,
    /// Width of keys.
    pub k_bits: u32,
    /// Width of values.
    pub v_bits: u32,
    /// Elements of a group.
    pub group_size: usize,
    /// Recent tokens that are not quantized.
    pub residual: usize,
    /// First tokens that are not quantized.
    pub sinks: usize,
    /// Layers that are not quantized.
    pub skip_layers: Vec<usize>,
    /// Type of rows.
    pub kv_dtype: String,
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_error: f64,
    /// In nats.
    pub mean_nll: f64,
    /// Mean divergence.
    pub mean_kld: f64,
    /// Its standard error.
    pub mean_kld_error: f64,
    /// Share of predictions with the same likeliest token.
    pub same_top: f64,
    /// Numbers that were found, by length of the prompt.
    pub passkey: Vec<Found>,
}

/// How many numbers were found in prompts of one length.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Tokens of a prompt, at most.
    pub length: usize,
    /// Right answers.
    pub correct: usize,
    /// Prompts.
    pub prompts: usize,
}

impl Setting {
    /// What a setting scored, and which of `prompts` it answered right.
    pub fn new(cache: &FakeCache, scores: &Scores, prompts: &[Prompt], right: &[bool]) -> Self {
        let config = cache.policy.base();
        let (perplexity, perplexity_error) = scores.perplexity();
        let (mean_kld, mean_kld_error) = scores.mean_kld();
        Self {
            name: name(cache),
            k_axis: cache.k_axis.to_string(),
            v_axis: cache.v_axis.to_string(),
            k_bits: config.k_bits().get(),
            v_bits: config.v_bits().get(),
            group_size: config.group_size(),
            residual: config.residual_length(),
            sinks: config.sink_tokens(),
            skip_layers: skipped(cache),
            kv_dtype: config.kv_dtype().to_string(),
            perplexity,
            perplexity_error,
            mean_nll: scores.mean_nll().0,
            mean_kld,
            mean_kld_error,
            same_top: scores.same_top_share(),
            passkey: found(prompts, right),
        }
    }
}

/// Right answers by length, in the order of the prompts.
fn found(prompts: &[Prompt], right: &[bool]) -> Vec<Found> {
    let mut out: Vec<Found> = Vec::new();
    for (Prompt { cell, .. }, right) in prompts.iter().zip(right) {
        if out.last().is_none_or(|found| found.length != cell.length) {
            out.push(Found { length: cell.length, correct: 0, prompts: 0 });
        }
        let Some(found) = out.last_mut() else { continue };
        found.correct += usize::from(*right);
        found.prompts += 1;
    }
    out
}

/// Layers that are not quantized.
fn skipped(cache: &FakeCache) -> Vec<usize> {
    cache.policy.overrides().filter(|(_, config)| !config.is_quantized()).map(|(layer, _)| layer).collect()
}

/// `K2 per channel, V2 per token, g32 R128`; sinks and exact layers if there are any.
fn name(cache: &FakeCache) -> String {
    let config = cache.policy.base();
    let side = |side, bits: kivi_quant::Bits, axis| {
        if bits.is_quantized() { format!("{side}{bits} per {axis}") } else { format!("{side}{bits}") }
    };
    let mut out = side('K', config.k_bits(), cache.k_axis) + ", " + &side('V', config.v_bits(), cache.v_axis);
    let mut add = |text: String| out.push_str(&text);
    if config.is_quantized() {
        add(format!(", g{} R{}", config.group_size(), config.residual_length()));
        if config.sink_tokens() > 0 {
            add(format!(", sink {}", config.sink_tokens()));
        }
        let layers: Vec<_> = skipped(cache).iter().map(usize::to_string).collect();
        if !layers.is_empty() {
            add(format!(", layers {} as they are", layers.join(",")));
        }
    }
    if config.kv_dtype() != KvDtype::F32 {
        add(format!(", {} rows", config.kv_dtype()));
    }
    out
}

/// The table that people read.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("a string grows");
    let n = |n: usize| thousands(n as u64);
    line(format!("model        {}   on {}", report.model, report.provenance.device_and_dtype()));
    line(format!(
        "text         {}: {} tokens, {} windows of {}, the last {} of each scored one token a step",
        report.file,
        n(report.text_tokens),
        n(report.windows),
        n(report.ctx_size),
        n(report.stride)
    ));
    line(String::new());
    let Some(first) = report.settings.first() else { return out };
    let lengths = || first.passkey.iter();
    let head: String = lengths().map(|found| format!(" passkey {} |", n(found.length))).collect();
    line(format!("| cache, quantized and read back | perplexity | of first | mean KLD | same top |{head}"));
    line(format!("|---|---|---|---|---|{}", "---|".repeat(lengths().count())));
    for s in &report.settings {
        let cells: String = s.passkey.iter().map(|f| format!(" {}/{} |", f.correct, f.prompts)).collect();
        line(format!(
            "| {} | {:.3} ± {:.3} | {:+.2} % | {:.6} ± {:.6} | {:.2} % |{cells}",
            s.name,
            s.perplexity,
            s.perplexity_error,
            (s.perplexity / first.perplexity - 1.0) * 100.0,
            s.mean_kld,
            s.mean_kld_error,
            s.same_top * 100.0,
        ));
    }
    out
}
