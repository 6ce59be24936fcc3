//! Llama 1, 2, 3, 3.1 and 3.2: RMS norm, rotary embedding, grouped queries, gated feed-forward. Mistral, Qwen 2 and
//! Qwen 3 have the same tensors under the same names, and differ in windows, biases and norms of queries and keys.

use std::collections::BTreeMap;

use kivi_kernels::Backend;

use crate::config::ModelConfig;
use crate::loader::Loader;
use crate::model::{Layer, Model, ModelError, Norm, QkNorm};

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
        norm: Norm::Rms(loader.vector(NORM)?),
        head: if tied { None } else { Some(loader.matrix(HEAD)?) },
        alibi: None,
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
    let qk_norm = match config.qk_norm {
        true => Some(QkNorm {
            query: loader.vector(&name("self_attn.q_norm.weight"))?,
            key: loader.vector(&name("self_attn.k_norm.weight"))?,
        }),
        false => None,
    };
    let qkv = names(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
    Ok(Layer {
        attention_norm: Norm::Rms(loader.vector(&name("input_layernorm.weight"))?),
        qkv: loader.projection(&qkv, config.qkv_bias)?,
        qk_norm,
        output: loader.projection(&names(&["self_attn.o_proj"]), config.output_bias)?,
        mlp_norm: Some(Norm::Rms(loader.vector(&name("post_attention_layernorm.weight"))?)),
        gate_up: loader.projection(&names(&["mlp.gate_proj", "mlp.up_proj"]), config.mlp_bias)?,
        down: loader.projection(&names(&["mlp.down_proj"]), config.mlp_bias)?,
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
        ("self_attn.q_proj", q, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q, config.output_bias),
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    ];
    for i in 0..config.n_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes.insert(format!("model.layers.{i}.{norm}.weight"), vec![hidden]);
        }
        for norm in ["q_norm", "k_norm"].into_iter().filter(|_| config.qk_norm) {
            shapes.insert(format!("model.layers.{i}.self_attn.{norm}.weight"), vec![config.head_dim]);
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
