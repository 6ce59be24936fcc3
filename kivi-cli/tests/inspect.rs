//! `inspect` against the figures of the method, which follow from its formula.

mod common;

use common::{Checkpoint, generate_json, kivi, safetensors};
use serde_json::{Value, json};

/// A checkpoint of the shape of Llama-2-7B, without its weights.
fn llama2_7b() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "max_position_embeddings": 4096, "vocab_size": 32000, "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "eos_token_id": [2, 3],
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let header = json!({"model.norm.weight": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}});
    std::fs::write(dir.path().join("model.safetensors"), safetensors(&header, &[0; 8])).unwrap();
    dir
}

fn inspect(dir: &tempfile::TempDir, args: &[&str]) -> Value {
    kivi(&[&["inspect", "--json", dir.path().to_str().unwrap()], args].concat()).ok().json()
}

/// What the cache takes at these bits, in MiB.
fn mib(inspection: &Value, bits: u64, part: &str) -> f64 {
    let settings = inspection["kv_cache"]["settings"].as_array().unwrap();
    let setting = settings.iter().find(|setting| setting["bits"] == bits).unwrap();
    setting[part].as_f64().unwrap() / f64::from(1 << 20)
}

#[test]
fn bytes_are_those_of_the_formula() {
    // tokens, fp16, then 2 bits with R 32 and R 128, 4 bits with R 32 and R 128; MiB.
    let table = [
        (498, 249.00, [56.84, 95.84, 86.41, 119.41]),
        (4096, 2048.0, [390.50, 410.00, 645.50, 662.00]),
        (8192, 4096.0, [774.50, 794.00, 1285.50, 1302.00]),
        (32768, 16384.0, [3078.50, 3098.00, 5125.50, 5142.00]),
        (131_072, 65536.0, [12294.50, 12314.00, 20485.50, 20502.00]),
    ];
    let dir = llama2_7b();
    for (tokens, fp16, expected) in table {
        for (bits, residual, expected) in
            [(2, "32", expected[0]), (2, "128", expected[1]), (4, "32", expected[2]), (4, "128", expected[3])]
        {
            let found = inspect(&dir, &["-c", &tokens.to_string(), "--residual-length", residual]);
            assert!((mib(&found, bits, "used_bytes") - expected).abs() < 0.006, "{tokens} {bits} {residual}");
            assert_eq!(mib(&found, bits, "fp16_bytes"), fp16);
            assert_eq!(mib(&found, 16, "used_bytes"), fp16);
            assert!(mib(&found, bits, "allocated_bytes") >= mib(&found, bits, "used_bytes"));
        }
    }
}

/// With a window of 4,096 tokens in every layer, 32,768 tokens take what 4,096 take.
#[test]
fn what_left_a_window_takes_nothing() {
    let (dir, whole) = (llama2_7b(), inspect(&llama2_7b(), &[]));
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["architectures"] = json!(["MistralForCausalLM"]);
    config["model_type"] = json!("mistral");
    config["num_key_value_heads"] = json!(32);
    config["sliding_window"] = json!(4096);
    config["rope_scaling"] = json!(null);
    std::fs::write(&path, config.to_string()).unwrap();
    let found = inspect(&dir, &["-c", "32768"]);
    for bits in [2, 4, 8, 16] {
        for part in ["used_bytes", "allocated_bytes", "fp16_bytes", "scales_bytes"] {
            assert_eq!(mib(&found, bits, part), mib(&whole, bits, part), "{bits} bits, {part}");
        }
    }
    let text = kivi(&["inspect", dir.path().to_str().unwrap()]).ok().stdout;
    assert!(text.contains("window         4,096 tokens in 32 of 32 layers"), "{text}");
}

#[test]
fn group_size_decides_the_bits_per_element() {
    let dir = llama2_7b();
    for (group, bits_2, bits_4) in [("32", 3.0, 5.0), ("64", 2.5, 4.5), ("128", 2.25, 4.25)] {
        // A long cache: what is left of the residual window is below 0.1 %.
        let found = inspect(&dir, &["-c", "16777216", "--kv-group-size", group]);
        for (bits, expected) in [(2, bits_2), (4, bits_4)] {
            let settings = found["kv_cache"]["settings"].as_array().unwrap();
            let setting = settings.iter().find(|setting| setting["bits"] == bits).unwrap();
            assert!((setting["bits_per_element"].as_f64().unwrap() - expected).abs() < 1e-3);
        }
    }
}

#[test]
fn a_batch_takes_a_multiple() {
    let dir = llama2_7b();
    let (one, eight) = (inspect(&dir, &["-c", "498"]), inspect(&dir, &["-c", "498", "--batch-size", "8"]));
    for part in ["used_bytes", "allocated_bytes", "codes_bytes", "scales_bytes", "residual_bytes"] {
        assert_eq!(8.0 * mib(&one, 2, part), mib(&eight, 2, part), "{part}");
    }
}

#[test]
fn the_checkpoint_is_described() {
    let found = inspect(&llama2_7b(), &[]);
    assert_eq!(found["n_kv_heads"], 32);
    assert_eq!(found["head_dim"], 128);
    assert_eq!(found["rope"], "theta 10000, linear, factor 2");
    assert_eq!(found["eos_token_ids"], json!([2, 3]));
    assert_eq!(found["weights"], json!({"parameters": 4, "bytes": 8, "tensors": 1, "dtypes": ["F16"]}));
    assert_eq!(found["kv_cache"]["tokens"], 4096);
}

#[test]
fn the_built_in_model() {
    insta::assert_snapshot!(kivi(&["inspect"]).ok().stdout);
}

#[test]
fn help() {
    insta::assert_snapshot!(kivi(&["inspect", "--help"]).ok().stdout);
}

/// What left a window takes nothing, and is not counted.
#[test]
fn a_window_bounds_the_cache() {
    let windowed = Checkpoint::new();
    windowed.edit("config.json", |config| {
        config["architectures"] = json!(["MistralForCausalLM"]);
        config["model_type"] = json!("mistral");
        config["sliding_window"] = json!(256);
    });
    let dir = windowed.path();
    let ids = (0..1500).map(|i| (i % 4000).to_string()).collect::<Vec<_>>().join(",");
    for bits in [2, 16] {
        let found = kivi(&["inspect", "--json", dir, "-c", "1500", "--kv-residual", "32"]).ok().json();
        let args = ["--model", dir, "--prompt-ids", &ids, "-n", "1", "--kv-residual", "32"];
        let run = generate_json(&[&args[..], &["--kv-bits", &bits.to_string()]].concat());
        let size = |part: &str| (mib(&found, bits, part) * f64::from(1 << 20)) as u64;
        for part in ["used_bytes", "allocated_bytes", "fp16_bytes"] {
            assert_eq!(run["kv_cache"][part], size(part), "{bits} bits, {part}");
        }
        assert_eq!(found["windows"][0], 256);
    }
    let text = kivi(&["inspect", dir]).ok().stdout;
    assert!(text.lines().any(|line| line.starts_with("window         256 tokens in ")), "{text}");
}
