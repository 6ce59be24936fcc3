//! `inspect`: says what a checkpoint is and what its cache takes. Weights are not loaded, only their headers.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};
use kivi_kernels::DType;
use kivi_model::config::ModelConfig;
use kivi_model::generation_config::GenerationConfig;
use kivi_model::rope::{RopeConfig, RopeScaling};
use kivi_model::source::Source;
use kivi_model::weights::Checkpoint;
use kivi_quant::{Bits, CacheBytes, KiviConfig, PageLayout};
use serde::Serialize;

use crate::args::InspectArgs;
use crate::format::{size, thousands};
use crate::{model_source, output, settings};

/// What a checkpoint is.
#[derive(Serialize)]
struct Inspection {
    command: &'static str,
    model: String,
    architecture: String,
    n_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rope: String,
    /// Tokens that a new token sees in each layer, `null` for all of them; absent if no layer has a window.
    #[serde(skip_serializing_if = "no_window")]
    windows: Vec<Option<usize>>,
    tie_word_embeddings: bool,
    bos_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
    weights: Weights,
    kv_cache: Cache,
}

/// What its weights are.
#[derive(Serialize)]
struct Weights {
    parameters: u64,
    bytes: u64,
    tensors: usize,
    dtypes: Vec<String>,
}

/// What its cache takes.
#[derive(Serialize)]
struct Cache {
    tokens: usize,
    batch_size: usize,
    group_size: usize,
    residual_length: usize,
    page_tokens: usize,
    kv_dtype: String,
    settings: Vec<Setting>,
    by_tokens: Vec<Sizes>,
}

/// What fewer tokens take.
#[derive(Serialize)]
struct Sizes {
    tokens: usize,
    /// Bits, and bytes in use.
    used_bytes: Vec<(u32, u64)>,
}

