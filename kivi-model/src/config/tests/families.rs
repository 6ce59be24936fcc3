//! Mistral, Qwen 2 and 3, Falcon: their defaults, what differs from Llama, and what is refused.

use std::io::Write;

use super::*;

/// A config of a family with more fields.
fn of(model_type: &str, fields: &str) -> Result<ModelConfig, LoadError> {
    let comma = if fields.is_empty() { "" } else { "," };
    parse(&format!(r#"{{"model_type": "{model_type}"{comma} {fields} }}"#))
}

fn defaults(model_type: &str) -> ModelConfig {
    of(model_type, "").unwrap()
}

#[test]
fn absent_fields_have_the_defaults_of_each_family() {
    let c = defaults("mistral");
    assert_eq!((c.vocab_size, c.hidden_size, c.intermediate_size), (32000, 4096, 14336));
    assert_eq!((c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim), (32, 32, 8, 128));
    assert_eq!((c.max_position_embeddings, c.norm_eps, c.windows), (131_072, 1e-6, vec![Some(4096); 32]));
    assert_eq!((c.bos_token_id, c.eos_token_ids), (Some(1), vec![2]));
    assert!(!c.qkv_bias && !c.output_bias && !c.mlp_bias && !c.qk_norm && !c.tie_word_embeddings);

    let (two, three) = (defaults("qwen2"), defaults("qwen3"));
    for c in [&two, &three] {
        assert_eq!((c.vocab_size, c.hidden_size, c.intermediate_size), (151_936, 4096, 22016));
        assert_eq!((c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim), (32, 32, 32, 128));
        assert_eq!((c.max_position_embeddings, c.norm_eps, &c.windows), (32768, 1e-6, &vec![None; 32]));
        assert_eq!((c.bos_token_id, c.eos_token_ids.as_slice()), (None, [].as_slice()));
        assert!(!c.tie_word_embeddings && !c.mlp_bias);
    }
    assert_eq!((two.qkv_bias, two.output_bias, two.qk_norm), (true, false, false));
    assert_eq!((three.qkv_bias, three.output_bias, three.qk_norm), (false, false, true));

    let c = defaults("falcon");
    assert_eq!((c.vocab_size, c.hidden_size, c.intermediate_size), (65024, 4544, 4 * 4544));
    assert_eq!((c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim), (32, 71, 1, 64));
    assert_eq!((c.max_position_embeddings, c.norm_eps, c.windows), (2048, 1e-5, vec![None; 32]));
    assert_eq!((c.bos_token_id, c.eos_token_ids), (Some(11), vec![11]));
    assert_eq!((c.hidden_act, c.block_order), (Activation::Gelu, BlockOrder::Parallel));
    assert!(
        c.tie_word_embeddings && !c.qkv_bias && !c.output_bias && !c.mlp_bias && !c.alibi && !c.mlp_gated
    );
}

/// Qwen 3 has 128 channels a head whatever `hidden_size` is; Qwen 2 divides it.
#[test]
fn head_dim_is_given_or_divided() {
    let fields = r#""hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8"#;
    assert_eq!(of("qwen3", fields).unwrap().head_dim, 128);
    assert_eq!(of("qwen2", fields).unwrap().head_dim, 64);
    assert_eq!(of("mistral", &format!(r#"{fields}, "head_dim": 96"#)).unwrap().head_dim, 96);
}

#[test]
fn null_key_value_heads_are_as_many_as_query_heads() {
    for family in ["mistral", "qwen2", "qwen3"] {
        let fields = r#""num_attention_heads": 16, "num_key_value_heads": null"#;
        assert_eq!(of(family, fields).unwrap().n_kv_heads, 16, "{family}");
    }
}

#[test]
fn windows_are_of_the_layers_that_the_config_names() {
    let windows = |family: &str, fields: &str| {
        of(family, &format!(r#""num_hidden_layers": 3, {fields}"#)).unwrap().windows
    };
    let w = Some(64);
    assert_eq!(windows("mistral", r#""sliding_window": 64"#), [w; 3]);
    assert_eq!(windows("mistral", r#""sliding_window": null"#), [None; 3]);
    for qwen in ["qwen2", "qwen3"] {
        let of = |fields: &str| windows(qwen, &format!(r#""use_sliding_window": true, {fields}"#));
        assert_eq!(of(r#""sliding_window": 64, "max_window_layers": 2"#), [None, None, w]);
        assert_eq!(of(r#""sliding_window": 64, "max_window_layers": 0"#), [w; 3]);
        assert_eq!(of(r#""sliding_window": 64"#), [None; 3], "the first 28 layers have none");
        assert_eq!(of(r#""max_window_layers": 0"#), [Some(4096); 3]);
        assert_eq!(of(r#""sliding_window": null, "max_window_layers": 0"#), [None; 3]);
        let types = r#""layer_types": ["sliding_attention", "full_attention", "sliding_attention"]"#;
        assert_eq!(of(&format!(r#""sliding_window": 64, {types}"#)), [w, None, w]);
        assert_eq!(windows(qwen, r#""sliding_window": 64, "max_window_layers": 0"#), [None; 3]);
    }
}

/// The config of Mistral-7B-v0.3, with its values.
const MISTRAL_7B: &str = r#"{"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_cache": true, "vocab_size": 32768}"#;

#[test]
fn mistral_7b_is_read() {
    let c = parse(MISTRAL_7B).unwrap();
    assert_eq!((c.architecture, c.vocab_size, c.windows), (Architecture::Mistral, 32768, vec![None; 32]));
    assert_eq!((c.n_heads, c.n_kv_heads, c.head_dim, c.intermediate_size), (32, 8, 128, 14336));
    assert_eq!((c.rope.theta, c.norm_eps, c.dtype), (1e6, 1e-5, Some(WeightDtype::Bf16)));
}

/// The published file itself, from the folder that `KIVI_DATA` names.
#[test]
fn the_file_of_mistral_7b_is_read_alike() {
    let Some(data) = std::env::var_os("KIVI_DATA") else {
        // Not eprintln: the test harness would catch it.
        return drop(writeln!(std::io::stderr(), "skipped: KIVI_DATA is not set"));
    };
    let dir = std::path::PathBuf::from(data).join("tokenizers/mistral-7b-v0.3-hf");
    assert_eq!(ModelConfig::load(&Source::Dir(dir)).unwrap(), parse(MISTRAL_7B).unwrap());
}

#[test]
fn falcon_in_its_old_spelling_is_the_same() {
    let old = |model_type: &str, fields: &str| {
        parse(&format!(r#"{{"architectures": ["RWForCausalLM"], "model_type": "{model_type}", {fields} }}"#))
            .unwrap()
    };
    let sizes = r#""n_layer": 3, "n_head": 8, "hidden_size": 256, "alibi": false, "bias": false"#;
    let new = r#""num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 256"#;
    let seven = old("RefinedWebModel", &format!(r#"{sizes}, "multi_query": true, "parallel_attn": true"#));
    assert_eq!(seven, of("falcon", new).unwrap());
    let forty = old("RefinedWeb", &format!(r#"{sizes}, "n_head_kv": 2, "parallel_attn": true"#));
    let grouped = format!(r#"{new}, "new_decoder_architecture": true, "num_kv_heads": 2"#);
    assert_eq!(forty, of("falcon", &grouped).unwrap());
    let rw =
        old("RefinedWebModel", r#""n_layer": 3, "n_head": 8, "n_embed": 256, "alibi": true, "bias": true"#);
    let named = r#""alibi": true, "bias": true, "multi_query": false, "parallel_attn": false"#;
    assert_eq!(rw, of("falcon", &format!("{new}, {named}")).unwrap());
}

#[test]
fn falcons_fields_say_how_its_blocks_run() {
    let order = |fields: &str| {
        let c = of("falcon", &format!(r#""num_attention_heads": 8, "n_embed": 256, {fields}"#)).unwrap();
        (c.block_order, c.n_kv_heads)
    };
    use BlockOrder::{Parallel, ParallelTwoNorms, Sequential};
    assert_eq!(order(r#""num_kv_heads": 8"#), (Parallel, 1), "multi_query wins");
    assert_eq!(order(r#""multi_query": false"#), (Parallel, 8));
    assert_eq!(order(r#""multi_query": null, "parallel_attn": null"#), (Sequential, 8));
    let new = r#""new_decoder_architecture": true"#;
    assert_eq!(order(new), (ParallelTwoNorms, 8));
    assert_eq!(order(&format!(r#"{new}, "num_kv_heads": 2, "multi_query": true"#)), (ParallelTwoNorms, 2));
    assert_eq!(order(&format!(r#"{new}, "num_ln_in_parallel_attn": 1"#)), (Parallel, 8));
    assert_eq!(order(&format!(r#"{new}, "num_ln_in_parallel_attn": null"#)), (ParallelTwoNorms, 8));
}

#[test]
fn what_a_family_does_not_have_is_refused_by_name() {
    for (family, field) in [
        ("mistral", r#""layer_types": ["full_attention"]"#),
        ("mistral", r#""num_local_experts": 8"#),
        ("mistral", r#""quantization_config": {"bits": 4}"#),
        ("qwen2", r#""use_mrope": true"#),
        ("qwen2", r#""dual_chunk_attention_config": {"chunk_size": 262144}"#),
        ("qwen3", r#""num_experts": 128"#),
        ("qwen3", r#""partial_rotary_factor": 0.5"#),
        ("falcon", r#""sliding_window": 4096"#),
        ("falcon", r#""apply_residual_connection_post_layernorm": true"#),
        ("llama", r#""alibi": true"#),
    ] {
        let message = of(family, field).unwrap_err().to_string();
        let name = field.split('"').nth(1).unwrap();
        assert!(message.starts_with(&format!("config.json: {name}: ")), "{message}");
        assert!(message.contains("is not supported"), "{message}");
    }
    for (family, field) in [
        ("mistral", r#""sliding_window": null, "layer_types": ["full_attention"]"#),
        ("mistral", r#""layer_types": ["sliding_attention", "sliding_attention"]"#),
        ("qwen2", r#""use_mrope": false"#),
        ("falcon", r#""alibi": false, "apply_residual_connection_post_layernorm": false"#),
    ] {
        of(family, field).unwrap_or_else(|error| panic!("{family}: {field}: {error}"));
    }
}

#[test]
fn each_wrong_field_is_named() {
    let qwen = r#""use_sliding_window": true, "num_hidden_layers": 2"#;
    for (family, field, text) in [
        ("mistral", "sliding_window", r#""sliding_window": 0"#.to_owned()),
        ("mistral", "sliding_window", r#""sliding_window": "wide""#.to_owned()),
        ("mistral", "num_key_value_heads", r#""num_attention_heads": 4, "head_dim": 64"#.to_owned()),
        ("qwen2", "use_sliding_window", r#""use_sliding_window": 1"#.to_owned()),
        ("qwen2", "max_window_layers", r#""max_window_layers": -1"#.to_owned()),
        ("qwen2", "sliding_window", format!(r#"{qwen}, "sliding_window": -5"#)),
        ("qwen3", "layer_types", format!(r#"{qwen}, "layer_types": ["full_attention"]"#)),
        (
            "qwen3",
            "layer_types",
            format!(r#"{qwen}, "layer_types": ["full_attention", "chunked_attention"]"#),
        ),
        ("qwen3", "layer_types", format!(r#"{qwen}, "layer_types": "full_attention""#)),
        (
            "qwen3",
            "layer_types",
            r#""num_hidden_layers": 1, "layer_types": ["sliding_attention"]"#.to_owned(),
        ),
        ("qwen3", "attention_bias", r#""attention_bias": "yes""#.to_owned()),
        ("qwen3", "head_dim", r#""head_dim": 127"#.to_owned()),
        ("falcon", "hidden_size", r#""hidden_size": 100"#.to_owned()),
        ("falcon", "n_embed", r#""n_embed": 100"#.to_owned()),
        ("falcon", "n_head", r#""n_head": 0"#.to_owned()),
        ("falcon", "activation", r#""activation": "mish""#.to_owned()),
        ("falcon", "multi_query", r#""multi_query": "yes""#.to_owned()),
        ("falcon", "num_kv_heads", r#""multi_query": false, "num_kv_heads": 1"#.to_owned()),
        ("falcon", "num_kv_heads", r#""new_decoder_architecture": true, "num_kv_heads": 5"#.to_owned()),
        ("falcon", "n_head_kv", r#""new_decoder_architecture": true, "n_head_kv": 5"#.to_owned()),
        ("falcon", "parallel_attn", r#""new_decoder_architecture": true, "parallel_attn": false"#.to_owned()),
        ("falcon", "num_ln_in_parallel_attn", r#""num_ln_in_parallel_attn": 2"#.to_owned()),
        ("falcon", "num_ln_in_parallel_attn", r#""num_ln_in_parallel_attn": 3"#.to_owned()),
        ("falcon", "layer_norm_epsilon", r#""layer_norm_epsilon": -1"#.to_owned()),
    ] {
        let message = of(family, &text).unwrap_err().to_string();
        assert!(message.starts_with(&format!("config.json: {field}: expected ")), "{family}: {message}");
        assert!(message.contains(", found ") && !message.contains('\n'), "{message}");
    }
}
