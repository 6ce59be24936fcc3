//! `bench` on the CPU, with small random weights: rows, files, ratios, and what is refused.

mod common;

use common::{kivi, tiny_dir};
use serde_json::Value;

/// Rows that take no time.
const TINY: &[&str] = &["bench", "-q", "--random-weights", "tiny", "-r", "2"];

/// Runs `bench` with these arguments, and returns its table and its file.
fn bench(args: &[&str]) -> (String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("results.json");
    let json = ["--json", file.to_str().unwrap()];
    let ran = kivi(&[TINY, args, &json].concat()).ok();
    (ran.stdout, serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap())
}

fn rows(results: &Value) -> &[Value] {
    results["rows"].as_array().expect("rows")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

#[test]
fn every_combination_is_a_row_with_its_samples() {
    let args = [
        "-p",
        "40",
        "-n",
        "8",
        "-b",
        "1,3",
        "-d",
        "0,300",
        "--kv-bits",
        "16,2,4:2",
        "--kv-residual",
        "32,64",
    ];
    let (table, results) = bench(&args);
    // 16 bits have no residual window.
    assert_eq!(rows(&results).len(), 2 * 2 * 2 * 5);
    for row in rows(&results) {
        let (name, n_gen) = (row["test"].as_str().unwrap(), row["n_gen"].as_u64().unwrap());
        assert!(table.contains(&format!("| {name} | {} |", row["batch_size"])), "{name}: {table}");
        assert_eq!(row["samples"].as_array().unwrap().len(), 2);
        assert!(number(&row["tokens_per_second"]) > 0.0 && number(&row["spread_percent"]) >= 0.0);
        match n_gen {
            0 => assert!(row["steps"].is_null() && number(&row["prompt_tokens_per_second"]) > 0.0),
            _ => assert_eq!(row["steps"]["count"], 2 * n_gen, "{row}"),
        }
        let full = row["cache"]["k_bits"] == 16;
        assert_eq!(row["over_16_bits"].is_null(), full, "{row}");
    }
    for field in ["version", "date", "command_line", "model", "device", "dtype", "cpu", "threads"] {
        assert!(!results[field].is_null(), "{field}");
    }
    assert_eq!(results["command"], "bench");
    assert_eq!(results["settings"]["repetitions"], 2);
    assert_eq!(results["shape"]["num_hidden_layers"], 2);
}

#[test]
fn memory_adds_up() {
    let (table, results) = bench(&["-p", "0", "-n", "4", "-b", "2", "-d", "600"]);
    // Pages of 32 tokens hold what is packed of 605 with less to spare than those of 128.
    let args = ["-p", "0", "-n", "4", "-b", "2", "-d", "600", "--kv-bits", "2", "--kv-residual", "32"];
    let pages = |page| {
        let (_, results) = bench(&[&args[..], &["--kv-page-tokens", page]].concat());
        rows(&results)[0]["memory"]["pages"].as_u64().unwrap()
    };
    assert_eq!(pages("32") * 5 * 128, pages("128") * 18 * 32);
    for row in rows(&results) {
        let memory = &row["memory"];
        let part = |name: &str| memory[name].as_u64().unwrap();
        let parts = ["weights", "pages", "rings", "workspace", "other"].map(part);
        assert_eq!(parts.iter().sum::<u64>(), part("sum"));
        assert!(memory["device"].is_null(), "the CPU does not say");
        // 2 layers, one head of 32 channels in keys and values.
        let (k, rings) = (row["cache"]["k_bits"].as_u64().unwrap(), part("rings"));
        assert_eq!(rings, if k == 16 { 0 } else { 2 * 2 * 2 * 128 * 64 });
    }
    assert!(table.contains("| over sum |"), "{table}");
}

#[test]
fn the_break_even_context_follows_from_depths() {
    let (table, results) = bench(&["-p", "0", "-n", "4", "-d", "0,128,256"]);
    let entries = results["conclusions"]["break_even"].as_array().unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["depths"], serde_json::json!([0, 128, 256]));
    assert!(table.contains("faster than 16 bits from"), "{table}");
}

