//! Every way in which a checkpoint can be wrong, and the one line that the user reads.

mod common;

use std::collections::BTreeMap;

use common::{VOCAB, checkpoint, config, header, safetensors, source, tokenizer, write};
use kivi_model::config::ModelConfig;
use kivi_model::error::LoadError;
use kivi_model::generation_config::GenerationConfig;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_model::weights::{Checkpoint, WeightDtype};
use serde_json::{Value, json};
use tempfile::TempDir;

const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n";

/// Loads everything, as a program does.
fn load(source: &Source) -> Result<(), LoadError> {
    let config = ModelConfig::load(source)?;
    GenerationConfig::load(source, &config)?;
    let checkpoint = Checkpoint::open(source)?;
    checkpoint.expect("a", &[2, 3])?;
    checkpoint.expect("b", &[4])?;
    Tokenizer::load(source, config.vocab_size).map(drop)
}

/// A file's path as messages show it.
fn place(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

/// The message of a damaged checkpoint: one line that names the file.
fn message(dir: &TempDir, file: &str) -> String {
    let message = load(&source(dir)).unwrap_err().to_string();
    assert!(message.starts_with(&place(dir, file)), "{message}");
    assert!(!message.contains('\n') && message.len() < 500, "{message}");
    message[place(dir, file).len()..].to_string()
}

/// The message of a checkpoint with another file in place of one.
fn with(file: &str, bytes: impl AsRef<[u8]>) -> String {
    let dir = checkpoint();
    write(&dir, file, bytes);
    message(&dir, file)
}

fn with_header(header: &Value) -> String {
    with("model.safetensors", safetensors(header, 32))
}

fn changed(mut value: Value, field: &str, to: Value) -> String {
    value[field] = to;
    value.to_string()
}

#[test]
fn a_sound_checkpoint_loads() {
    let dir = checkpoint();
    load(&source(&dir)).unwrap();
    let checkpoint = Checkpoint::open(&source(&dir)).unwrap();
    assert_eq!(checkpoint.total_bytes(), 32);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.dtypes(), BTreeMap::from([("BF16", (1, 8)), ("F32", (1, 24))]));
    let b = checkpoint.tensor("b").unwrap();
    assert_eq!((b.name, b.dtype, &b.shape[..]), ("b", WeightDtype::Bf16, &[4][..]));
    assert_eq!(b.bytes, (24..32).collect::<Vec<u8>>());
}

#[test]
fn the_directory() {
    let dir = checkpoint();
    let absent = Source::Dir(dir.path().join("absent"));
    let text = load(&absent).unwrap_err().to_string();
    assert!(text.contains("absent: no such directory; pass the directory that holds config.json"), "{text}");
    let file = Source::Dir(dir.path().join("config.json"));
    assert!(matches!(load(&file), Err(LoadError::NotADirectory { .. })));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(
        message(&dir, "config.json").starts_with(": no such file; is this the directory of a checkpoint")
    );
}

#[test]
fn the_config() {
    let cut = with("config.json", "{\n  \"hidden_size\": 16,\n");
    assert!(cut.starts_with(": line 3, column 0: invalid JSON: EOF while parsing"), "{cut}");
    let text = with("config.json", changed(config(), "architectures", json!(["Foo\u{1b}[1m\n"])));
    assert!(text.starts_with(": architectures: unknown architecture Foo?[1m?"), "{text}");
    let known = "known: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, \
                 FalconForCausalLM, RWForCausalLM";
    assert!(text.ends_with(known), "{text}");
    let rope = json!({"type": "spiral", "factor": 2.0});
    assert_eq!(
        with("config.json", changed(config(), "rope_scaling", rope)),
        ": rope_scaling.type: unknown rope type spiral; known: default, linear, dynamic, yarn, llama3"
    );
    assert_eq!(
        with("config.json", changed(config(), "sliding_window", json!(4096))),
        ": sliding_window: 4096 is not supported (attention over a sliding window); use a checkpoint without it"
    );
    assert_eq!(
        with("config.json", changed(config(), "num_key_value_heads", json!(3))),
        ": num_key_value_heads: expected a divisor of num_attention_heads (4), found 3"
    );
    assert!(with("config.json", LFS).starts_with(": is a git-LFS pointer"));
    assert!(with("config.json", "[1]").contains("expected an object, found a list of 1"));
    assert!(with("generation_config.json", "{").contains("invalid JSON"));
}

