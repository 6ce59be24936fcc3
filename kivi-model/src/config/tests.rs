//! What `config.json` may say, in both spellings, and what is refused.

use super::*;
use crate::rope::RopeScaling;

fn parse(text: &str) -> Result<ModelConfig, LoadError> {
    ModelConfig::from_fields(&Fields::parse("config.json".into(), text.as_bytes())?)
}

/// A config of the smallest kind with more fields.
fn with(fields: &str) -> Result<ModelConfig, LoadError> {
    parse(&format!(r#"{{"architectures": ["LlamaForCausalLM"], {fields} }}"#))
}

fn refusal(fields: &str) -> String {
    with(fields).unwrap_err().to_string()
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let c = parse(r#"{"model_type": "llama"}"#).unwrap();
    assert_eq!((c.vocab_size, c.hidden_size, c.intermediate_size), (32000, 4096, 11008));
    assert_eq!((c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim), (32, 32, 32, 128));
    assert_eq!((c.max_position_embeddings, c.norm_eps), (2048, 1e-6));
    assert_eq!((c.bos_token_id, c.eos_token_ids, c.dtype), (Some(1), vec![2], None));
    assert_eq!(c.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default });
    assert!(!c.tie_word_embeddings && !c.qkv_bias && !c.output_bias && !c.mlp_bias);
    assert_eq!(c.windows, [None; 32]);
    assert_eq!(c.hidden_act, Activation::Silu);
}

#[test]
fn null_means_absent_except_for_token_ids() {
    let c =
        with(r#""num_key_value_heads": null, "head_dim": null, "rope_scaling": null, "bos_token_id": null"#);
    let c = c.unwrap();
    assert_eq!((c.n_kv_heads, c.head_dim, c.bos_token_id), (32, 128, None));
}

#[test]
fn old_and_new_spellings_are_alike() {
    let old = with(
        r#""rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}, "torch_dtype": "bfloat16""#,
    );
    let new = with(
        r#""rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}, "dtype": "bfloat16""#,
    );
    assert_eq!(old.as_ref().unwrap().rope.scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(old.unwrap(), new.unwrap());
}

#[test]
fn names_of_activations_are_mapped() {
    for (name, activation) in [("swish", Activation::Silu), ("gelu_pytorch_tanh", Activation::GeluTanh)] {
        assert_eq!(with(&format!(r#""hidden_act": "{name}""#)).unwrap().hidden_act, activation);
    }
    assert!(refusal(r#""hidden_act": "mish""#).contains("hidden_act: expected one of silu, swish"));
}

#[test]
fn unknown_names_list_the_known_ones() {
    for text in [
        r#"{"architectures": ["FooForCausalLM"]}"#,
        r#"{"architectures": ["LlamaForCausalLM"], "model_type": "mistral"}"#,
        r#"{"model_type": "foo"}"#,
        r#"{}"#,
    ] {
        let message = parse(text).unwrap_err().to_string();
        assert!(
            message.contains("unknown architecture")
                && message.contains("known: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM")
        );
    }
    let message = refusal(r#""rope_scaling": {"type": "su", "factor": 2}"#);
    let expected =
        "config.json: rope_scaling.type: unknown rope type su; known: default, linear, dynamic, yarn, llama3";
    assert_eq!(message, expected);
}

#[test]
fn what_changes_the_mathematics_is_refused_by_name() {
    for field in [
        r#""sliding_window": 4096"#,
        r#""quantization_config": {"bits": 4}"#,
        r#""partial_rotary_factor": 0.5"#,
        r#""layer_types": ["full_attention", "sliding_attention"]"#,
        r#""num_local_experts": 8"#,
        r#""rope_parameters": {"partial_rotary_factor": 0.5}"#,
        r#""rope_parameters": {"full_attention": {"rope_type": "default"}}"#,
    ] {
        assert!(refusal(field).contains("is not supported"), "{field}");
    }
    for field in [
        r#""sliding_window": 4096, "use_sliding_window": false"#,
        r#""sliding_window": null"#,
        r#""partial_rotary_factor": 1.0"#,
        r#""layer_types": ["full_attention"]"#,
        r#""pretraining_tp": 2"#,
        r#""something_new": [1]"#,
    ] {
        with(field).unwrap_or_else(|error| panic!("{field}: {error}"));
    }
}

#[test]
fn impossible_values_are_refused_by_name() {
    for (field, text) in [
        ("hidden_size", r#""hidden_size": 0"#),
        ("hidden_size", r#""hidden_size": 100"#),
        ("vocab_size", r#""vocab_size": 1e30"#),
        ("vocab_size", r#""vocab_size": "many""#),
        ("num_key_value_heads", r#""num_key_value_heads": 5"#),
        ("head_dim", r#""head_dim": 63"#),
        ("head_dim", r#""head_dim": 1024"#),
        ("rms_norm_eps", r#""rms_norm_eps": -1"#),
        ("rope_theta", r#""rope_theta": 1"#),
        ("rope_scaling", r#""rope_scaling": "linear""#),
        ("rope_scaling.factor", r#""rope_scaling": {"type": "linear"}"#),
        ("rope_scaling.factor", r#""rope_scaling": {"type": "linear", "factor": -1}"#),
        ("rope_scaling.low_freq_factor", r#""rope_scaling": {"rope_type": "llama3", "factor": 8}"#),
        (
            "rope_scaling.high_freq_factor",
            r#""rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}"#,
        ),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(&format!("config.json: {field}: expected ")), "{message}");
    }
}

mod families;

/// Frequencies equal those of transformers, from the same parameters as a checkpoint states them.
#[test]
fn rope_equals_the_golden_file() {
    for line in include_str!("../../tests/golden/rope.txt").lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [parameters, positions, head_dim, seq_len, attention, bits] = columns[..] else {
            panic!("{line}");
        };
        let config = with(&format!(
            r#""rope_parameters": {parameters}, "max_position_embeddings": {positions}, "head_dim": {head_dim}"#
        ));
        let rope = config.unwrap().rope;
        let found = rope.inv_freq(head_dim.parse().unwrap(), seq_len.parse().unwrap());
        let expected: Vec<u32> = bits.split(' ').map(|word| u32::from_str_radix(word, 16).unwrap()).collect();
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let ulp = found.to_bits().abs_diff(*expected);
            assert!(ulp <= ULPS, "{parameters} at {seq_len}: frequency {i} differs by {ulp} ulp");
        }
        let attention: f64 = attention.parse().unwrap();
        assert_eq!(rope.attention_scaling(), attention as f32, "{parameters}");
    }
}

/// torch's power is not always correctly rounded; everything else is equal.
const ULPS: u32 = 1;
