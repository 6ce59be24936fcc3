//! The fields of Falcon, in transformers' spelling and in that of the repositories before it had Falcon.

use std::ops::RangeInclusive;

use super::*;

/// Reads the config of a Falcon model; `model_type` is one of `ARCHITECTURES`.
pub(super) fn config(f: &Fields, model_type: &str) -> Result<ModelConfig, LoadError> {
    let (hidden, hidden_size) = either(f, ["n_embed", "hidden_size"], 1..=MAX_WIDTH, 4544)?;
    let (heads, n_heads) = either(f, ["num_attention_heads", "n_head"], 1..=MAX_HEADS, 71)?;
    let (_, n_layers) = either(f, ["num_hidden_layers", "n_layer"], 1..=MAX_LAYERS, 32)?;
    let head_dim = divided_head_dim(f, (hidden, hidden_size), (heads, n_heads))?;
    let max_position_embeddings = f.integer("max_position_embeddings", 1..=MAX_POSITIONS)?.unwrap_or(2048);
    // The repository of Falcon-40B had no field for its architecture.
    let grouped = flag(f, "new_decoder_architecture", model_type == "RefinedWeb")?;
    let (alibi, bias) = (flag(f, "alibi", false)?, flag(f, "bias", false)?);
    let rope = match alibi {
        true => RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default },
        false => rope_fields::rope(f, max_position_embeddings, head_dim)?,
    };
    Ok(ModelConfig {
        architecture: Architecture::Falcon,
        vocab_size: f.integer("vocab_size", 1..=MAX_VOCAB)?.unwrap_or(65024),
        hidden_size,
        intermediate_size: f.integer("ffn_hidden_size", 1..=4 * MAX_WIDTH)?.unwrap_or(4 * hidden_size),
        n_layers,
        n_heads,
        n_kv_heads: n_kv_heads(f, model_type, grouped, n_heads)?,
        head_dim,
        max_position_embeddings,
        windows: vec![None; n_layers],
        norm_eps: f.number("layer_norm_epsilon", 0.0..=1.0)?.unwrap_or(1e-5),
        hidden_act: activation(f, "activation", "gelu")?,
        tie_word_embeddings: f.boolean("tie_word_embeddings")?.unwrap_or(true),
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        mlp_gated: false,
        qk_norm: false,
        block_order: block_order(f, model_type, grouped)?,
        alibi,
        rope,
        bos_token_id: token_ids(f, "bos_token_id", Some(11))?.first().copied(),
        eos_token_ids: token_ids(f, "eos_token_id", Some(11))?,
        dtype: dtype(f)?,
    })
}

/// A number that has two names, of which the first wins, and the name that it has here.
fn either(
    f: &Fields,
    names: [&'static str; 2],
    range: RangeInclusive<usize>,
    default: usize,
) -> Result<(&'static str, usize), LoadError> {
    let name = names.into_iter().find(|name| f.get(name).is_some()).unwrap_or(names[0]);
    Ok((name, f.integer(name, range)?.unwrap_or(default)))
}

/// `true` or `false`; an explicit `null` is `false`, as it is in Python.
fn flag(f: &Fields, field: &str, default: bool) -> Result<bool, LoadError> {
    Ok(f.boolean(field)?.unwrap_or(default && !f.contains(field)))
}

/// What `multi_query` and `parallel_attn` are where the file does not have them.
fn is_set_by_default(model_type: &str) -> bool {
    model_type == "falcon"
}

/// Key/value heads: a given number, one, or as many as query heads.
fn n_kv_heads(f: &Fields, model_type: &str, grouped: bool, n_heads: usize) -> Result<usize, LoadError> {
    let (name, n) = either(f, ["num_kv_heads", "n_head_kv"], 1..=MAX_HEADS, n_heads)?;
    if grouped && !n_heads.is_multiple_of(n) {
        return Err(f.error(name, format!("a divisor of the number of attention heads ({n_heads})")));
    }
    if grouped {
        return Ok(n);
    }
    if flag(f, "multi_query", is_set_by_default(model_type))? {
        return Ok(1);
    }
    if n != n_heads {
        let expected = format!("the number of attention heads ({n_heads}) where multi_query is false");
        return Err(f.error(name, expected));
    }
    Ok(n)
}

/// One norm or two, and whether the blocks run beside each other.
fn block_order(f: &Fields, model_type: &str, grouped: bool) -> Result<BlockOrder, LoadError> {
    const NORMS: &str = "num_ln_in_parallel_attn";
    let parallel = flag(f, "parallel_attn", grouped || is_set_by_default(model_type))?;
    let norms = f.integer(NORMS, 1..=2)?;
    if grouped && !parallel {
        return Err(f.error("parallel_attn", "true where new_decoder_architecture is"));
    }
    match (grouped, parallel, norms) {
        (_, false, _) => Ok(BlockOrder::Sequential),
        (true, true, None | Some(2)) => Ok(BlockOrder::ParallelTwoNorms),
        (false, true, Some(2)) => Err(f.error(NORMS, "1 where new_decoder_architecture is false")),
        (_, true, _) => Ok(BlockOrder::Parallel),
    }
}
