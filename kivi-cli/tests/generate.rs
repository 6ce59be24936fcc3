//! `generate` as a user sees it.

mod common;

use std::io::Read;
use std::process::{Command, Stdio};

use common::{Checkpoint, PROMPT, generate_json, kivi, kivi_with, masked, tiny_dir};
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use serde_json::{Value, json};

const LONG: &str = "The king had three sons, and the youngest of them was called the fool, because he would sit by \
    the fire and say nothing. One day the king called them together and said that he was old, and that the one who \
    brought him the water of life should have the kingdom after him.";

fn tokens(text: &str) -> String {
    let tokenizer = Tokenizer::load(&Source::Dir(tiny_dir()), 4096).unwrap();
    tokenizer.encode(text, true).unwrap().iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn greedy_text_is_the_same_every_time_and_alone_on_standard_output() {
    let args = ["generate", "--prompt", PROMPT, "--max-new-tokens", "12"];
    let (one, two) = (kivi(&args).ok(), kivi(&args).ok());
    assert_eq!(one.stdout, two.stdout);
    assert!(one.stdout.starts_with(" was the king's son"), "{}", one.stdout);
    assert_eq!(one.stdout, generate_json(&args[1..])["text"].as_str().unwrap().to_owned() + "\n");
    insta::assert_snapshot!("statistics", masked(&one.stderr));
}

#[test]
fn a_saved_cache_goes_on_in_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.kivi").to_str().unwrap().to_owned();
    for flags in
        [&["--kv-residual", "32"][..], &["--kv-bits", "16"], &["--kv-sink", "4", "--kv-skip-layers", "0"]]
    {
        let run = |args: &[&str]| generate_json(&[args, flags].concat());
        let whole = run(&["-p", LONG, "-n", "60"]);
        let first = run(&["-p", LONG, "-n", "25", "--save-cache", &path]);
        // The same file is read and then replaced.
        let second = run(&["-n", "20", "--load-cache", &path, "--save-cache", &path]);
        let third = run(&["-n", "15", "--load-cache", &path]);
        let ids = [first, second, third].map(|run| run["token_ids"].as_array().unwrap().clone()).concat();
        assert_eq!(&ids, whole["token_ids"].as_array().unwrap(), "{flags:?}");
    }
    let more = generate_json(&[
        "-n",
        "3",
        "--load-cache",
        &path,
        "-p",
        " Then",
        "--kv-sink",
        "4",
        "--kv-skip-layers",
        "0",
    ]);
    let (prompt, reused) = (&more["prompt_tokens"], &more["kv_cache"]["reused_tokens"]);
    assert_eq!(
        prompt.as_u64().unwrap(),
        reused.as_u64().unwrap() + 2,
        "the last token and a new one: {more}"
    );
}

#[test]
fn layers_can_have_settings_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    std::fs::write(&path, "[[layers]]\nlayers = [0, -1]\nk_bits = 4\n\n[[layers]]\nlayers = [3]\nsink = 2")
        .unwrap();
    let args = ["-p", PROMPT, "-n", "4", "--kv-policy", path.to_str().unwrap(), "--kv-skip-layers", "7"];
    let layers = generate_json(&args)["kv_cache"]["layers"].clone();
    assert_eq!(layers, json!({"0": "K4 V2 g32 R128", "3": "K2 V2 g32 R128 sink 2", "7": "K16 V16"}));
    let skipped = |list: &str| generate_json(&["-p", PROMPT, "-n", "200", "--kv-skip-layers", list]);
    let all = generate_json(&["-p", PROMPT, "-n", "200", "--kv-bits", "16"]);
    assert_eq!(skipped("0,1,2,3,-4,-3,-2,-1")["token_ids"], all["token_ids"]);
}

#[test]
fn quiet_leaves_the_text() {
    let ran = kivi(&["generate", "-q", "-p", PROMPT, "-n", "4"]).ok();
    assert_eq!(ran.stderr, "");
    assert!(!ran.stdout.is_empty());
}

