//! Falcon: layer norms, fused queries, keys and values, a feed-forward block without gate; rotary embedding or ALiBi.

use std::collections::BTreeMap;

use kivi_kernels::Backend;

use crate::alibi::slopes;
use crate::config::{BlockOrder, ModelConfig};
use crate::loader::Loader;
use crate::model::{Layer, Model, ModelError, Norm};

const EMBED: &str = "transformer.word_embeddings.weight";
const NORM: &str = "transformer.ln_f";
const HEAD: &str = "lm_head.weight";

/// Reads the model that `config` describes.
pub(crate) fn load<B: Backend>(
    config: &ModelConfig,
    loader: &mut Loader<'_, B>,
) -> Result<Model<B>, ModelError<B::Error>> {
    // Old checkpoints carry the rotary frequencies; tied ones may carry the head a second time.
    let tied = config.tie_word_embeddings;
    loader.check(&tensors(config), |name| name.ends_with(".inv_freq") || tied && name == HEAD)?;
    Ok(Model {
        embed: loader.matrix(EMBED)?,
        layers: (0..config.n_layers).map(|i| layer(config, i, loader)).collect::<Result<_, _>>()?,
        norm: layer_norm(loader, NORM)?,
        head: if tied { None } else { Some(loader.matrix(HEAD)?) },
        alibi: if config.alibi {
            Some(loader.values(&slopes(config.n_heads, config.head_dim))?)
        } else {
            None
        },
        config: config.clone(),
        fingerprint: loader.fingerprint(config),
    })
}

fn layer<B: Backend>(
    config: &ModelConfig,
    index: usize,
    loader: &mut Loader<'_, B>,
) -> Result<Layer<B>, ModelError<B::Error>> {
    let name = |part: &str| format!("transformer.h.{index}.{part}");
    let (first, second) = norms(config.block_order);
    Ok(Layer {
        attention_norm: layer_norm(loader, &name(first))?,
        qkv: loader.reordered(
            &name("self_attention.query_key_value"),
            config.qkv_bias,
            &qkv_order(config),
        )?,
        qk_norm: None,
        output: loader.projection(&[name("self_attention.dense")], config.output_bias)?,
        mlp_norm: second.map(|second| layer_norm(loader, &name(second))).transpose()?,
        gate_up: loader.projection(&[name("mlp.dense_h_to_4h")], config.mlp_bias)?,
        down: loader.projection(&[name("mlp.dense_4h_to_h")], config.mlp_bias)?,
    })
}

fn layer_norm<B: Backend>(loader: &mut Loader<'_, B>, name: &str) -> Result<Norm<B>, ModelError<B::Error>> {
    Ok(Norm::Layer(loader.vector(&format!("{name}.weight"))?, loader.vector(&format!("{name}.bias"))?))
}

/// The norms before attention and before the feed-forward block.
fn norms(order: BlockOrder) -> (&'static str, Option<&'static str>) {
    match order {
        BlockOrder::Sequential => ("input_layernorm", Some("post_attention_layernorm")),
        BlockOrder::Parallel => ("input_layernorm", None),
        BlockOrder::ParallelTwoNorms => ("ln_attn", Some("ln_mlp")),
    }
}

/// Where each head of queries, then keys, then values lies in `query_key_value`: that has the query heads of each
/// key/value head, its key and its value, one after the other. One key/value head and as many as query heads are
/// cases of this.
fn qkv_order(config: &ModelConfig) -> Vec<usize> {
    let queries = config.n_heads / config.n_kv_heads;
    let group = queries + 2;
    let of_groups = |heads: std::ops::Range<usize>| {
        (0..config.n_kv_heads).flat_map(move |g| heads.clone().map(move |h| g * group + h))
    };
    of_groups(0..queries)
        .chain(of_groups(queries..queries + 1))
        .chain(of_groups(queries + 1..group))
        .collect()
}

/// Every tensor of the model and its shape.
fn tensors(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let (hidden, inner, heads) =
        (config.hidden_size, config.intermediate_size, config.n_heads * config.head_dim);
    let mut shapes = BTreeMap::from([(EMBED.to_owned(), vec![config.vocab_size, hidden])]);
    if !config.tie_word_embeddings {
        shapes.insert(HEAD.to_owned(), vec![config.vocab_size, hidden]);
    }
    let (first, second) = norms(config.block_order);
    let layers = (0..config.n_layers).map(|i| format!("transformer.h.{i}"));
    let of_layers = layers.clone().flat_map(|layer| [Some(first), second].map(|norm| (layer.clone(), norm)));
    let norms = of_layers.filter_map(|(layer, norm)| norm.map(|norm| format!("{layer}.{norm}")));
    for norm in norms.chain([NORM.to_owned()]) {
        shapes.extend(["weight", "bias"].map(|part| (format!("{norm}.{part}"), vec![hidden])));
    }
    let projections = [
        ("self_attention.query_key_value", config.qkv_width(), hidden, config.qkv_bias),
        ("self_attention.dense", hidden, heads, config.output_bias),
        ("mlp.dense_h_to_4h", inner, hidden, config.mlp_bias),
        ("mlp.dense_4h_to_h", hidden, inner, config.mlp_bias),
    ];
    for (layer, (part, rows, cols, bias)) in
        layers.flat_map(|layer| projections.map(|of| (layer.clone(), of)))
    {
        shapes.insert(format!("{layer}.{part}.weight"), vec![rows, cols]);
        if bias {
            shapes.insert(format!("{layer}.{part}.bias"), vec![rows]);
        }
    }
    shapes
}