#[test]
fn a_baseline_gives_ratios_of_the_rows_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("old.json");
    let file = file.to_str().unwrap();
    kivi(&[TINY, &["-p", "20", "-n", "0", "--json", file]].concat()).ok();
    let mut old: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let half = number(&old["rows"][0]["tokens_per_second"]) / 2.0;
    old["rows"][0]["tokens_per_second"] = half.into();
    std::fs::write(file, old.to_string()).unwrap();
    let (_, new) = bench(&["-p", "20,21", "-n", "0", "--baseline", file]);
    for row in rows(&new) {
        match row["n_prompt"].as_u64() {
            Some(20) => assert!(number(&row["over_baseline"]) > 0.0),
            _ => assert!(row["over_baseline"].is_null(), "{row}"),
        }
    }
    let ratio = number(&rows(&new)[0]["tokens_per_second"]) / half;
    assert!((number(&rows(&new)[0]["over_baseline"]) / ratio - 1.0).abs() < 1e-9);
}

#[test]
fn the_paper_s_workload_fills_the_memory() {
    let args =
        ["--preset", "paper", "--memory", "4MiB", "-p", "20", "-n", "12", "--max-num-batched-tokens", "64"];
    let (table, results) = bench(&args);
    let sweep = results["conclusions"]["sweep"].as_array().unwrap();
    let largest: Vec<u64> = sweep.iter().map(|entry| entry["largest_batch"].as_u64().unwrap()).collect();
    assert_eq!(largest.len(), 3);
    assert!(largest.iter().all(|batch| *batch > 0), "{largest:?}");
    for (entry, largest) in sweep.iter().zip(largest) {
        let own = rows(&results).iter().filter(|row| row["cache"] == entry["cache"]);
        assert_eq!(own.clone().filter_map(|row| row["batch_size"].as_u64()).max(), Some(largest));
        assert!(own.clone().all(|row| row["memory"]["sum"].as_u64().unwrap() <= 4 << 20));
        assert!(number(&entry["at_largest_ratio"]) > 0.0 && number(&entry["memory_ratio"]) > 0.0);
    }
    assert!(rows(&results).iter().all(|row| row["test"] == "pp20+tg12" && row["steps"]["count"] != 0));
    assert!(table.contains("| largest batch |"), "{table}");
}

#[test]
fn a_checkpoint_or_another_config_can_be_measured() {
    let config = tiny_dir().join("config.json");
    let args = ["bench", "-q", "-p", "8", "-n", "2", "-r", "1", "--kv-bits", "2"];
    let of = |more: &[&str]| kivi(&[&args, more].concat()).ok().stdout;
    assert!(of(&[]).starts_with("kivi-tiny on cpu"));
    assert!(
        of(&["--random-weights", config.to_str().unwrap()]).contains("config.json, random weights on cpu")
    );
}

#[test]
fn wrong_inputs_are_one_line() {
    let fails = |args: &[&str], code, parts: &[&str]| kivi(&[TINY, args].concat()).fails(code, parts);
    fails(&["-p", "0", "-n", "0"], 2, &["--n-prompt, --n-gen", "above 0"]);
    fails(&["-b", "0"], 2, &["--batch-size", "from 1"]);
    fails(&["--kv-bits", "3"], 2, &["--kv-bits", "expected 2, 4, 8 or 16"]);
    fails(&["--kv-residual", "33"], 2, &["--kv-residual", "33"]);
    fails(&["--kv-page-tokens", "33"], 2, &["--kv-page-tokens", "33"]);
    fails(&["--memory", "80XB"], 2, &["--memory", "20GiB"]);
    fails(&["--preset", "paper"], 2, &["--memory"]);
    fails(&["--preset", "paper", "--memory", "1KiB"], 1, &["no row fits"]);
    fails(&["--baseline", "/nowhere.json"], 1, &["--baseline /nowhere.json"]);
    fails(&["--baseline", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], 1, &["bench --json wrote"]);
    fails(&["--json", "/nowhere/x.json"], 1, &["/nowhere"]);
    kivi(&["bench", "--random-weights", "nothing"]).fails(2, &["--random-weights", "llama-2-7b"]);
    kivi(&["bench", "--random-weights", "tiny", "DIR"]).fails(2, &["--random-weights"]);
}