#[test]
fn the_seed_decides() {
    let text = |seed: &str| {
        let args = ["generate", "-q", "-p", PROMPT, "-n", "12", "--temp", "1", "--seed", seed];
        kivi(&args).ok().stdout
    };
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn a_random_seed_is_printed_and_gives_the_text_again() {
    let args = ["generate", "-p", PROMPT, "-n", "12", "--temperature", "1"];
    let first = kivi(&args).ok();
    let seed = first.stderr.lines().find_map(|line| line.strip_prefix("seed")).unwrap().trim();
    let again = kivi(&[&args[..], &["--seed", seed]].concat()).ok();
    assert_eq!(first.stdout, again.stdout);
    assert!(!again.stderr.contains("seed"), "{}", again.stderr);
}

#[test]
fn flags_without_effect_are_pointed_out() {
    let ran = kivi(&["generate", "-p", "a", "-n", "1", "--top-p", "0.5"]).ok();
    assert!(ran.stderr.contains("--top-p has no effect at temperature 0"), "{}", ran.stderr);
}

#[test]
fn the_checkpoint_recommends_how_to_sample() {
    let checkpoint = Checkpoint::new();
    checkpoint.edit("generation_config.json", |config| {
        config["do_sample"] = json!(true);
        config["temperature"] = json!(5.0);
    });
    let run =
        |args: &[&str]| generate_json(&[&["-m", checkpoint.path(), "-p", PROMPT, "-n", "8"], args].concat());
    let (sampled, greedy) = (run(&["--seed", "1"]), run(&["--temperature", "0"]));
    assert_eq!(sampled["seed"], 1);
    assert_eq!(greedy["seed"], Value::Null);
    assert_ne!(sampled["text"], greedy["text"]);
    assert_eq!(greedy["text"], generate_json(&["-p", PROMPT, "-n", "8"])["text"]);
}

#[test]
fn a_ragged_batch_gives_what_each_prompt_gives_alone() {
    let exact = ["-n", "10", "--kv-bits", "16", "--kv-dtype", "f32"];
    let prompts = [PROMPT, "Hello", LONG];
    let flags: Vec<&str> = prompts.iter().flat_map(|prompt| ["-p", prompt]).chain(exact).collect();
    let batch = generate_json(&flags);
    assert_eq!(batch["results"].as_array().unwrap().len(), 3);
    for (prompt, together) in prompts.iter().zip(batch["results"].as_array().unwrap()) {
        let alone = generate_json(&[&["-p", prompt], &exact[..]].concat());
        assert_eq!(alone["token_ids"], together["token_ids"], "{prompt}");
        assert_eq!(alone["kv_cache"]["used_bytes"], together["kv_cache"]["used_bytes"]);
    }
}

#[test]
fn the_number_of_threads_does_not_change_the_text() {
    let text = |threads: &str| generate_json(&["-p", LONG, "-n", "40", "-t", threads])["text"].clone();
    assert_eq!(text("1"), text("3"));
}

#[test]
fn several_texts_stand_under_their_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("story.txt");
    std::fs::write(&path, format!("{PROMPT}\n")).unwrap();
    let path = path.to_str().unwrap();
    let args = ["generate", "-q", "-n", "4", "--prompt-ids", "5,6", "-f", path, "-p", PROMPT, "-p", "-"];
    let ran = kivi_with(&args, "Hello\r\n").ok();
    let text = |args: &[&str]| kivi(&[&["generate", "-q", "-n", "4"], args].concat()).ok().stdout;
    let king = text(&["-p", PROMPT]);
    let (hello, ids) = (text(&["-p", "Hello"]), text(&["--prompt-ids", "5,6"]));
    let blocks = [("prompt 1", &king), ("standard input", &hello), (path, &king), ("prompt 4", &ids)];
    let expected = blocks.map(|(label, text)| format!("==> {label} <==\n{text}")).join("\n");
    assert_eq!(ran.stdout, expected);
}

