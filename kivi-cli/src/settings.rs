//! What the flags mean: checked settings, before anything is read.

use std::hash::BuildHasher;

use anyhow::Result;
use kivi_kernels::DType;
use kivi_model::config::ModelConfig;
use kivi_model::generation_config::GenerationConfig;
use kivi_model::rope::RopeScaling;
use kivi_model::sampler::SamplingParams;
use kivi_model::stop::StopStrings;
use kivi_quant::{Bits, KiviConfig, KvDtype};

use crate::args::{BitsArgs, CacheArgs, MAX_TOKENS, SamplingArgs};
use crate::failure::Usage;

/// The seed of a run.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    /// The seed.
    pub value: u64,
    /// Whether nobody chose it.
    pub random: bool,
}

impl Seed {
    /// The seed that was asked for, or a random one.
    pub fn new(asked: Option<u64>) -> Self {
        // The standard library seeds its hash maps from the system; 32 bits are enough, and short to type.
        let random = || std::collections::hash_map::RandomState::new().hash_one(0) >> 32;
        Self { value: asked.unwrap_or_else(random), random: asked.is_none() }
    }
}

/// A cache with these widths, for activations of type `act`.
pub fn cache(args: &CacheArgs, k_bits: Bits, v_bits: Bits, act: DType) -> Result<KiviConfig> {
    let config = KiviConfig::new(k_bits, v_bits, args.kv_group_size, args.kv_residual);
    // Widths and group size are valid by now, so what is left is the residual length.
    let config = config.map_err(|error| {
        let text = error.to_string();
        Usage(format!("--kv-residual: {}", text.strip_prefix("cache residual length: ").unwrap_or(&text)))
    })?;
    let config = config.with_kv_dtype(args.kv_dtype.unwrap_or(rows_of(act))).with_sink_tokens(args.kv_sink);
    config.map_err(|error| Usage(format!("--kv-sink: {error}")).into())
}

/// The type that rows in full precision have unless said: that of activations, where it has 16 bits.
fn rows_of(act: DType) -> KvDtype {
    if act == DType::Bf16 { KvDtype::Bf16 } else { KvDtype::F16 }
}

/// Widths of keys and values.
pub fn bits(args: &BitsArgs) -> (Bits, Bits) {
    (args.k_bits.unwrap_or(args.kv_bits.k), args.v_bits.unwrap_or(args.kv_bits.v))
}

/// Checks the flags about the text, which does not need the model.
pub fn check_text(args: &SamplingArgs) -> Result<()> {
    let asked = override_with(SamplingParams::default(), args);
    asked.validate().map_err(|error| Usage(format!("--{error}")))?;
    StopStrings::new(args.stop.clone()).map_err(|error| Usage(format!("--{error}")))?;
    Ok(())
}

/// How tokens are chosen: what the checkpoint recommends, and what the flags say instead.
pub fn sampling(args: &SamplingArgs, recommended: &GenerationConfig, seed: Seed) -> SamplingParams {
    let params = override_with(recommended.sampling(seed.value), args);
    let without_effect = [
        ("--top-k", args.top_k.is_some()),
        ("--top-p", args.top_p.is_some()),
        ("--min-p", args.min_p.is_some()),
        ("--seed", args.seed.is_some()),
    ];
    for (flag, _) in without_effect.iter().filter(|(_, given)| *given && params.temperature == 0.0) {
        tracing::warn!("{flag} has no effect at temperature 0; add --temperature 1 to sample");
    }
    params
}

fn override_with(base: SamplingParams, args: &SamplingArgs) -> SamplingParams {
    SamplingParams {
        temperature: args.temperature.unwrap_or(base.temperature),
        top_k: args.top_k.unwrap_or(base.top_k),
        top_p: args.top_p.unwrap_or(base.top_p),
        min_p: args.min_p.unwrap_or(base.min_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(base.repetition_penalty),
        seed: base.seed,
    }
}

/// How long a sequence may be.
#[derive(Clone, Copy, Debug)]
pub struct ContextLimits {
    /// The longest sequence of this run.
    pub tokens: usize,
    /// What `--ctx-size` could raise it to.
    pub most: usize,
}

/// The model's context, or what was asked for if the model can do it.
pub fn context(asked: Option<usize>, model: &ModelConfig) -> Result<ContextLimits> {
    let most = largest_context(model);
    let tokens = asked.unwrap_or(model.max_position_embeddings);
    if tokens > most {
        let expected = format!("at most {most}, the context that the model was made for");
        return Err(Usage(format!("--ctx-size: expected {expected}, found {tokens}")).into());
    }
    Ok(ContextLimits { tokens, most })
}

/// The longest context that the model's rotary embedding is made for; some are stretched beyond
/// `max_position_embeddings`.
fn largest_context(model: &ModelConfig) -> usize {
    let trained = model.max_position_embeddings;
    let stretched = |trained: usize, factor: f64| (trained as f64 * factor) as usize;
    let most = match &model.rope.scaling {
        RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } => stretched(trained, *factor),
        RopeScaling::Yarn(yarn) => stretched(yarn.original_max_position_embeddings, yarn.factor),
        RopeScaling::Default | RopeScaling::Llama3(_) => trained,
    };
    most.max(trained).min(MAX_TOKENS)
}
