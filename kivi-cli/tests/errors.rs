//! Every wrong input is one line on standard error that says what to do, and an exit code.

mod common;

use common::{Checkpoint, PROMPT, kivi, kivi_with, safetensors};
use serde_json::json;

#[test]
fn wrong_flags() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--kv-bits", "3"], &["'3'", "--kv-bits", "2, 4, 8 or 16"]),
        (&["--kv-bits", "4,2"], &["--kv-bits", "K:V as 4:2"]),
        (&["--kv-bits", "4:"], &["--kv-bits"]),
        (&["--kv-bits", "-2"], &["--kv-bits", "2, 4, 8 or 16"]),
        (&["--k-bits", "5"], &["--k-bits", "2, 4, 8 or 16"]),
        (&["--kv-group-size", "48"], &["--kv-group-size", "32, 64 or 128"]),
        (&["--kv-residual", "100"], &["--kv-residual", "multiple of the group size 32", "100"]),
        (&["--kv-group-size", "128", "--kv-residual", "64"], &["--kv-residual", "group size 128"]),
        (&["--kv-residual", "0"], &["--kv-residual"]),
        (&["--kv-dtype", "f64"], &["--kv-dtype", "f16, bf16 or f32"]),
        (&["--temperature", "-1"], &["--temperature", "from 0", "-1"]),
        (&["--temperature", "nan"], &["--temperature", "NaN"]),
        (&["--temperature", "warm"], &["--temperature", "a number"]),
        (&["--top-p", "1.5"], &["--top-p", "from 0 to 1", "1.5"]),
        (&["--min-p", "-0.1"], &["--min-p", "-0.1"]),
        (&["--top-k", "-1"], &["--top-k", "whole number"]),
        (&["--repetition-penalty", "0"], &["--repetition-penalty", "above 0"]),
        (&["--max-tokens", "99999999999"], &["--max-tokens", "16777216"]),
        (&["-n", "0"], &["--max-tokens", "from 1"]),
        (&["-n", "-1"], &["--max-tokens", "from 1"]),
        (&["--ctx-size", "0"], &["--ctx-size", "from 1"]),
        (&["--ctx-size", "8193"], &["--ctx-size", "at most 8192", "8193"]),
        (&["--max-num-batched-tokens", "0"], &["--max-num-batched-tokens"]),
        (&["--seed", "abc"], &["--seed", "'abc'"]),
        (&["--seed", "-1"], &["--seed"]),
        (&["--stop", ""], &["--stop", "not empty"]),
        (&["--device", "gpu"], &["--device", "auto, cpu, cuda or cuda:N"]),
        (&["--threads", "-1"], &["--threads", "from 0"]),
        (&["--promt", "a"], &["--promt", "--prompt"]),
        (&["-z"], &["'-z'"]),
        (&["--prompt-ids", "1,x"], &["--prompt-ids", "1,2,3"]),
        (&["--prompt-ids", ""], &["--prompt-ids", "1,2,3"]),
        (&["--prompt", ""], &["--prompt", "empty"]),
        (&["-p", "-n", "5"], &["--prompt"]),
        (&["--kv-bits", "3\n4"], &["--kv-bits"]),
        (&["--kv-sink", "65537"], &["--kv-sink", "from 0 to 65536"]),
        (&["--kv-skip-layers", "1,x"], &["--kv-skip-layers", "0,1,-1"]),
        (&["--kv-skip-layers", "8"], &["--kv-skip-layers", "from -8 to 7", "8"]),
        (&["--kv-skip-layers", "-9"], &["--kv-skip-layers", "-9"]),
        (&["-p", "b", "--save-cache", "x"], &["--save-cache", "one prompt, found 2"]),
        (&["-v", "-q"], &["--verbose", "--quiet"]),
        (&["-m", "a", "b"], &["--model"]),
    ];
    for (args, parts) in cases {
        let prompt: &[&str] = if args[0].contains("-p") && args[1..] != ["b", "--save-cache", "x"] {
            &[]
        } else {
            &["-p", "a"]
        };
        kivi(&[&["generate"], prompt, args].concat()).fails(2, parts);
    }
}

