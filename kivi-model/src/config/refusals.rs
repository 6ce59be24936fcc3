//! Fields that change the mathematics and are not supported.

use serde_json::Value;

use super::{Architecture, unsupported};
use crate::error::LoadError;
use crate::json::Fields;

/// Refuses fields that change the mathematics, unless they have a value that does not, or the family reads them.
pub(super) fn check(f: &Fields, architecture: Architecture) -> Result<(), LoadError> {
    let window_off = f.boolean("use_sliding_window")? == Some(false);
    for (field, value) in f.iter().filter(|(field, _)| !is_read(architecture, field)) {
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
            "use_mrope" => (off(value), "positions with several axes"),
            "dual_chunk_attention_config" => (false, "attention over two kinds of chunks"),
            "apply_residual_connection_post_layernorm" => (off(value), "residual connections from a norm"),
            "is_encoder_decoder" | "add_cross_attention" => (off(value), "attention to an encoder"),
            _ => (true, ""),
        };
        if !neutral {
            return Err(unsupported(f, field, value, why));
        }
    }
    Ok(())
}

/// Whether the family has a meaning for a field that others refuse.
fn is_read(architecture: Architecture, field: &str) -> bool {
    match architecture {
        Architecture::Llama => false,
        Architecture::Mistral | Architecture::Qwen2 | Architecture::Qwen3 => {
            matches!(field, "sliding_window" | "layer_types")
        }
        Architecture::Falcon => field == "alibi",
    }
}

fn off(value: &Value) -> bool {
    matches!(value, Value::Bool(false)) || value.as_f64() == Some(0.0)
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn all_full(value: &Value) -> bool {
    value.as_array().is_some_and(|all| all.iter().all(|kind| kind == "full_attention"))
}
