//! `config.json`: the only place that knows Hugging Face's names for the parameters of a model.
//!
//! Old and new spellings are read alike. An absent field has transformers' default for the family.
//! Fields that do not change the mathematics are ignored; a field that does, and is not supported,
//! is an error that names it: wrong text is worse than no text.

mod falcon_fields;
mod llama_fields;
mod refusals;
mod rope_fields;

use serde_json::Value;

use kivi_kernels::ops::Activation;

use crate::error::{LoadError, clean};
use crate::json::{Fields, show};
use crate::rope::{RopeConfig, RopeScaling};
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
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: Llama with biases on queries, keys and values, and a window in some layers.
    Qwen2,
    /// Qwen 3: Llama with norms on queries and keys, and a window in some layers.
    Qwen3,
    /// Falcon: layer norms, a feed-forward block without gate, beside attention or after it.
    Falcon,
}

/// How attention and the feed-forward block of a layer follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOrder {
    /// `h += attention(norm(h)); h += mlp(norm(h))`.
    Sequential,
    /// `n = norm(h); h += attention(n) + mlp(n)`.
    Parallel,
    /// `h += attention(norm(h)) + mlp(norm'(h))`.
    ParallelTwoNorms,
}

/// The families by the names that `architectures` and `model_type` have for them.
const ARCHITECTURES: &[(&str, &str, Architecture)] = &[
    ("LlamaForCausalLM", "llama", Architecture::Llama),
    ("MistralForCausalLM", "mistral", Architecture::Mistral),
    ("Qwen2ForCausalLM", "qwen2", Architecture::Qwen2),
    ("Qwen3ForCausalLM", "qwen3", Architecture::Qwen3),
    ("FalconForCausalLM", "falcon", Architecture::Falcon),
    // Falcon, as its repositories named it before transformers had it: 7B and smaller, and 40B.
    ("RWForCausalLM", "RefinedWebModel", Architecture::Falcon),
    ("RWForCausalLM", "RefinedWeb", Architecture::Falcon),
];

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
    /// How many keys a token sees in each layer, itself included; `None` is all of them.
    pub windows: Vec<Option<usize>>,
    /// Added to the mean square in RMS norms, to the variance in layer norms.
    pub norm_eps: f64,
    /// Non-linearity of the feed-forward block.
    pub hidden_act: Activation,
    /// Whether the embedding is the output head too.
    pub tie_word_embeddings: bool,
    /// Whether the projections to queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the projection behind attention has a bias.
    pub output_bias: bool,
    /// Whether the projections of the feed-forward block have a bias.
    pub mlp_bias: bool,
    /// Whether the activation is multiplied with a second projection.
    pub mlp_gated: bool,
    /// Whether each head of queries and keys has an RMS norm before it is rotated.
    pub qk_norm: bool,
    /// How the blocks of a layer follow each other.
    pub block_order: BlockOrder,
    /// Whether positions enter as linear biases ([`crate::alibi`]) and not by rotation.
    pub alibi: bool,
    /// The rotary embedding; not used with `alibi`.
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
        ModelConfig::parse(&source.place("config.json"), &bytes)
    }

    /// Reads and checks the bytes of a `config.json`, which messages call `file`.
    ///
    /// # Errors
    /// As [`ModelConfig::load`], but for a file that is missing.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<ModelConfig, LoadError> {
        ModelConfig::from_fields(&Fields::parse(file.to_owned(), bytes)?)
    }

    fn from_fields(f: &Fields) -> Result<ModelConfig, LoadError> {
        let (model_type, architecture) = architecture(f)?;
        refusals::check(f, architecture)?;
        match architecture {
            Architecture::Falcon => falcon_fields::config(f, model_type),
            _ => llama_fields::config(f, architecture),
        }
    }

    /// Queries, keys and values of a token, all heads: their columns when stacked.
    pub(crate) fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }
}

/// The family and its `model_type`, by `architectures` and `model_type`; where both are given they must agree.
fn architecture(f: &Fields) -> Result<(&'static str, Architecture), LoadError> {
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
    known.map(|(_, model_type, architecture)| (*model_type, *architecture)).ok_or_else(|| {
        let found = match (class, model_type) {
            (None, None) => "(none is named)".to_string(),
            (None, Some(model_type)) => format!("with model_type {}", clean(model_type)),
            (Some(class), None) => clean(class),
            (Some(class), Some(t)) => {
                format!("{} with model_type {}", clean(class), clean(t))
            }
        };
        let mut known: Vec<_> = ARCHITECTURES.iter().map(|(name, ..)| *name).collect();
        known.dedup();
        let known = known.join(", ");
        LoadError::UnknownArchitecture { file: f.file().into(), found, known }
    })
}

fn unsupported(f: &Fields, field: &str, value: &Value, why: &'static str) -> LoadError {
    LoadError::UnsupportedField { file: f.file().into(), field: f.name(field), found: show(value), why }
}

/// Channels of a head where `hidden_size` is divided among `n_heads` of them; the fields by their names in the file.
fn divided_head_dim(
    f: &Fields,
    (hidden, hidden_size): (&str, usize),
    (heads, n_heads): (&str, usize),
) -> Result<usize, LoadError> {
    if !hidden_size.is_multiple_of(n_heads) {
        let expected = format!("a multiple of {heads} ({n_heads}) where head_dim is not given");
        return Err(f.error(hidden, expected));
    }
    let head_dim = hidden_size / n_heads;
    if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
        let expected =
            format!("{hidden} / {heads} to be an even number from 2 to {MAX_HEAD_DIM} (it is {head_dim})");
        return Err(f.error(hidden, expected));
    }
    Ok(head_dim)
}

fn activation(f: &Fields, field: &str, default: &str) -> Result<Activation, LoadError> {
    let name = f.string(field)?.unwrap_or(default);
    let found = ACTIVATIONS.iter().find(|(known, _)| *known == name);
    found.map(|(_, activation)| *activation).ok_or_else(|| {
        let names = ACTIVATIONS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        f.error(field, format!("one of {names}"))
    })
}

/// Token ids; an absent field has the family's default, an explicit `null` means none.
fn token_ids(f: &Fields, field: &str, default: Option<u32>) -> Result<Vec<u32>, LoadError> {
    if !f.contains(field) {
        return Ok(default.into_iter().collect());
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
