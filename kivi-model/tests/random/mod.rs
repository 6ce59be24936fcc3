//! Checkpoints whose weights are a formula: those of `golden/random-*.json`, and small ones to try the engine on.
#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use kivi_kernels::Backend;
use kivi_model::model::Model;
use kivi_model::source::Source;
use serde_json::{Value, json};
use tempfile::TempDir;

/// FNV-1a, 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

/// Number `i` of the sequence of `name`.
pub fn noise(name: &str, i: u64) -> u64 {
    let z = fnv1a(name.as_bytes()).wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Element `i` of the tensor `name`.
pub fn weight(name: &str, i: usize) -> f32 {
    let u = (noise(name, i as u64) >> 40) as f32;
    let t = (u / (1 << 24) as f32 - 0.5) * 2.0;
    let norms = ["norm.weight", "ln_f.weight", "ln_attn.weight", "ln_mlp.weight"];
    let wide = ["embed", "lm_head", "q_proj", "k_proj", "query_key_value"];
    match name {
        _ if norms.iter().any(|end| name.ends_with(end)) => 1.0 + 0.125 * t,
        _ if wide.iter().any(|part| name.contains(part)) => 0.5 * t,
        _ => 0.25 * t,
    }
}

/// `x` as a checkpoint of type `dtype` (as in config.json) stores it.
pub fn stored(x: f32, dtype: &str) -> Vec<u8> {
    match dtype {
        "float32" => x.to_le_bytes().to_vec(),
        "float16" => f16::from_f32(x).to_le_bytes().to_vec(),
        "bfloat16" => bf16::from_f32(x).to_le_bytes().to_vec(),
        other => panic!("no such type: {other}"),
    }
}

/// Names and shapes of tensors.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// A safetensors file of `names`, one after the other, whose elements are `value(name, i)`.
fn safetensors(
    names: &[String],
    shapes: &Shapes,
    dtype: &str,
    value: &dyn Fn(&str, usize) -> f32,
) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for name in names {
        let start = data.len();
        let n = shapes[name].iter().product();
        data.extend((0..n).flat_map(|i| stored(value(name, i), dtype)));
        let dtype = BTreeMap::from([("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])[dtype];
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shapes[name], "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Writes a case of `golden/random-*.json`.
pub fn checkpoint(case: &Value) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("a file");
    for name in ["config", "generation_config"] {
        if let Some(text) = case[format!("{name}_json")].as_str() {
            write(&format!("{name}.json"), text.as_bytes());
        }
    }
    let shapes: Shapes = serde_json::from_value(case["tensors"].clone()).expect("shapes");
    let files: BTreeMap<String, Vec<String>> = serde_json::from_value(case["files"].clone()).expect("files");
    let dtype = case["dtype"].as_str().expect("a type");
    for (file, names) in &files {
        write(file, &safetensors(names, &shapes, dtype, &weight));
    }
    if files.len() > 1 {
        let of_file = |(file, names): (&String, &Vec<String>)| -> Vec<(String, Value)> {
            names.iter().map(|name| (name.clone(), json!(file))).collect()
        };
        let map: serde_json::Map<_, _> = files.iter().flat_map(of_file).collect();
        write("model.safetensors.index.json", json!({"weight_map": map}).to_string().as_bytes());
    }
    dir
}

pub fn load<B: Backend>(backend: &B, dir: &Path) -> Model<B> {
    Model::load(backend, &Source::Dir(dir.to_path_buf()), &mut |_, _| {}).expect("the checkpoint loads")
}

/// A small Llama: two layers, `heads` query heads on half as many KV heads of `head_dim` channels, 64 tokens, a head
/// of its own.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
}

pub const SMALL: Small = Small { layers: 2, heads: 4, head_dim: 16, vocab: 64 };

impl Small {
    const HIDDEN: usize = 32;
    const INNER: usize = 48;

    fn config(&self) -> Value {
        json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": Self::HIDDEN,
            "intermediate_size": Self::INNER, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads / 2, "head_dim": self.head_dim, "vocab_size": self.vocab,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "tie_word_embeddings": false, "rope_theta": 10000.0, "torch_dtype": "float32"})
    }

    fn shapes(&self) -> Shapes {
        let (hidden, q) = (Self::HIDDEN, self.heads * self.head_dim);
        let mut shapes = Shapes::from([
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
            ("lm_head.weight".to_owned(), vec![self.vocab, hidden]),
        ]);
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![q / 2, hidden]),
            ("self_attn.v_proj", vec![q / 2, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("mlp.gate_proj", vec![Self::INNER, hidden]),
            ("mlp.up_proj", vec![Self::INNER, hidden]),
            ("mlp.down_proj", vec![hidden, Self::INNER]),
        ];
        for layer in 0..self.layers {
            let of_layer = parts
                .iter()
                .map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape.clone()));
            shapes.extend(of_layer);
        }
        shapes
    }

    /// Writes it; `value(name, i)` are its weights.
    pub fn write(&self, value: &dyn Fn(&str, usize) -> f32) -> TempDir {
        let shapes = self.shapes();
        let names: Vec<String> = shapes.keys().cloned().collect();
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("a file");
        write("config.json", self.config().to_string().as_bytes());
        write("model.safetensors", &safetensors(&names, &shapes, "float32", value));
        dir
    }

    /// The model with the formula's weights.
    pub fn load<B: Backend>(&self, backend: &B) -> Model<B> {
        load(backend, self.write(&weight).path())
    }
}

/// `n` tokens below `vocab`, other ones for each `name`.
pub fn tokens(name: &str, n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| (noise(name, i as u64) % vocab as u64) as u32).collect()
}