/// The cache at one width of keys and values.
#[derive(Serialize)]
struct Setting {
    bits: u32,
    #[serde(flatten)]
    size: Size,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Size {
    Bytes {
        codes_bytes: u64,
        scales_bytes: u64,
        residual_bytes: u64,
        used_bytes: u64,
        allocated_bytes: u64,
        fp16_bytes: u64,
        bits_per_element: f64,
    },
    Impossible {
        error: String,
    },
}

/// Runs the command; `quiet` hides the progress of a download.
pub fn run(args: &InspectArgs, quiet: bool) -> Result<()> {
    let cache = settings::cache(&args.cache, Bits::B16, Bits::B16, DType::F32)?;
    let source = model_source::open(&args.model, !quiet)?;
    let inspection = inspect(&source, args, &cache)?;
    if args.json {
        return output::write(&(serde_json::to_string_pretty(&inspection)? + "\n"));
    }
    output::write(&text(&inspection))
}

fn inspect(source: &Source, args: &InspectArgs, cache: &KiviConfig) -> Result<Inspection> {
    let config = ModelConfig::load(source)?;
    let generation = GenerationConfig::load(source, &config)?;
    let tokens = args.ctx_size.unwrap_or(config.max_position_embeddings);
    Ok(Inspection {
        command: "inspect",
        model: source.place(""),
        architecture: format!("{:?}", config.architecture).to_lowercase(),
        n_layers: config.n_layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        rope: if config.alibi { "none (ALiBi)".to_owned() } else { rope(&config.rope) },
        windows: config.windows.clone(),
        tie_word_embeddings: config.tie_word_embeddings,
        bos_token_id: generation.bos_token_id,
        eos_token_ids: generation.eos_token_ids,
        weights: weights(&Checkpoint::open(source)?)?,
        kv_cache: Cache {
            tokens,
            batch_size: args.batch_size,
            group_size: cache.group_size(),
            residual_length: cache.residual_length(),
            page_tokens: cache.page_tokens(),
            kv_dtype: cache.kv_dtype().to_string(),
            settings: widths(args, &config, tokens)?,
            by_tokens: doublings(tokens).map(|n| sizes(args, &config, n)).collect::<Result<_>>()?,
        },
    })
}

fn weights(checkpoint: &Checkpoint) -> Result<Weights> {
    let parameters = |name| Ok(checkpoint.tensor(name)?.shape.iter().map(|n| *n as u64).product::<u64>());
    Ok(Weights {
        parameters: checkpoint.names().map(parameters).sum::<Result<u64>>()?,
        bytes: checkpoint.total_bytes(),
        tensors: checkpoint.names().count(),
        dtypes: checkpoint.dtypes().keys().map(ToString::to_string).collect(),
    })
}

/// The cache at every width, widest first.
fn widths(args: &InspectArgs, model: &ModelConfig, tokens: usize) -> Result<Vec<Setting>> {
    let of_bits = |bits: Bits| {
        let size =
            match PageLayout::new(settings::cache(&args.cache, bits, bits, DType::F32)?, model.head_dim) {
                Ok(layout) => bytes(&layout, args, model, tokens).with_context(|| {
                    format!(
                        "--batch-size: {} sequences of {tokens} tokens are too many to count",
                        args.batch_size
                    )
                })?,
                Err(error) => Size::Impossible { error: error.to_string() },
            };
        Ok(Setting { bits: bits.get(), size })
    };
    Bits::ALL.into_iter().rev().map(of_bits).collect()
}

/// 256, 512 and so on up to `tokens`.
fn doublings(tokens: usize) -> impl Iterator<Item = usize> {
    (8..usize::BITS - 1).map(|power| 1 << power).take_while(move |n| *n < tokens).chain([tokens])
}

/// What so many tokens take at every width that the model can have.
fn sizes(args: &InspectArgs, model: &ModelConfig, tokens: usize) -> Result<Sizes> {
    let used = |setting: Setting| match setting.size {
        Size::Bytes { used_bytes, .. } => Some((setting.bits, used_bytes)),
        Size::Impossible { .. } => None,
    };
    Ok(Sizes { tokens, used_bytes: widths(args, model, tokens)?.into_iter().filter_map(used).collect() })
}

/// Bytes of the whole cache; `None` if their number is not one of this computer.
fn bytes(layout: &PageLayout, args: &InspectArgs, model: &ModelConfig, tokens: usize) -> Option<Size> {
    let (mut head, mut allocated) = (CacheBytes::default(), 0);
    for window in &model.windows {
        let left = window.map_or(0, |window| layout.config().pages_left(window, tokens));
        head += CacheBytes::of_head_from(layout, left * layout.config().page_tokens(), tokens);
        allocated += CacheBytes::allocated_by_head(layout, tokens) - left * layout.page_bytes();
    }
    let heads = (model.n_kv_heads as u64).checked_mul(args.batch_size as u64)?;
    let all = |bytes: usize| (bytes as u64).checked_mul(heads);
    Some(Size::Bytes {
        codes_bytes: all(head.codes)?,
        scales_bytes: all(head.scales)?,
        residual_bytes: all(head.residual)?,
        used_bytes: all(head.used())?,
        allocated_bytes: all(allocated)?,
        fp16_bytes: all(head.fp16)?,
        bits_per_element: head.bits_per_element(),
    })
}

fn no_window(windows: &[Option<usize>]) -> bool {
    windows.iter().all(Option::is_none)
}

fn rope(rope: &RopeConfig) -> String {
    let scaling = match &rope.scaling {
        RopeScaling::Default => String::new(),
        RopeScaling::Linear { factor } => format!(", linear, factor {factor}"),
        RopeScaling::Dynamic { factor, max_position_embeddings } => {
            format!(", dynamic, factor {factor} beyond {max_position_embeddings} tokens")
        }
        RopeScaling::Yarn(yarn) => {
            format!(", yarn, factor {} on {} tokens", yarn.factor, yarn.original_max_position_embeddings)
        }
        RopeScaling::Llama3(llama3) => {
            format!(
                ", llama3, factor {} on {} tokens",
                llama3.factor, llama3.original_max_position_embeddings
            )
        }
    };
    format!("theta {}{scaling}", rope.theta)
}

/// The windows and how many layers have them; `None` if no layer has one.
fn windows(of_layers: &[Option<usize>]) -> Option<String> {
    let mut counts = BTreeMap::new();
    of_layers.iter().flatten().for_each(|window| *counts.entry(*window).or_insert(0) += 1);
    let all = of_layers.len();
    let text = |(window, n): (&usize, &usize)| {
        format!("{} tokens in {n} of {all} layers", thousands(*window as u64))
    };
    (!counts.is_empty()).then(|| counts.iter().map(text).collect::<Vec<_>>().join(", "))
}

fn text(of: &Inspection) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| writeln!(out, "{name:<14} {text}").expect("a string grows");
    line("model", of.model.clone());
    line("architecture", of.architecture.clone());
    line("layers", of.n_layers.to_string());
    line("width", format!("hidden {}, feed-forward {}", of.hidden_size, of.intermediate_size));
    line("heads", format!("{} query, {} key/value, head_dim {}", of.n_heads, of.n_kv_heads, of.head_dim));
    let tied = if of.tie_word_embeddings { "tied" } else { "untied" };
    line("vocabulary", format!("{} tokens, embeddings {tied}", thousands(of.vocab_size as u64)));
    line("context", format!("{} tokens", thousands(of.max_position_embeddings as u64)));
    line("rope", of.rope.clone());
    if let Some(window) = windows(&of.windows) {
        line("window", window);
    }
    let ids = |ids: &[u32]| match ids {
        [] => "none".to_owned(),
        ids => ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let bos: Vec<u32> = of.bos_token_id.into_iter().collect();
    line("token ids", format!("begin {}, end {}", ids(&bos), ids(&of.eos_token_ids)));
    let weights = &of.weights;
    let (parameters, dtypes) = (thousands(weights.parameters), weights.dtypes.join(", "));
    let bytes = size(weights.bytes);
    line("weights", format!("{parameters} parameters, {bytes}, {dtypes}, {} tensors", weights.tensors));
    out + &table(&of.kv_cache)
}

fn table(cache: &Cache) -> String {
    let sequences = if cache.batch_size == 1 { "sequence" } else { "sequences" };
    let mut out = format!(
        "\nkv cache of {} {sequences} of {} tokens (g{} R{} {}, pages of {} tokens)\n",
        thousands(cache.batch_size as u64),
        thousands(cache.tokens as u64),
        cache.group_size,
        cache.residual_length,
        cache.kv_dtype,
        cache.page_tokens,
    );
    out.push_str("bits          used     allocated   fp16 / used   bits per element\n");
    for setting in &cache.settings {
        let row = match &setting.size {
            Size::Impossible { error } => error.clone(),
            Size::Bytes { used_bytes, allocated_bytes, fp16_bytes, bits_per_element, .. } => {
                let ratio = *fp16_bytes as f64 / *used_bytes as f64;
                let (used, allocated) = (size(*used_bytes), size(*allocated_bytes));
                format!("{used:>12}  {allocated:>12}  {ratio:>11.2}x  {bits_per_element:>17.2}")
            }
        };
        writeln!(out, "{:>4}  {row}", setting.bits).expect("a string grows");
    }
    out
}
