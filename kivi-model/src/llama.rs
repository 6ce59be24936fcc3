//! Llama 1, 2, 3, 3.1 and 3.2: RMS norm, rotary embedding, grouped queries, gated feed-forward.

use std::collections::BTreeMap;

use kivi_kernels::Backend;

use crate::config::ModelConfig;
use crate::loader::Loader;
use crate::model::{Layer, Model, ModelError};

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Reads the model that `config` describes.
pub(crate) fn load<B: Backend>(
    config: &ModelConfig,
    loader: &mut Loader<'_, B>,
) -> Result<Model<B>, ModelError<B::Error>> {
    // Old checkpoints carry the rotary frequencies; tied ones may carry the head a second time.
    let tied = config.tie_word_embeddings;
    loader.check(&tensors(config), |name| name.ends_with(".rotary_emb.inv_freq") || tied && name == HEAD)?;
    Ok(Model {
        embed: loader.matrix(EMBED)?,
        layers: (0..config.n_layers).map(|i| layer(config, i, loader)).collect::<Result<_, _>>()?,
        norm: loader.vector(NORM)?,
        head: if tied { None } else { Some(loader.matrix(HEAD)?) },
        config: config.clone(),
        fingerprint: loader.fingerprint(config),
    })
}

fn layer<B: Backend>(
    config: &ModelConfig,
    index: usize,
    loader: &mut Loader<'_, B>,
) -> Result<Layer<B>, ModelError<B::Error>> {
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let names = |parts: &[&str]| parts.iter().map(|part| name(part)).collect::<Vec<_>>();
    let (attention, mlp) = (config.attention_bias, config.mlp_bias);
    Ok(Layer {
        attention_norm: loader.vector(&name("input_layernorm.weight"))?,
        qkv: loader
            .projection(&names(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), attention)?,
        output: loader.projection(&names(&["self_attn.o_proj"]), attention)?,
        mlp_norm: loader.vector(&name("post_attention_layernorm.weight"))?,
        gate_up: loader.projection(&names(&["mlp.gate_proj", "mlp.up_proj"]), mlp)?,
        down: loader.projection(&names(&["mlp.down_proj"]), mlp)?,
    })
}

/// Every tensor of the model and its shape.
fn tensors(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let mut shapes = BTreeMap::from([
        (EMBED.to_owned(), vec![config.vocab_size, hidden]),
        (NORM.to_owned(), vec![hidden]),
    ]);
    if !config.tie_word_embeddings {
        shapes.insert(HEAD.to_owned(), vec![config.vocab_size, hidden]);
    }
    let projections = [
        ("self_attn.q_proj", q, hidden, config.attention_bias),
        ("self_attn.k_proj", kv, hidden, config.attention_bias),
        ("self_attn.v_proj", kv, hidden, config.attention_bias),
        ("self_attn.o_proj", hidden, q, config.attention_bias),
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    ];
    for i in 0..config.n_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes.insert(format!("model.layers.{i}.{norm}.weight"), vec![hidden]);
        }
        for (part, rows, cols, bias) in projections {
            shapes.insert(format!("model.layers.{i}.{part}.weight"), vec![rows, cols]);
            if bias {
                shapes.insert(format!("model.layers.{i}.{part}.bias"), vec![rows]);
            }
        }
    }
    shapes
}
