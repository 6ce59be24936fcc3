//! `eval` and `perplexity` as a user sees them.

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::{kivi, kivi_with};
use serde_json::Value;

const SMALL: [&str; 8] = ["eval", "passkey", "--lengths", "300,500", "--depths", "4", "--trials", "1"];

fn report(args: &[&str]) -> Value {
    kivi(&[args, &["--json"]].concat()).ok().json()
}

#[test]
fn passkeys_are_found_over_2_bits() {
    let found = report(&SMALL);
    assert_eq!((found["prompts"].as_u64(), found["lengths"].as_array().map(Vec::len)), (Some(8), Some(2)));
    assert!(found["correct"].as_u64().unwrap() >= 7, "{found}");
    let table = kivi(&SMALL).ok().stdout;
    assert!(table.contains("| tokens | found | 12.5 % | 37.5 % | 62.5 % | 87.5 % |"), "{table}");
    // The first prompts only: of one length.
    let few = report(&[&SMALL[..], &["--limit", "3"]].concat());
    assert_eq!((few["prompts"].as_u64(), few["lengths"][0]["length"].as_u64()), (Some(3), Some(300)));
}

/// A run that is killed goes on: as many answers as prompts, each once, and the same as without a stop.
#[test]
fn a_killed_task_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let [killed, whole] = ["killed", "whole"].map(|name| dir.path().join(name));
    let flags = ["--kv-bits", "16", "--kv-dtype", "f32"];
    let args = |out: &std::path::Path| {
        let args = [&SMALL[..], &flags, &["--batch-size", "2", "--out", out.to_str().unwrap()]].concat();
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let program = env!("CARGO_BIN_EXE_kivi-cli");
    let mut child = Command::new(program)
        .args(args(&killed))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = || std::fs::read_to_string(&killed).map_or(0, |text| text.lines().count());
    while lines() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    kivi(&args(&killed)).ok();
    kivi(&args(&whole)).ok();
    let sorted = |file: &std::path::Path| {
        let mut lines: Vec<String> =
            std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&killed).len(), 8);
    assert_eq!(sorted(&killed), sorted(&whole));
    let mut other = args(&killed);
    other[5] = "3".to_owned(); // --depths
    kivi(&other).fails(1, &["killed", "was begun with", "another --out"]);
}

/// A text that kivi-tiny makes, long enough for some windows.
fn text() -> String {
    kivi(&["generate", "-q", "-p", "The", "-n", "700", "--ignore-eos", "--temperature", "1", "--seed", "2"])
        .ok()
        .stdout
}

#[test]
fn two_bits_cost_something_and_16_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text").to_str().unwrap().to_owned();
    std::fs::write(&file, text()).unwrap();
    let args = ["perplexity", "-f", &file, "-c", "256", "--kv-bits", "16,4,2:4,2", "--kv-residual", "32"];
    let found = report(&args);
    let settings = found["settings"].as_array().unwrap();
    let caches: Vec<_> = settings.iter().map(|setting| setting["cache"].as_str().unwrap()).collect();
    assert_eq!(caches, ["K16 V16", "K4 V4 g32 R32", "K2 V4 g32 R32", "K2 V2 g32 R32"]);
    let of =
        |field: &str| settings.iter().map(|setting| setting[field].as_f64().unwrap()).collect::<Vec<_>>();
    assert!(of("mean_kld").is_sorted() && of("mean_kld")[0] == 0.0, "{found}");
    assert!(of("same_top")[0] == 1.0 && of("same_top")[3] < 1.0);
    assert!(of("bits_per_element")[0] == 16.0 && of("bits_per_element")[3] < 8.0);
    for setting in settings {
        let value = |field: &str| setting[field].as_f64().unwrap();
        assert!((value("perplexity") - value("mean_nll").exp()).abs() < 1e-9);
        assert!(value("median_kld") <= value("p99_kld") && value("p99_kld") <= value("max_kld"));
    }
    let windows = found["windows"].as_u64().unwrap();
    assert_eq!(found["scored_tokens"].as_u64().unwrap(), windows * 128);
    // 16 bits need not be named, and the text may come through a pipe.
    let piped = ["perplexity", "-f", "-", "-c", "256", "--kv-bits", "4", "--kv-residual", "32", "--json"];
    let piped = kivi_with(&piped, std::fs::read(&file).unwrap()).ok().json();
    assert_eq!(piped["settings"][1], settings[1]);
    let table = kivi(&[&args[..], &["--limit", "1"]].concat()).ok().stdout;
    assert!(table.contains("1 windows of 256") && table.contains("| K2 V2 g32 R32 | "), "{table}");
}

#[test]
fn wrong_inputs_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short").to_str().unwrap().to_owned();
    std::fs::write(&short, "Once upon a time").unwrap();
    let perplexity = |args: &[&str], code: i32, parts: &[&str]| {
        kivi(&[&["perplexity"], args].concat()).fails(code, parts);
    };
    perplexity(&[], 2, &["--file"]);
    perplexity(&["-f", &short], 1, &["short", "expected at least 2047", "--ctx-size"]);
    perplexity(&["-f", "absent"], 1, &["absent", "cannot be opened"]);
    perplexity(&["-f", &short, "-c", "4", "--stride", "4"], 2, &["--stride", "1 to 3", "4"]);
    perplexity(&["-f", &short, "-c", "1"], 2, &["--stride"]);
    perplexity(&["-f", &short, "-c", "8193"], 2, &["--ctx-size", "8192"]);
    perplexity(&["-f", &short, "--kv-bits", "4,3"], 2, &["--kv-bits", "2, 4, 8 or 16"]);
    let passkey = |args: &[&str], code: i32, parts: &[&str]| {
        kivi(&[&["eval", "passkey"], args].concat()).fails(code, parts);
    };
    passkey(&["--lengths", "9000"], 1, &["--lengths", "at most 8180", "9000"]);
    passkey(&["--lengths", "20"], 1, &["--lengths", "at least", "20"]);
    passkey(&["--depths", "0"], 2, &["--depths", "from 1"]);
    passkey(&["--out", dir.path().to_str().unwrap()], 1, &["not a regular file"]);
}
