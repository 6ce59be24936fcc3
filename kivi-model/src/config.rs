//! `config.json`: the only place that knows Hugging Face's names for the parameters of a model.
//!
//! Old and new spellings are read alike. An absent field has the default of transformers'
//! `LlamaConfig`. Fields that do not change the mathematics are ignored; a field that does, and is
//! not supported, is an error that names it: wrong text is worse than no text.

mod rope_fields;

use serde_json::Value;

use kivi_kernels::ops::Activation;

use crate::error::{LoadError, clean};
use crate::json::{Fields, show};
use crate::rope::RopeConfig;
use crate::source::Source;
use crate::weights::WeightDtype;

/// Largest `config.json` that is read.
const MAX_BYTES: u64 = 8 << 20;
/// Caps far above any model that exists; a value above them is a damaged file, not a large model.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 512;
const MAX_POSITIONS: usize = 1 << 24;

/// A model family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1, 2, 3, 3.1, 3.2 and models of the same form.
    Llama,
}

/// The families by the names that `architectures` and `model_type` have for them.
const ARCHITECTURES: &[(&str, &str, Architecture)] = &[("LlamaForCausalLM", "llama", Architecture::Llama)];

/// Hugging Face's names for activations.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
];

/// What is known about a model before its weights are read; valid by construction of [`ModelConfig::load`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Channels of a head; even.
    pub head_dim: usize,
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMS norms.
    pub norm_eps: f64,
    /// Non-linearity of the feed-forward block.
    pub hidden_act: Activation,
    /// Whether the embedding is the output head too.
    pub tie_word_embeddings: bool,
    /// Whether the four projections of attention have a bias.
    pub attention_bias: bool,
    /// Whether the three projections of the feed-forward block have a bias.
    pub mlp_bias: bool,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// The token that a text starts with, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The dtype that the file states; the tensors have the last word.
    pub dtype: Option<WeightDtype>,
}

impl ModelConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// The file is missing or invalid, the architecture is unknown, a field has an impossible value or
    /// asks for mathematics that is not supported.
    pub fn load(source: &Source) -> Result<ModelConfig, LoadError> {
        let hint = "is this the directory of a checkpoint in the Hugging Face layout?";
        source.check()?;
        let bytes = source.read_required("config.json", MAX_BYTES, hint)?;
        ModelConfig::from_fields(&Fields::parse(source.place("config.json"), &bytes)?)
    }

    fn from_fields(f: &Fields) -> Result<ModelConfig, LoadError> {
        let architecture = architecture(f)?;
        refuse_unsupported(f)?;
        let hidden_size = f.integer("hidden_size", 1..=MAX_WIDTH)?.unwrap_or(4096);
        let n_heads = f.integer("num_attention_heads", 1..=MAX_HEADS)?.unwrap_or(32);
        let n_kv_heads = f.integer("num_key_value_heads", 1..=MAX_HEADS)?.unwrap_or(n_heads);
        if !n_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({n_heads})");
            return Err(f.error("num_key_value_heads", expected));
        }
        let head_dim = head_dim(f, hidden_size, n_heads)?;
        let max_position_embeddings =
            f.integer("max_position_embeddings", 1..=MAX_POSITIONS)?.unwrap_or(2048);
        Ok(ModelConfig {
            architecture,
            vocab_size: f.integer("vocab_size", 1..=MAX_VOCAB)?.unwrap_or(32000),
            hidden_size,
            intermediate_size: f.integer("intermediate_size", 1..=MAX_WIDTH)?.unwrap_or(11008),
            n_layers: f.integer("num_hidden_layers", 1..=MAX_LAYERS)?.unwrap_or(32),
            n_heads,
            n_kv_heads,
            head_dim,
            max_position_embeddings,
            norm_eps: f.number("rms_norm_eps", 0.0..=1.0)?.unwrap_or(1e-6),
            hidden_act: activation(f)?,
            tie_word_embeddings: f.boolean("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: f.boolean("attention_bias")?.unwrap_or(false),
            mlp_bias: f.boolean("mlp_bias")?.unwrap_or(false),
            rope: rope_fields::rope(f, max_position_embeddings, head_dim)?,
            bos_token_id: token_ids(f, "bos_token_id", 1)?.first().copied(),
            eos_token_ids: token_ids(f, "eos_token_id", 2)?,
            dtype: dtype(f)?,
        })
    }
}