#[test]
fn the_length_of_a_weight_file() {
    let whole = safetensors(&header(), 32);
    let text = with("model.safetensors", &whole[..whole.len() - 1]);
    let expected = format!(
        ": is truncated: expected {} bytes, found {}; download it again",
        whole.len(),
        whole.len() - 1
    );
    assert_eq!(text, expected);
    assert!(with("model.safetensors", b"").starts_with(": is truncated: expected 8 bytes, found 0"));
    let text = with("model.safetensors", &whole[..20]);
    assert!(text.contains("in a file of 20: truncated or not safetensors"), "{text}");
    let huge = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    assert!(with("model.safetensors", huge).starts_with(": header of 18446744073709551615 bytes"));
    let text = with("model.safetensors", safetensors(&header(), 40));
    assert!(text.contains("8 bytes follow the last tensor"), "{text}");
    assert!(with("model.safetensors", LFS).starts_with(": is a git-LFS pointer"));
}

#[test]
fn the_header_of_a_weight_file() {
    let b = |offsets: Value| json!({"dtype": "BF16", "shape": [4], "data_offsets": offsets});
    let text = with_header(&serde_json::from_str(&changed(header(), "b", b(json!([16, 24])))).unwrap());
    assert_eq!(
        text,
        ": tensor b: overlaps the tensor before it: data_offsets begin at 16, expected 24; download the file again"
    );
    let text = with_header(&serde_json::from_str(&changed(header(), "b", b(json!([26, 34])))).unwrap());
    assert!(text.starts_with(": tensor b: leaves a gap before it"), "{text}");
    let text = with_header(&serde_json::from_str(&changed(header(), "b", b(json!([32, 24])))).unwrap());
    assert!(text.starts_with(": tensor b: data_offsets: expected two ascending numbers"), "{text}");
    let mut wrong = header();
    wrong["b"]["shape"] = json!([5]);
    assert!(with_header(&wrong).starts_with(": tensor b: expected 10 bytes for shape and dtype, found 8"));
    wrong["b"]["shape"] = json!([u64::MAX, 2]);
    assert!(with_header(&wrong).starts_with(": tensor b: shape: expected"));
    let mut unknown = header();
    unknown["b"]["dtype"] = json!("F13");
    assert!(with_header(&unknown).contains("tensor b: dtype: expected one of"), "{}", with_header(&unknown));
    let text = with("model.safetensors", [2u64.to_le_bytes().as_slice(), b"{]"].concat());
    assert!(text.starts_with(": invalid safetensors header: "), "{text}");
}

#[test]
fn single_tensors() {
    let mut renamed = header();
    renamed["c"] = renamed.as_object_mut().unwrap().remove("b").unwrap();
    assert_eq!(with_header(&renamed), ": missing tensors: b; does config.json belong to these weights?");
    let mut reshaped = header();
    reshaped["a"]["shape"] = json!([3, 2]);
    let text = with_header(&reshaped);
    assert!(text.starts_with(": tensor a: expected shape [2, 3], found [3, 2]; does config.json"), "{text}");
    let mut integers = header();
    integers["b"] = json!({"dtype": "I16", "shape": [4], "data_offsets": [24, 32]});
    assert_eq!(
        with_header(&integers),
        ": unsupported dtype: b (I16); expected F32, F16 or BF16: convert the checkpoint to bfloat16"
    );
}

#[test]
fn all_tensors_at_once() {
    let dir = checkpoint();
    let checkpoint = Checkpoint::open(&source(&dir)).unwrap();
    let expected = |names: &[&str]| -> BTreeMap<String, Vec<usize>> {
        names.iter().map(|name| ((*name).to_string(), vec![2, 3])).collect()
    };
    let check = |names: &[&str], ignored: &str| {
        let ignored = ignored.to_string();
        checkpoint.check(&expected(names), |name| name == ignored).map_err(|e| e.to_string())
    };
    check(&["a"], "b").unwrap();
    assert!(check(&["a"], "").unwrap_err().contains("unexpected tensors: b; does"));
    let text = check(&["a", "p", "q", "r", "s", "t", "u", "v"], "").unwrap_err();
    assert!(text.contains("missing tensors: p, q, r, s, t and 2 more; does"), "{text}");
    assert!(check(&["a", "b"], "").unwrap_err().contains("tensor b: expected shape [2, 3], found [4]"));
}