#[test]
fn more_prompts_than_fit_at_a_time_wait() {
    let prompts = ["-p", "a"].repeat(300);
    let found = generate_json(&[&prompts[..], &["-n", "2"]].concat());
    let results = found["results"].as_array().unwrap();
    assert_eq!(results.len(), 300);
    assert!(results.iter().all(|result| result["token_ids"] == results[0]["token_ids"]));
    assert_eq!(found["generated_tokens"], 600);
}

#[test]
fn a_prompt_comes_from_anywhere() {
    let args = ["generate", "-q", "-n", "6"];
    let expected = kivi(&[&args[..], &["-p", PROMPT]].concat()).ok().stdout;
    assert_eq!(kivi_with(&args, PROMPT).ok().stdout, expected);
    assert_eq!(kivi_with(&args, format!("{PROMPT}\n")).ok().stdout, expected);
    assert_eq!(kivi_with(&[&args[..], &["-p", "-"]].concat(), PROMPT).ok().stdout, expected);
    assert_eq!(kivi_with(&[&args[..], &["-f", "-"]].concat(), PROMPT).ok().stdout, expected);
    let ids = tokens(PROMPT);
    assert_eq!(kivi(&[&args[..], &["--prompt-ids", &ids]].concat()).ok().stdout, expected);
    let dir = tiny_dir();
    let dir = dir.to_str().unwrap();
    assert_eq!(kivi(&[&args[..], &["-p", PROMPT, "-m", dir]].concat()).ok().stdout, expected);
    assert_eq!(kivi(&[&args[..], &["-p", PROMPT, dir]].concat()).ok().stdout, expected);
}

#[test]
fn a_stop_string_ends_the_text() {
    let whole = generate_json(&["-p", PROMPT, "-n", "16"]);
    let whole = whole["text"].as_str().unwrap();
    let at = whole.find("son").unwrap();
    let found = generate_json(&["-p", PROMPT, "-n", "16", "--stop", "zzz", "--stop", "son"]);
    assert_eq!(found["text"], whole[..at]);
    assert_eq!(found["finish_reason"], "stop");
    let ran = kivi(&["generate", "-q", "-p", PROMPT, "-n", "16", "--stop", "son"]).ok();
    assert_eq!(ran.stdout, format!("{}\n", &whole[..at]));
}

#[test]
fn an_end_token_ends_the_text_unless_it_is_ignored() {
    let whole = generate_json(&["-p", PROMPT, "-n", "4"]);
    assert_eq!(whole["finish_reason"], "length");
    let checkpoint = Checkpoint::new();
    checkpoint
        .edit("generation_config.json", |config| config["eos_token_id"] = whole["token_ids"][1].clone());
    let args = ["-m", checkpoint.path(), "-p", PROMPT, "-n", "4"];
    let ended = generate_json(&args);
    assert_eq!((&ended["finish_reason"], &ended["generated_tokens"]), (&json!("stop"), &json!(2)));
    let ignored = generate_json(&[&args[..], &["--ignore-eos"]].concat());
    assert_eq!(ignored["token_ids"], whole["token_ids"]);
}

#[test]
fn the_context_ends_the_text() {
    let found = generate_json(&["-p", PROMPT, "--ctx-size", "16"]);
    assert_eq!((&found["prompt_tokens"], &found["generated_tokens"]), (&json!(11), &json!(5)));
    assert_eq!(found["finish_reason"], "length");
}

#[test]
fn a_prompt_in_parts_gives_the_same_text_at_16_bits() {
    let exact = ["-p", LONG, "-n", "8", "--kv-bits", "16", "--kv-dtype", "float32"];
    let parts = generate_json(&[&exact[..], &["--max-num-batched-tokens", "7"]].concat());
    assert_eq!(parts["token_ids"], generate_json(&exact)["token_ids"]);
}

