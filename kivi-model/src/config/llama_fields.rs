//! The fields of Llama and of the families that name theirs as it does: Mistral, Qwen 2 and Qwen 3.

use serde_json::Value;

use super::*;

/// What an absent field means; transformers' defaults, where families differ.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    /// `None`: as many as query heads.
    n_kv_heads: Option<usize>,
    /// `None`: `hidden_size` is divided.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    bos: Option<u32>,
    eos: Option<u32>,
}

fn defaults(architecture: Architecture) -> Defaults {
    let (bos, eos) = (Some(1), Some(2));
    let (vocab_size, intermediate_size, n_kv_heads, head_dim) = (32000, 11008, None, None);
    let max_position_embeddings = 2048;
    let llama =
        Defaults { vocab_size, intermediate_size, n_kv_heads, head_dim, max_position_embeddings, bos, eos };
    let qwen2 = Defaults {
        vocab_size: 151_936,
        intermediate_size: 22016,
        n_kv_heads: Some(32),
        max_position_embeddings: 32768,
        bos: None,
        eos: None,
        ..llama
    };
    match architecture {
        Architecture::Mistral => Defaults {
            intermediate_size: 14336,
            n_kv_heads: Some(8),
            max_position_embeddings: 131_072,
            ..llama
        },
        Architecture::Qwen2 => qwen2,
        Architecture::Qwen3 => Defaults { head_dim: Some(128), ..qwen2 },
        _ => llama,
    }
}

/// Reads the config of a family of Llama's form.
pub(super) fn config(f: &Fields, architecture: Architecture) -> Result<ModelConfig, LoadError> {
    let defaults = defaults(architecture);
    let hidden_size = f.integer("hidden_size", 1..=MAX_WIDTH)?.unwrap_or(4096);
    let n_layers = f.integer("num_hidden_layers", 1..=MAX_LAYERS)?.unwrap_or(32);
    let n_heads = f.integer("num_attention_heads", 1..=MAX_HEADS)?.unwrap_or(32);
    let head_dim = head_dim(f, hidden_size, n_heads, defaults.head_dim)?;
    let positions = f.integer("max_position_embeddings", 1..=MAX_POSITIONS)?;
    let max_position_embeddings = positions.unwrap_or(defaults.max_position_embeddings);
    let (qkv_bias, output_bias) = attention_biases(f, architecture)?;
    let mlp_bias = architecture == Architecture::Llama && f.boolean("mlp_bias")?.unwrap_or(false);
    Ok(ModelConfig {
        architecture,
        vocab_size: f.integer("vocab_size", 1..=MAX_VOCAB)?.unwrap_or(defaults.vocab_size),
        hidden_size,
        intermediate_size: f
            .integer("intermediate_size", 1..=MAX_WIDTH)?
            .unwrap_or(defaults.intermediate_size),
        n_layers,
        n_heads,
        n_kv_heads: n_kv_heads(f, n_heads, defaults.n_kv_heads)?,
        head_dim,
        max_position_embeddings,
        windows: windows(f, architecture, n_layers)?,
        norm_eps: f.number("rms_norm_eps", 0.0..=1.0)?.unwrap_or(1e-6),
        hidden_act: activation(f, "hidden_act", "silu")?,
        tie_word_embeddings: f.boolean("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias,
        output_bias,
        mlp_bias,
        mlp_gated: true,
        qk_norm: architecture == Architecture::Qwen3,
        block_order: BlockOrder::Sequential,
        alibi: false,
        rope: rope_fields::rope(f, max_position_embeddings, head_dim)?,
        bos_token_id: token_ids(f, "bos_token_id", defaults.bos)?.first().copied(),
        eos_token_ids: token_ids(f, "eos_token_id", defaults.eos)?,
        dtype: dtype(f)?,
    })
}

/// Key/value heads; an absent field has the family's default, an explicit `null` means as many as query heads.
fn n_kv_heads(f: &Fields, n_heads: usize, default: Option<usize>) -> Result<usize, LoadError> {
    const FIELD: &str = "num_key_value_heads";
    let default = if f.contains(FIELD) { None } else { default };
    let n_kv_heads = f.integer(FIELD, 1..=MAX_HEADS)?.or(default).unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        let expected = format!("a divisor of num_attention_heads ({n_heads})");
        return Err(f.error(FIELD, expected));
    }
    Ok(n_kv_heads)
}

