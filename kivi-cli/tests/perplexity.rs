//! `perplexity` as a user sees it.

mod common;

use common::{kivi, kivi_with};
use serde_json::Value;

fn report(args: &[&str]) -> Value {
    kivi(&[args, &["--json"]].concat()).ok().json()
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
}