#[test]
fn json_has_every_figure() {
    let found = generate_json(&["-p", PROMPT, "-n", "4"]);
    insta::assert_snapshot!("json", masked(&serde_json::to_string_pretty(&found).unwrap()));
    let timings = &found["timings"];
    let total = timings["total"].as_f64().unwrap();
    assert!(
        ["load", "prompt", "first_token", "generation"]
            .iter()
            .all(|part| timings[part].as_f64().unwrap() <= total)
    );
}

#[test]
fn cache_bytes_are_those_of_the_formula() {
    // 200 tokens in the cache: with R = 64, 192 keys and 136 values are packed.
    let n_prompt = tokens(LONG).split(',').count();
    let n = (201 - n_prompt).to_string();
    let args = ["-p", LONG, "-n", &n, "--ignore-eos", "--kv-bits", "4:2", "--residual-length", "64"];
    let cache =
        &generate_json(&[&args[..], &["--group-size", "64", "--kv-dtype", "bfloat16"]].concat())["kv_cache"];
    // 8 layers of 2 heads of 64 channels.
    let heads = 8 * 2;
    assert_eq!(cache["tokens"], 200);
    assert_eq!(cache["codes_bytes"], heads * (192 * 32 + 136 * 16));
    assert_eq!(cache["scales_bytes"], heads * (192 * 4 + 136 * 4));
    assert_eq!(cache["residual_bytes"], heads * (8 + 64) * 128);
    assert_eq!(cache["fp16_bytes"], heads * 200 * 256);
    // Two pages, and rings of 64 rows for keys and for values.
    assert_eq!(cache["allocated_bytes"], heads * (2 * 128 * (32 + 4 + 16 + 4) + 2 * 64 * 128));
    let settings = ["k_bits", "v_bits", "group_size", "residual_length", "kv_dtype"].map(|name| &cache[name]);
    assert_eq!(settings, [&json!(4), &json!(2), &json!(64), &json!(64), &json!("bf16")]);
}

#[test]
fn bits_of_keys_and_values_can_be_set_apart() {
    let cache = |args: &[&str]| {
        let cache = &generate_json(&[&["-p", "a", "-n", "1"], args].concat())["kv_cache"];
        (cache["k_bits"].as_u64().unwrap(), cache["v_bits"].as_u64().unwrap())
    };
    assert_eq!(cache(&[]), (2, 2));
    assert_eq!(cache(&["--kv-bits", "8"]), (8, 8));
    assert_eq!(cache(&["--kv-bits", "4", "--v-bits", "16"]), (4, 16));
    assert_eq!(cache(&["--k-bits", "4"]), (4, 2));
}

#[test]
fn streamed_text_is_whole_characters() {
    // At this temperature the model is noise, and its bytes are seldom characters.
    for seed in ["1", "2", "3"] {
        let args = ["-p", PROMPT, "-n", "60", "--temperature", "50", "--ignore-eos", "--seed", seed];
        let streamed = kivi(&[&["generate", "-q"], &args[..]].concat()).ok().stdout;
        let whole = generate_json(&args);
        assert_eq!(streamed.trim_end_matches('\n'), whole["text"].as_str().unwrap().trim_end_matches('\n'));
    }
}

#[test]
fn text_comes_while_it_is_made_and_a_closed_pipe_ends_the_program_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kivi-cli"))
        .args(["generate", "-q", "-p", PROMPT, "-n", "100000", "--ignore-eos"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b" was");
    // The pipe is closed by now: the next text has no reader.
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line() {
    let line = format!("'{}' generate -q -p a -n 4 > /dev/full", env!("CARGO_BIN_EXE_kivi-cli"));
    let output = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with("error: standard output: cannot be written: "), "{stderr}");
}

#[test]
fn help() {
    insta::assert_snapshot!("help", kivi(&["--help"]).ok().stdout);
    insta::assert_snapshot!("generate_help", kivi(&["generate", "--help"]).ok().stdout);
    let bare = kivi::<&str>(&[]);
    assert_eq!((bare.code, bare.stdout.as_str()), (2, ""));
    assert!(bare.stderr.contains("Usage: kivi-cli"));
}