/// `head_dim`, or what is left of `hidden_size` for each head.
fn head_dim(
    f: &Fields,
    hidden_size: usize,
    n_heads: usize,
    default: Option<usize>,
) -> Result<usize, LoadError> {
    let Some(head_dim) = f.integer("head_dim", 2..=MAX_HEAD_DIM)?.or(default) else {
        return divided_head_dim(f, ("hidden_size", hidden_size), ("num_attention_heads", n_heads));
    };
    let even = head_dim.is_multiple_of(2);
    let expected = || f.error("head_dim", format!("an even number from 2 to {MAX_HEAD_DIM}"));
    if even { Ok(head_dim) } else { Err(expected()) }
}

/// Whether queries, keys and values have biases, and whether the output has one.
fn attention_biases(f: &Fields, architecture: Architecture) -> Result<(bool, bool), LoadError> {
    Ok(match architecture {
        Architecture::Mistral => (false, false),
        Architecture::Qwen2 => (true, false),
        _ => {
            let bias = f.boolean("attention_bias")?.unwrap_or(false);
            (bias, bias)
        }
    })
}

/// The window of each layer.
fn windows(f: &Fields, architecture: Architecture, n_layers: usize) -> Result<Vec<Option<usize>>, LoadError> {
    match architecture {
        Architecture::Mistral => mistral_windows(f, n_layers),
        Architecture::Qwen2 | Architecture::Qwen3 => qwen_windows(f, n_layers),
        _ => Ok(vec![None; n_layers]),
    }
}

/// `sliding_window`: 4096 tokens if it is absent, none if it is `null`.
fn sliding_window(f: &Fields) -> Result<Option<usize>, LoadError> {
    const FIELD: &str = "sliding_window";
    let default = if f.contains(FIELD) { None } else { Some(4096) };
    Ok(f.integer(FIELD, 1..=MAX_POSITIONS)?.or(default))
}

/// The same in all layers; `layer_types` is not Mistral's and must not say otherwise.
fn mistral_windows(f: &Fields, n_layers: usize) -> Result<Vec<Option<usize>>, LoadError> {
    let window = sliding_window(f)?;
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    let same = |value: &&Value| value.as_array().is_some_and(|all| all.iter().all(|of| of == kind));
    if let Some(value) = f.get("layer_types").filter(|value| !same(value)) {
        return Err(unsupported(f, "layer_types", value, "layers of different kinds"));
    }
    Ok(vec![window; n_layers])
}

/// Where `use_sliding_window` says so: in the layers that `layer_types` names, or from `max_window_layers` on.
fn qwen_windows(f: &Fields, n_layers: usize) -> Result<Vec<Option<usize>>, LoadError> {
    let on = f.boolean("use_sliding_window")?.unwrap_or(false);
    let window = if on { sliding_window(f)? } else { None };
    let first = f.integer("max_window_layers", 0..=MAX_LAYERS)?.unwrap_or(28);
    let Some(kinds) = f.get("layer_types") else {
        return Ok((0..n_layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    let expected = || {
        let also = if window.is_some() { " or sliding_attention" } else { ", for want of a sliding window" };
        f.error("layer_types", format!("a list of {n_layers} names, each full_attention{also}"))
    };
    let kinds = kinds.as_array().filter(|kinds| kinds.len() == n_layers).ok_or_else(expected)?;
    let of = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        _ => Err(expected()),
    };
    kinds.iter().map(of).collect()
}