#[test]
fn policies_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let cases: &[(&str, &str, &[&str])] = &[
        ("a.toml", "layers = 3", &["line 1", "a sequence"]),
        ("b.toml", "[[layers]]\nlayers = [0]\nbits = 1", &["line 3", "unknown field `bits`", "k_bits"]),
        ("c.toml", "[[layers]]\nlayers = [0]\nk_bits = 3", &["layers[0]", "2, 4, 8 or 16", "3"]),
        (
            "d.toml",
            "[[layers]]\nlayers = [0]\nresidual = 33",
            &["layers[0]", "multiple of the group size 32"],
        ),
        ("e.toml", "[[layers]]\nlayers = [99]", &["layers[0].layers", "from -8 to 7", "99"]),
        ("f.toml", "x = = 1", &["line 1"]),
        ("g.json", "{\"layers\": [{\"layers\": \"all\"}]}", &["line 1"]),
    ];
    for (name, text, parts) in cases {
        std::fs::write(path(name), text).unwrap();
        kivi(&["generate", "-p", "a", "--kv-policy", &path(name)]).fails(1, &[&[*name], *parts].concat());
    }
    kivi(&["generate", "-p", "a", "--kv-policy", &path("absent")]).fails(1, &["absent", "cannot be opened"]);
}

#[test]
fn saved_caches_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    kivi(&["generate", "-p", PROMPT, "-n", "4", "--save-cache", &path("good")]).ok();
    let load = |name: &str, flags: &[&str]| {
        kivi(&[&["generate", "-n", "4", "--load-cache", &path(name)], flags].concat())
    };
    load("good", &["--kv-bits", "4"]).fails(1, &["good", "layer 0", "K2 V2 g32 R128", "K4 V4 g32 R128"]);
    load("good", &["-c", "12"]).fails(1, &["12"]);
    load("absent", &[]).fails(1, &["absent", "no such file"]);
    std::fs::write(path("text"), "Once upon a time").unwrap();
    load("text", &[]).fails(1, &["text", "not a saved cache", "--save-cache"]);
    let mut bytes = std::fs::read(path("good")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path("bad"), &bytes).unwrap();
    load("bad", &[]).fails(1, &["bad", "damaged", "checksum"]);
    std::fs::write(path("short"), &bytes[..middle]).unwrap();
    load("short", &[]).fails(1, &["short"]);
    let other = Checkpoint::new();
    load("good", &["-m", other.path()]).ok();
    other.edit("config.json", |config| config["rope_theta"] = json!(5000.0));
    load("good", &["-m", other.path()]).fails(1, &["good", "another model"]);
    let nowhere = path("absent/file");
    kivi(&["generate", "-q", "-p", "a", "-n", "2", "--save-cache", &nowhere])
        .fails(1, &["absent/file", "written"]);
}

#[test]
fn unknown_commands() {
    kivi(&["generat"]).fails(2, &["'generat'", "generate"]);
    kivi(&["--frob"]).fails(2, &["--frob", "kivi-cli --help"]);
}

