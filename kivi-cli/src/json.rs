//! The machine-readable output of `generate`.

use std::collections::BTreeMap;

use kivi_model::engine::CacheUse;
use kivi_model::generate::Generation;
use kivi_model::policy::CachePolicy;
use serde::Serialize;

use crate::memory;
use crate::report::{Run, Timings, cache_use};

/// One text.
#[derive(Serialize)]
struct TextJson<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    figures: Figures<'a>,
}

/// Several texts, with the figures of the whole run.
#[derive(Serialize)]
struct BatchJson<'a> {
    results: Vec<TextJson<'a>>,
    #[serde(flatten)]
    figures: Figures<'a>,
}

/// The figures of one text or of all.
#[derive(Serialize)]
struct Figures<'a> {
    prompt_tokens: usize,
    generated_tokens: usize,
    timings: Timings,
    kv_cache: CacheJson,
    model: &'a str,
    device: &'a str,
    /// `null` if nothing was drawn.
    seed: Option<u64>,
    /// `null` where the system does not say.
    peak_memory_bytes: Option<u64>,
}

/// What a cache took.
#[derive(Serialize)]
struct CacheJson {
    tokens: usize,
    /// Tokens that were loaded from a file.
    reused_tokens: usize,
    codes_bytes: usize,
    scales_bytes: usize,
    residual_bytes: usize,
    used_bytes: usize,
    allocated_bytes: usize,
    fp16_bytes: usize,
    bits_per_element: f64,
    k_bits: u32,
    v_bits: u32,
    group_size: usize,
    residual_length: usize,
    kv_dtype: String,
    sink_tokens: usize,
    /// Layers with other settings.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    layers: BTreeMap<usize, String>,
}

/// One object: a text, or `results` with several.
pub fn of(run: &Run) -> serde_json::Result<String> {
    let texts = || run.texts.iter().map(|(_, text)| text);
    if let [(_, one)] = &run.texts[..] {
        return serde_json::to_string_pretty(&text_json(run, one));
    }
    let results = texts().map(|text| text_json(run, text)).collect();
    serde_json::to_string_pretty(&BatchJson { results, figures: figures(run, texts()) })
}

fn text_json<'a>(run: &'a Run, text: &'a Generation) -> TextJson<'a> {
    TextJson {
        text: &text.text,
        token_ids: &text.token_ids,
        finish_reason: text.end.as_ref().map_or("error", |reason| reason.name()),
        error: text.end.as_ref().err().map(ToString::to_string),
        figures: figures(run, std::iter::once(text)),
    }
}

fn figures<'a>(run: &'a Run, texts: impl Iterator<Item = &'a Generation> + Clone) -> Figures<'a> {
    Figures {
        prompt_tokens: texts.clone().map(|text| text.prompt_tokens).sum(),
        generated_tokens: texts.clone().map(|text| text.token_ids.len()).sum(),
        timings: Timings::of(run, texts.clone()),
        kv_cache: cache_json(&run.cache, &cache_use(texts)),
        model: &run.model,
        device: &run.device,
        seed: run.seed.map(|seed| seed.value),
        peak_memory_bytes: memory::peak_bytes(),
    }
}

fn cache_json(policy: &CachePolicy, cache: &CacheUse) -> CacheJson {
    let (used, config) = (cache.used, policy.base());
    CacheJson {
        tokens: cache.tokens,
        reused_tokens: cache.reused,
        codes_bytes: used.codes,
        scales_bytes: used.scales,
        residual_bytes: used.residual,
        used_bytes: used.used(),
        allocated_bytes: cache.allocated,
        fp16_bytes: used.fp16,
        bits_per_element: used.bits_per_element(),
        k_bits: config.k_bits().get(),
        v_bits: config.v_bits().get(),
        group_size: config.group_size(),
        residual_length: config.residual_length(),
        kv_dtype: config.kv_dtype().to_string(),
        sink_tokens: config.sink_tokens(),
        layers: policy.overrides().map(|(layer, config)| (layer, config.to_string())).collect(),
    }
}
