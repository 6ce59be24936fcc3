//! What the README shows is what the program does.

mod common;

use std::collections::BTreeSet;

use common::{kivi, kivi_in, masked};

const README: &str = include_str!("../../README.md");

/// The arguments of the README's commands, without those that need a checkpoint, a hub, a file or a GPU.
fn commands() -> Vec<Vec<String>> {
    let lines = README.lines().filter_map(|line| line.strip_prefix("cargo run --release -p kivi-cli -- "));
    let needs = ["DIR", "ORG/NAME", ".txt", ".jsonl", "llama-"];
    lines.filter(|line| !needs.iter().any(|word| line.contains(word))).map(words).collect()
}

/// A command line cut at its blanks, but for those between double quotes.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    let words = parts.flat_map(|(i, part)| match i % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words.collect()
}

#[test]
fn the_first_command_prints_what_is_shown() {
    let ran = kivi(&commands()[0]).ok();
    let shown = README.split("```text\n").nth(1).expect("a block of output");
    let (text, statistics) = shown.split_once("[...]\n").expect("a mark where the text is cut");
    assert!(ran.stdout.starts_with(text), "{}", ran.stdout);
    let statistics = statistics.split("```").next().expect("an end of the block");
    assert_eq!(masked(statistics.trim()), masked(ran.stderr.trim()));
}

#[test]
fn every_command_runs() {
    let commands = commands();
    assert!(commands.len() >= 3, "{commands:?}");
    let dir = tempfile::tempdir().unwrap();
    commands.iter().for_each(|command| drop(kivi_in(dir.path(), command, "Hello\n").ok()));
}

#[test]
fn the_table_of_inspect_is_the_one_shown() {
    let table = kivi(&["inspect"]).ok().stdout;
    let table = table.split_once("\n\n").expect("a table").1;
    assert!(README.contains(table), "{table}");
}

#[test]
fn every_flag_exists() {
    let commands = [
        &["generate"][..],
        &["chat"],
        &["perplexity"],
        &["ablate"],
        &["eval", "passkey"],
        &["bench"],
        &["inspect"],
    ];
    let help = commands.map(|command| kivi(&[command, &["--help"]].concat()).ok().stdout).concat();
    let is_flag = |word: &&str| {
        ["--kv-", "--max-", "--t", "--chat", "--save", "--load"].iter().any(|start| word.starts_with(start))
    };
    let flags: BTreeSet<&str> =
        README.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(is_flag).collect();
    assert!(flags.len() >= 4, "{flags:?}");
    for flag in flags {
        assert!(help.contains(&format!("{flag} ")), "{flag} is not a flag");
    }
}
