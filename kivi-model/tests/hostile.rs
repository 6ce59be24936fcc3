//! Damaged files by the hundred: an error or a success, never a panic or a hang.
//!
//! A panic fails its test by itself. The number of cases is small enough for every run; set
//! `PROPTEST_CASES` for a longer search.

mod common;

use common::{VOCAB, checkpoint, config, header, safetensors, source, tokenizer, write};
use kivi_model::alibi::slopes;
use kivi_model::config::ModelConfig;
use kivi_model::tokenizer::Tokenizer;
use kivi_model::weights::Checkpoint;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A change to a JSON document at a random place.
#[derive(Clone, Debug)]
struct Edit {
    /// Chooses the place, modulo the number of values in the document.
    place: usize,
    /// What is put there; `None` removes.
    value: Option<Value>,
}

fn edit() -> impl Strategy<Value = Edit> {
    let value = prop_oneof![
        Just(None),
        Just(Some(Value::Null)),
        any::<bool>().prop_map(|b| Some(json!(b))),
        any::<i64>().prop_map(|n| Some(json!(n))),
        (-2i64..70).prop_map(|n| Some(json!(n))),
        any::<u64>().prop_map(|n| Some(json!(n))),
        any::<f64>().prop_map(|x| Some(json!(x))),
        "\\PC{0,6}".prop_map(|s| Some(json!(s))),
        "[(\\[*+)?.a\\\\]{0,8}".prop_map(|s| Some(json!(s))),
        prop::sample::select(vec!["yarn", "dynamic", "linear", "WordLevel", "Unigram", "WordPiece", "I64"])
            .prop_map(|s| Some(json!(s))),
        Just(Some(json!([]))),
        Just(Some(json!({}))),
        Just(Some(json!([0, 18446744073709551615u64]))),
    ];
    (any::<usize>(), value).prop_map(|(place, value)| Edit { place, value })
}

/// Number of values within a value, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// Applies an edit to the `place`-th value below `value`, in document order.
fn apply(value: &mut Value, place: &mut usize, edit: &Edit) -> bool {
    let keys: Vec<Value> = match value {
        Value::Array(values) => (0..values.len()).map(|i| json!(i)).collect(),
        Value::Object(map) => map.keys().map(|key| json!(key)).collect(),
        _ => return false,
    };
    for key in keys {
        if *place == 0 {
            replace(value, &key, edit);
            return true;
        }
        *place -= 1;
        let child = match &key {
            Value::String(key) => &mut value[key.as_str()],
            index => &mut value[index.as_u64().unwrap() as usize],
        };
        if apply(child, place, edit) {
            return true;
        }
    }
    false
}

fn replace(parent: &mut Value, key: &Value, edit: &Edit) {
    match (parent, key) {
        (Value::Object(map), Value::String(key)) => match &edit.value {
            Some(value) => drop(map.insert(key.clone(), value.clone())),
            None => drop(map.remove(key)),
        },
        (Value::Array(values), index) => match (&edit.value, index.as_u64().unwrap() as usize) {
            (Some(value), index) => values[index] = value.clone(),
            (None, index) => drop(values.remove(index)),
        },
        _ => unreachable!("only lists and objects have children"),
    }
}

fn edited(mut document: Value, edits: &[Edit]) -> Value {
    for edit in edits {
        let mut place = edit.place % count(&document).max(2);
        apply(&mut document, &mut place, edit);
    }
    document
}

/// Overwrites bytes, then cuts the end off.
fn damaged(mut bytes: Vec<u8>, holes: &[(usize, u8)], cut: usize) -> Vec<u8> {
    for (at, byte) in holes {
        let len = bytes.len();
        bytes[at % len] = *byte;
    }
    bytes.truncate(bytes.len() - cut.min(bytes.len()));
    bytes
}

/// A config of each family, with the fields that only it has.
fn any_config() -> impl Strategy<Value = Value> {
    let with = |model_type: &str, architecture: &str, fields: Value| {
        let mut config = config();
        config["architectures"] = json!([architecture]);
        config["model_type"] = json!(model_type);
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        config
    };
    let qwen = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1, "head_dim": 8,
        "layer_types": ["full_attention", "sliding_attention"], "attention_bias": true});
    let falcon = json!({"alibi": false, "bias": true, "multi_query": false, "parallel_attn": true,
        "new_decoder_architecture": true, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2, "ffn_hidden_size": 48,
        "layer_norm_epsilon": 1e-5, "activation": "gelu"});
    let old = json!({"n_layer": 2, "n_head": 4, "n_head_kv": 2, "n_embed": 16, "alibi": true, "bias": false,
        "multi_query": true, "parallel_attn": true});
    prop::sample::select(vec![
        config(),
        with("mistral", "MistralForCausalLM", json!({"sliding_window": 8, "head_dim": 6})),
        with("qwen2", "Qwen2ForCausalLM", qwen.clone()),
        with("qwen3", "Qwen3ForCausalLM", qwen),
        with("falcon", "FalconForCausalLM", falcon),
        with("RefinedWebModel", "RWForCausalLM", old.clone()),
        with("RefinedWeb", "RWForCausalLM", old),
    ])
}