#[test]
fn prompts_that_cannot_be_read() {
    let example = "kivi-cli generate --prompt";
    kivi(&["generate"]).fails(2, &["no prompt", example]);
    kivi(&["generate", "-p", "-"]).fails(1, &["standard input", "empty"]);
    kivi_with(&["generate"], *b"ab\xff").fails(1, &["standard input", "UTF-8", "at 2"]);
    kivi_with(&["generate", "-p", "-", "-f", "-"], "a").fails(2, &["standard input", "2 times"]);
    kivi(&["generate", "-f", "absent.txt"]).fails(1, &["absent.txt", "cannot be opened"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    kivi(&["generate", "-f", path]).fails(1, &[path, "cannot be"]);
    let empty = dir.path().join("empty.txt");
    std::fs::write(&empty, "\n").unwrap();
    kivi(&["generate", "-f", empty.to_str().unwrap()]).fails(1, &["empty.txt", "is empty"]);
}

#[cfg(unix)]
#[test]
fn standard_input_that_is_closed_or_a_directory() {
    let run = |redirection: &str| {
        let program = env!("CARGO_BIN_EXE_kivi-cli");
        let line = format!("'{program}' generate -p - {redirection}");
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    for (redirection, part) in [("<&-", "is empty"), ("</", "cannot be read")] {
        let stderr = run(redirection);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("error: standard input: ") && stderr.contains(part), "{stderr}");
    }
}

#[test]
fn prompts_that_do_not_fit() {
    let args = ["generate", "-p", PROMPT, "-p", "Hello", "--ctx-size", "11"];
    kivi(&args).fails(1, &["prompt 1", "11 tokens", "--ctx-size"]);
    kivi_with(&["generate"], "word ".repeat(10_000)).fails(1, &["standard input", "the context holds 8192"]);
    kivi(&["generate", "--prompt-ids", "5,4096"]).fails(1, &["prompt 1", "4096", "place 1"]);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_cannot_be_had() {
    let program = env!("CARGO_BIN_EXE_kivi-cli");
    // Enough for the program and its weights, not for the cache of 200 long texts.
    let prompts = " -p a".repeat(200);
    let line = format!("ulimit -v 200000; '{program}' generate -n 8000 --kv-bits 16 {prompts}");
    let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with("error: out of memory") && stderr.contains("lower --max-tokens"), "{stderr}");
}

#[test]
fn a_directory_that_is_no_checkpoint() {
    kivi(&["generate", "-p", "a", "-m", "absent"]).fails(1, &["absent", "no such directory"]);
    // A prompt without its flag.
    kivi(&["generate", "Once upon\na time"]).fails(2, &["Once upon", "--prompt"]);
    kivi(&["inspect", "absent"]).fails(1, &["absent", "no such directory"]);
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    for command in ["generate", "inspect"] {
        kivi_with(&[command, "-m", path], "a").fails(1, &["config.json", "no such file"]);
    }
}

#[test]
fn a_config_that_cannot_be_used() {
    let cases: &[(&str, serde_json::Value, &[&str])] = &[
        (
            "architectures",
            json!(["FooForCausalLM"]),
            &["architectures", "FooForCausalLM", "LlamaForCausalLM"],
        ),
        ("rope_scaling", json!({"rope_type": "spiral", "factor": 2.0}), &["rope_type", "spiral", "yarn"]),
        ("num_attention_heads", json!("four"), &["num_attention_heads", "four"]),
        ("head_dim", json!(0), &["head_dim"]),
        ("vocab_size", json!(-1), &["vocab_size", "-1"]),
        ("vocab_size", json!(4000), &["tokenizer.json", "4095", "vocab_size 4000"]),
        ("num_hidden_layers", json!(9), &["missing tensors", "model.layers.8"]),
        ("intermediate_size", json!(512), &["expected shape [", "512"]),
        ("sliding_window", json!(64), &["sliding_window", "not supported"]),
    ];
    for (field, value, parts) in cases {
        let checkpoint = Checkpoint::new();
        checkpoint.edit("config.json", |config| config[field] = value.clone());
        checkpoint.generate().fails(1, parts);
    }
    let checkpoint = Checkpoint::new();
    checkpoint.write("config.json", "{\n  \"vocab_size\": 4096,\n");
    checkpoint.generate().fails(1, &["config.json", "line 3", "invalid JSON"]);
}

#[test]
fn a_head_that_no_page_holds_is_named() {
    let checkpoint = Checkpoint::new();
    checkpoint.edit("config.json", |config| config["head_dim"] = json!(24));
    // Weights of another shape are found first.
    checkpoint.generate().fails(1, &["expected shape [48, 256]"]);
    let ran = kivi(&["inspect", checkpoint.path()]).ok();
    assert!(ran.stdout.contains("head_dim: expected a multiple of 16"), "{}", ran.stdout);
}

#[test]
fn weights_that_are_not_there() {
    let checkpoint = Checkpoint::new();
    checkpoint.remove("model.safetensors");
    checkpoint.generate().fails(1, &["no weights", "model.safetensors"]);
    checkpoint.write("pytorch_model.bin", "x");
    checkpoint.generate().fails(1, &["pytorch_model.bin", "convert"]);
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
    checkpoint.write("model.safetensors.index.json", index.to_string());
    checkpoint.generate().fails(1, &["index.json", "model-00001-of-00002.safetensors"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14696792\n";
    checkpoint.write("model.safetensors", pointer);
    checkpoint.generate().fails(1, &["model.safetensors", "git-LFS", "git lfs pull"]);
}

#[test]
fn weights_that_are_damaged() {
    let checkpoint = Checkpoint::new();
    let whole = std::fs::read(checkpoint.file("model.safetensors")).unwrap();
    checkpoint.write("model.safetensors", &whole[..whole.len() - 1000]);
    checkpoint.generate().fails(1, &["model.safetensors", "truncated"]);
    checkpoint.write("model.safetensors", &whole[..100]);
    checkpoint.generate().fails(1, &["model.safetensors", "header", "100"]);
    checkpoint.write("model.safetensors", b"");
    checkpoint.generate().fails(1, &["model.safetensors", "found 0"]);
    checkpoint.write("model.safetensors", safetensors(&json!([1]), b""));
    checkpoint.generate().fails(1, &["model.safetensors", "header"]);
    checkpoint.write("model.safetensors", &whole);
    checkpoint.generate().ok();
}

#[test]
fn tensors_that_do_not_fit() {
    const NAME: &str = "model.layers.2.self_attn.k_proj.weight";
    let case = |change: &dyn Fn(&mut serde_json::Value), parts: &[&str]| {
        let checkpoint = Checkpoint::new();
        checkpoint.edit_weights(|header, _| change(header));
        checkpoint.generate().fails(1, &[parts, &["model.safetensors"]].concat());
    };
    case(&|header| header[NAME]["shape"] = json!([256, 128]), &[NAME, "[128, 256]", "[256, 128]"]);
    case(&|header| header[NAME]["dtype"] = json!("I16"), &[NAME, "I16", "BF16"]);
    case(&|header| header[NAME]["data_offsets"] = json!([0, 65536]), &["overlap"]);
    let renamed = |header: &mut serde_json::Value| {
        let tensor = header.as_object_mut().unwrap().remove(NAME).unwrap();
        header["other"] = tensor;
    };
    case(&renamed, &["missing tensors", NAME]);
}

#[test]
fn numbers_that_are_not_finite_are_traced_to_their_layer() {
    // NaN and infinity in bfloat16.
    let planted = [
        ("model.layers.3.mlp.down_proj.weight", 0x7fc0_u16, "layer 3 is the first"),
        ("model.layers.5.self_attn.o_proj.weight", 0x7f80, "layer 5 is the first"),
        ("model.norm.weight", 0x7fc0, "every layer's output is finite"),
    ];
    for (tensor, bits, part) in planted {
        let checkpoint = Checkpoint::new();
        checkpoint.edit_weights(|header, data| {
            let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
            data[start..start + 2].copy_from_slice(&bits.to_le_bytes());
        });
        checkpoint.generate().fails(1, &[checkpoint.path(), "prompt 1", "not finite", part]);
    }
}

#[test]
fn a_tokenizer_that_cannot_be_used() {
    let checkpoint = Checkpoint::new();
    checkpoint.write("tokenizer.json", "{\"version\": \"1.0\"}");
    checkpoint.generate().fails(1, &["tokenizer.json", "not a usable tokenizer"]);
    checkpoint.write("tokenizer.json", "tokens");
    checkpoint.generate().fails(1, &["tokenizer.json", "line 1", "invalid JSON"]);
    checkpoint.remove("tokenizer.json");
    checkpoint.generate().fails(1, &["tokenizer.json", "no such file"]);
}

#[test]
fn a_generation_config_that_cannot_be_used() {
    let checkpoint = Checkpoint::new();
    checkpoint.edit("generation_config.json", |config| config["temperature"] = json!("hot"));
    checkpoint.generate().fails(1, &["generation_config.json", "temperature", "hot"]);
}

#[test]
fn sizes_that_no_computer_has() {
    let checkpoint = Checkpoint::new();
    checkpoint.edit("config.json", |config| {
        config["num_hidden_layers"] = json!(4096);
        config["num_key_value_heads"] = json!(4096);
        config["num_attention_heads"] = json!(4096);
    });
    let args = ["inspect", checkpoint.path(), "-c", "16777216", "-b", "16777216"];
    kivi(&args).fails(1, &["--batch-size", "too many to count"]);
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_build_without_the_hub_says_so() {
    kivi(&["inspect", "org/tiny"]).fails(1, &["org/tiny", "no hub support", "give a directory"]);
}
