//! A tiny checkpoint made in a temporary directory, for tests that damage it.

use kivi_model::source::Source;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Number of tokens of [`tokenizer`], and of the model of [`config`].
pub const VOCAB: usize = 5;

/// A complete checkpoint: config, weights and tokenizer.
pub fn checkpoint() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "config.json", config().to_string());
    write(&dir, "model.safetensors", safetensors(&header(), 32));
    write(&dir, "tokenizer.json", tokenizer().to_string());
    dir
}

/// The directory as the loader takes it.
pub fn source(dir: &TempDir) -> Source {
    Source::Dir(dir.path().to_path_buf())
}

/// Writes a file into the directory.
pub fn write(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(dir.path().join(name), bytes).unwrap();
}

/// A `config.json` in the old spelling.
pub fn config() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true, "torch_dtype": "float32"})
}

/// Two tensors in 32 bytes of data.
pub fn header() -> Value {
    json!({"__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}})
}

/// A safetensors file with this header and as many bytes of data.
pub fn safetensors(header: &Value, data_bytes: usize) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data_bytes).map(|i| i as u8));
    bytes
}

/// A byte-level BPE tokenizer of four letters, one merge and a begin-of-text token.
pub fn tokenizer() -> Value {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Replace", "pattern": {"Regex": "x+"}, "content": "a"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": false},
            byte_level]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 1, "b": 2, "ab": 3, "c": 4}, "merges": [["a", "b"]]}})
}