fn holes() -> impl Strategy<Value = (Vec<(usize, u8)>, usize)> {
    (
        prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        prop_oneof![3 => Just(0usize), 1 => 0..400usize],
    )
}

/// A config that is accepted must be one that can be used.
fn try_config(bytes: &[u8]) {
    let dir = checkpoint();
    write(&dir, "config.json", bytes);
    match ModelConfig::load(&source(&dir)) {
        Ok(c) => {
            let seq_len = 2 * c.max_position_embeddings;
            let frequencies = c.rope.inv_freq(c.head_dim, seq_len);
            assert_eq!(frequencies.len(), c.head_dim / 2);
            assert!(frequencies.iter().all(|f| !f.is_nan()), "{:?}", c.rope);
            assert!(c.rope.attention_scaling().is_finite());
            assert_eq!(c.windows.len(), c.n_layers);
            assert!(c.windows.iter().all(|window| *window != Some(0)));
            assert!(c.n_heads.is_multiple_of(c.n_kv_heads));
            assert!(slopes(c.n_heads, c.head_dim).iter().all(|slope| *slope > 0.0));
        }
        Err(error) => one_line(&error.to_string()),
    }
}

fn try_weights(bytes: &[u8]) {
    let dir = checkpoint();
    write(&dir, "model.safetensors", bytes);
    match Checkpoint::open(&source(&dir)) {
        Ok(checkpoint) => {
            for name in checkpoint.names() {
                let Ok(view) = checkpoint.tensor(name) else { continue };
                std::hint::black_box(view.bytes.iter().map(|b| u64::from(*b)).sum::<u64>());
            }
        }
        Err(error) => one_line(&error.to_string()),
    }
}

/// A tokenizer that is accepted is used as well, on text with all kinds of characters.
fn try_tokenizer(bytes: &[u8]) {
    let dir = checkpoint();
    write(&dir, "tokenizer.json", bytes);
    match Tokenizer::load(&source(&dir), VOCAB) {
        Ok(tokenizer) => {
            if let Ok(ids) = tokenizer.encode("ab xx c 12 <s> é🦀", true) {
                assert!(ids.iter().all(|id| (*id as usize) < VOCAB));
            }
            let mut stream = tokenizer.stream();
            for id in [0, 1, 2, 3, 4, 4, 99] {
                std::hint::black_box(stream.push(id).ok());
            }
            std::hint::black_box(stream.finish().ok());
        }
        Err(error) => one_line(&error.to_string()),
    }
}

fn one_line(message: &str) {
    assert!(!message.contains('\n') && message.len() < 1000, "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn config_with_other_values(config in any_config(), edits in prop::collection::vec(edit(), 0..4)) {
        try_config(edited(config, &edits).to_string().as_bytes());
    }

    #[test]
    fn config_with_other_bytes(config in any_config(), (holes, cut) in holes()) {
        try_config(&damaged(config.to_string().into_bytes(), &holes, cut));
    }

    #[test]
    fn header_with_other_values(edits in prop::collection::vec(edit(), 1..4), data_bytes in 0usize..64) {
        try_weights(&safetensors(&edited(header(), &edits), data_bytes));
    }

    #[test]
    fn header_with_other_bytes((holes, cut) in holes()) {
        try_weights(&damaged(safetensors(&header(), 32), &holes, cut));
    }

    #[test]
    fn tokenizer_with_other_values(edits in prop::collection::vec(edit(), 1..4)) {
        try_tokenizer(edited(tokenizer(), &edits).to_string().as_bytes());
    }

    #[test]
    fn tokenizer_with_other_bytes((holes, cut) in holes()) {
        try_tokenizer(&damaged(tokenizer().to_string().into_bytes(), &holes, cut));
    }
}

/// The library tries several readings of each level: that must not multiply.
#[test]
fn nested_tokenizers_end() {
    for (field, list) in
        [("pre_tokenizer", "pretokenizers"), ("normalizer", "normalizers"), ("decoder", "decoders")]
    {
        for leaf in
            [json!({"type": "Digits", "individual_digits": true}), json!({"type": "Nonsense"}), json!(1)]
        {
            for tagged in [true, false] {
                let mut nested = leaf.clone();
                for _ in 0..50 {
                    nested = if tagged {
                        json!({"type": "Sequence", list: [nested]})
                    } else {
                        json!({list: [nested]})
                    };
                }
                let mut whole = tokenizer();
                whole[field] = nested;
                try_tokenizer(whole.to_string().as_bytes());
            }
        }
    }
}