/// The family, by `architectures` and `model_type`; where both are given they must agree.
fn architecture(f: &Fields) -> Result<Architecture, LoadError> {
    let model_type = f.string("model_type")?;
    let class = match f.get("architectures") {
        None => None,
        Some(Value::Array(names)) => names.first().and_then(Value::as_str),
        Some(_) => return Err(f.error("architectures", "a list of names")),
    };
    let known = ARCHITECTURES.iter().find(|(name, kind, _)| match (class, model_type) {
        (Some(class), Some(model_type)) => class == *name && model_type == *kind,
        (Some(class), None) => class == *name,
        (None, Some(model_type)) => model_type == *kind,
        (None, None) => false,
    });
    known.map(|(_, _, architecture)| *architecture).ok_or_else(|| {
        let found = match (class, model_type) {
            (None, None) => "(none is named)".to_string(),
            (None, Some(model_type)) => format!("with model_type {}", clean(model_type)),
            (Some(class), None) => clean(class),
            (Some(class), Some(t)) => {
                format!("{} with model_type {}", clean(class), clean(t))
            }
        };
        let known = ARCHITECTURES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
        LoadError::UnknownArchitecture { file: f.file().into(), found, known }
    })
}

/// Refuses fields that change the mathematics.
fn refuse_unsupported(f: &Fields) -> Result<(), LoadError> {
    let off = |value: &Value| matches!(value, Value::Bool(false)) || value.as_f64() == Some(0.0);
    let one = |value: &Value| value.as_f64() == Some(1.0);
    let all_full =
        |value: &Value| value.as_array().is_some_and(|all| all.iter().all(|kind| kind == "full_attention"));
    let window_off = f.boolean("use_sliding_window")? == Some(false);
    for (field, value) in f.iter() {
        let (neutral, why) = match field {
            "sliding_window" => (window_off || off(value), "attention over a sliding window"),
            "quantization_config" | "compression_config" => (false, "quantized weights"),
            "partial_rotary_factor" | "rope_partial_factor" => (one(value), "rotation of part of a head"),
            "layer_types" => (all_full(value), "layers of different kinds"),
            "num_local_experts" | "num_experts" | "n_routed_experts" => (off(value), "mixture of experts"),
            "attn_logit_softcapping" | "final_logit_softcapping" => (off(value), "capped logits"),
            "clip_qkv" => (off(value), "clipped projections"),
            "alibi" => (off(value), "linear attention biases"),
            "use_qk_norm" | "qk_layernorm" => (off(value), "norms on queries and keys"),
            "is_encoder_decoder" | "add_cross_attention" => (off(value), "attention to an encoder"),
            _ => (true, ""),
        };
        if !neutral {
            return Err(unsupported(f, field, value, why));
        }
    }
    Ok(())
}

fn unsupported(f: &Fields, field: &str, value: &Value, why: &'static str) -> LoadError {
    LoadError::UnsupportedField { file: f.file().into(), field: f.name(field), found: show(value), why }
}

/// `head_dim`, or what is left of `hidden_size` for each head.
fn head_dim(f: &Fields, hidden_size: usize, n_heads: usize) -> Result<usize, LoadError> {
    let expected = format!("an even number from 2 to {MAX_HEAD_DIM}");
    if let Some(head_dim) = f.integer("head_dim", 2..=MAX_HEAD_DIM)? {
        return if head_dim.is_multiple_of(2) { Ok(head_dim) } else { Err(f.error("head_dim", expected)) };
    }
    if !hidden_size.is_multiple_of(n_heads) {
        let expected = format!("a multiple of num_attention_heads ({n_heads}) where head_dim is not given");
        return Err(f.error("hidden_size", expected));
    }
    let head_dim = hidden_size / n_heads;
    if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
        let expected = format!("hidden_size / num_attention_heads to be {expected} (it is {head_dim})");
        return Err(f.error("hidden_size", expected));
    }
    Ok(head_dim)
}

fn activation(f: &Fields) -> Result<Activation, LoadError> {
    let name = f.string("hidden_act")?.unwrap_or("silu");
    let found = ACTIVATIONS.iter().find(|(known, _)| *known == name);
    found.map(|(_, activation)| *activation).ok_or_else(|| {
        let names = ACTIVATIONS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        f.error("hidden_act", format!("one of {names}"))
    })
}

/// Token ids; an absent field has Llama's default, an explicit `null` means none.
fn token_ids(f: &Fields, field: &str, default: u32) -> Result<Vec<u32>, LoadError> {
    if !f.contains(field) {
        return Ok(vec![default]);
    }
    Ok(f.token_ids(field)?.unwrap_or_default())
}

/// The stated dtype, under its new or old name; one that is not supported shows at the tensors.
fn dtype(f: &Fields) -> Result<Option<WeightDtype>, LoadError> {
    let name = match f.string("dtype")? {
        Some(name) => Some(name),
        None => f.string("torch_dtype")?,
    };
    Ok(match name {
        Some("float32") => Some(WeightDtype::F32),
        Some("float16") => Some(WeightDtype::F16),
        Some("bfloat16") => Some(WeightDtype::Bf16),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