/// A checkpoint of two shards.
fn sharded(shard: &str) -> TempDir {
    let dir = checkpoint();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let one = json!({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}});
    let two = json!({"b": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}});
    write(&dir, "one.safetensors", safetensors(&one, 24));
    write(&dir, "two.safetensors", safetensors(&two, 8));
    let index = json!({"metadata": {"total_size": 32}, "weight_map": {"a": "one.safetensors", "b": shard}});
    write(&dir, "model.safetensors.index.json", index.to_string());
    dir
}

#[test]
fn shards() {
    load(&source(&sharded("two.safetensors"))).unwrap();
    let index = "model.safetensors.index.json";
    assert_eq!(
        message(&sharded("three.safetensors"), index),
        ": names the shard three.safetensors, which is not in the directory; download it"
    );
    for outside in ["../two.safetensors", "/etc/passwd", "a\\b", "C:x", "..", ""] {
        assert!(matches!(load(&source(&sharded(outside))), Err(LoadError::ShardOutside { .. })), "{outside}");
    }
    let text = message(&sharded("one.safetensors"), "one.safetensors");
    assert!(text.starts_with(": missing tensors: b"), "{text}");
    let dir = sharded("two.safetensors");
    write(&dir, index, r#"{"metadata": {}}"#);
    assert_eq!(message(&dir, index), ": weight_map: expected an object, found nothing");
    write(&dir, index, r#"{"weight_map": {"a": 1}}"#);
    assert_eq!(message(&dir, index), ": weight_map.a: expected a file name, found 1");
}

#[test]
fn other_weights_or_none() {
    let dir = checkpoint();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let error = |dir| load(&source(dir)).unwrap_err().to_string();
    assert!(error(&dir).contains("has no weights, expected model.safetensors"));
    write(&dir, "pytorch_model.bin", "pickle");
    let text = error(&dir);
    assert!(
        text.contains("only pickled weights (pytorch_model.bin), expected model.safetensors; convert"),
        "{text}"
    );
}

#[test]
fn the_tokenizer() {
    let dir = checkpoint();
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(message(&dir, "tokenizer.json").starts_with(": no such file; download it"));
    assert!(with("tokenizer.json", "{").starts_with(": line 1, column 1: invalid JSON"));
    assert!(with("tokenizer.json", "{}").starts_with(": not a usable tokenizer: "));
    assert!(with("tokenizer.json", LFS).starts_with(": is a git-LFS pointer"));
    let mut large = tokenizer();
    large["model"]["vocab"]["c"] = json!(VOCAB);
    assert_eq!(
        with("tokenizer.json", large.to_string()),
        ": largest token id is 5, but config.json has vocab_size 5; use the tokenizer of this model"
    );
    let mut beyond = tokenizer();
    beyond["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([99]);
    write(&dir, "tokenizer.json", beyond.to_string());
    let text = Tokenizer::load(&source(&dir), VOCAB).unwrap().encode("ab", true).unwrap_err().to_string();
    assert!(text.contains("made token id 99, but the model has 5"), "{text}");
}

/// The model of the command line: its ids are those of transformers' `AutoTokenizer`.
#[test]
fn the_embedded_model() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../kivi-cli/assets/kivi-tiny");
    let source = Source::Dir(dir.into());
    let config = ModelConfig::load(&source).unwrap();
    assert_eq!((config.n_layers, config.head_dim, config.rope.theta), (8, 64, 500_000.0));
    assert_eq!(Checkpoint::open(&source).unwrap().dtypes().keys().collect::<Vec<_>>(), [&"BF16"]);
    let tokenizer = Tokenizer::load(&source, config.vocab_size).unwrap();
    assert_eq!(tokenizer.encode("Once upon a time", true).unwrap(), [0, 1994, 350, 725, 263, 620]);
    assert_eq!(tokenizer.decode(&[0, 1994, 350, 725, 263, 620], true).unwrap(), "Once upon a time");
}
