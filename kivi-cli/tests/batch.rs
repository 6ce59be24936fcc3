//! Batch files: every prompt as if alone, and nothing lost or doubled when a run is killed.

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Ran, generate_json, kivi};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory with a batch file and results.
struct Batch {
    dir: TempDir,
}

impl Batch {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let batch = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(batch.path("in.jsonl"), text).unwrap();
        batch
    }

    fn of(lines: &[Value]) -> Self {
        Self::new(lines.iter().map(|line| line.to_string() + "\n").collect::<String>())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let (file, out) = (self.path("in.jsonl"), self.path("out.jsonl"));
        let args = ["generate", "--batch-file", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
        args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }

    fn run(&self, more: &[&str]) -> Ran {
        kivi(&self.args(more))
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path("out.jsonl")).unwrap()
    }

    fn results(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The lines, sorted: they come in the order in which they are complete.
    fn sorted(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.text().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Checks that a run is refused with these words and that it writes nothing.
    #[track_caller]
    fn refuses(&self, code: i32, more: &[&str], parts: &[&str]) {
        let before = std::fs::read(self.path("out.jsonl")).ok();
        self.run(more).fails(code, parts);
        assert_eq!(std::fs::read(self.path("out.jsonl")).ok(), before);
    }
}

/// Prompts of different lengths that end at different times.
fn ragged(n: usize) -> Vec<Value> {
    let text = "The ship had been at sea for many days, and the captain said to his men that";
    (0..n).map(|i| json!({"id": format!("p{i}"), "prompt": &text[..8 + i * 5 % 60], "max_tokens": 3 + i * 7 % 23})).collect()
}

/// Settings with which rounding, which depends on what else runs, changes no token; see docs/numerics.md.
const EXACT: [&str; 4] = ["--kv-bits", "16", "--kv-dtype", "f32"];

/// A run of the same prompts that nobody disturbs.
fn undisturbed(lines: &[Value], more: &[&str]) -> Vec<String> {
    let batch = Batch::of(lines);
    batch.run(&[&["-q"], more].concat()).ok();
    batch.sorted()
}

/// Checks the result of each line against a run of its prompt alone.
#[track_caller]
fn as_if_alone(lines: &[Value], batch: &[&str], flags: &[&str]) {
    let run = Batch::of(lines);
    let ran = run.run(&[batch, flags].concat()).ok();
    assert_eq!(ran.stdout, "");
    assert!(
        ran.stderr.contains(&format!("{} in", lines.len())) && ran.stderr.contains("0 failed"),
        "{}",
        ran.stderr
    );
    let results = run.results();
    assert_eq!(results.len(), lines.len());
    for line in lines {
        let result = results.iter().find(|result| result["id"] == line["id"]).unwrap();
        let (n, prompt) = (line["max_tokens"].to_string(), line["prompt"].as_str().unwrap());
        let seed = result["seed"].as_u64().unwrap_or_default().to_string();
        let alone = generate_json(&[&["-p", prompt, "-n", &n, "--seed", &seed], flags].concat());
        for field in ["text", "token_ids", "finish_reason", "prompt_tokens", "generated_tokens"] {
            assert_eq!(result[field], alone[field], "{field} of {line}");
        }
    }
}

#[test]
fn every_prompt_is_as_if_alone() {
    let flags = [&EXACT[..], &["--temperature", "0.9"]].concat();
    as_if_alone(&ragged(12), &["--batch-size", "5", "--seed", "5"], &flags);
}

#[test]
fn prompts_are_cut_as_if_alone() {
    // Prompts of 60 to 160 tokens in steps of 64: later parts see a packed past, so that it matters where one is cut.
    // Up to 4 sequences at a time are computed as one is, so rounding does not.
    let text =
        "The ship had been at sea for many days, and the captain said to his men that they should turn. ";
    let line = |i: usize| json!({"id": i, "prompt": text.repeat(8)[i..300 + 80 * (i % 5)], "max_tokens": 12});
    let lines: Vec<Value> = (0..8).map(line).collect();
    let flags = ["--max-num-batched-tokens", "64", "--kv-residual", "32", "--temperature", "1.2"];
    as_if_alone(&lines, &["--batch-size", "4", "--seed", "1"], &flags);
}

#[test]
fn a_line_may_say_otherwise() {
    let batch = Batch::of(&[
        json!({"prompt": "Once upon a time", "max_tokens": 3}),
        json!({"prompt_ids": [5, 6, 7], "id": 77}),
        json!({"prompt": "Once upon a time there was a king who", "id": "stop", "stop": ["king"], "max_tokens": 60}),
        json!({"prompt": "Once upon a time", "id": "drawn", "temperature": 1.5, "seed": 3}),
    ]);
    batch.run(&[&["-n", "6", "-q"], &EXACT[..]].concat()).ok();
    let results = batch.results();
    let of = |id: Value| results.iter().find(|result| result["id"] == id).unwrap().clone();
    assert_eq!(of(json!(1))["generated_tokens"], 3);
    assert_eq!(
        (of(json!(77))["prompt_tokens"].clone(), of(json!(77))["generated_tokens"].clone()),
        (json!(3), json!(6))
    );
    assert_eq!(of(json!("stop"))["finish_reason"], "stop");
    assert!(!of(json!("stop"))["text"].as_str().unwrap().contains("king"));
    let alone = ["-p", "Once upon a time", "-n", "6", "--temperature", "1.5", "--seed", "3"];
    let alone = generate_json(&[&alone[..], &EXACT].concat());
    assert_eq!(of(json!("drawn"))["text"], alone["text"]);
    assert_eq!(of(json!("drawn"))["seed"], 3);
    assert!(of(json!(1)).get("seed").is_none());
}

/// Starts a run, and kills it when so many results are there.
fn killed_after(batch: &Batch, results: usize, more: &[&str]) {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_kivi-cli"))
        .args(batch.args(more))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let there =
        || std::fs::read(batch.path("out.jsonl")).unwrap_or_default().iter().filter(|b| **b == b'\n').count();
    while there() < results {
        assert!(start.elapsed() < Duration::from_secs(60), "no results came");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_goes_on() {
    let lines = ragged(60);
    let flags = [&EXACT[..], &["--temperature", "0.8", "--batch-size", "4"]].concat();
    let batch = Batch::of(&lines);
    // The seed is a random one, and must survive.
    for results in [1, 9, 25] {
        killed_after(&batch, results, &flags);
        let there = batch.text().matches('\n').count();
        assert!((results..60).contains(&there), "killed after {there} results");
    }
    batch.run(&[&flags[..], &["-q"]].concat()).ok();
    let note: Value = serde_json::from_slice(&std::fs::read(batch.path("out.jsonl.run")).unwrap()).unwrap();
    let seed = note["seed"].to_string();
    assert_eq!(batch.sorted(), undisturbed(&lines, &[&flags[..], &["--seed", &seed]].concat()));
    // And a run that is complete does nothing.
    let before = batch.text();
    assert!(batch.run(&flags).ok().stderr.contains("60 were done before"));
    assert_eq!(batch.text(), before);
}

#[test]
fn a_torn_line_is_made_again() {
    let lines = ragged(5);
    let batch = Batch::of(&lines);
    batch.run(&[&["-q"], &EXACT[..]].concat()).ok();
    let (whole, sorted) = (batch.text(), batch.sorted());
    let last = whole.trim_end().rfind('\n').unwrap() + 1;
    for torn in [
        &whole[..last + 9],
        &whole[..whole.len() - 1],
        &format!("{}\0\0\0\n", &whole[..last]),
        &whole[..last],
        "{\"i",
        "",
    ] {
        std::fs::write(batch.path("out.jsonl"), torn).unwrap();
        batch.run(&[&["-q"], &EXACT[..]].concat()).ok();
        assert_eq!(batch.sorted(), sorted, "after {torn:?}");
    }
}

#[test]
fn damage_that_is_no_torn_line_is_refused() {
    let batch = Batch::of(&ragged(3));
    batch.run(&["-q"]).ok();
    let whole = batch.text();
    std::fs::write(batch.path("out.jsonl"), format!("garbage\n{whole}")).unwrap();
    batch.refuses(1, &[], &["out.jsonl", "line 1", "not a result"]);
    std::fs::write(batch.path("out.jsonl"), format!("{whole}{whole}")).unwrap();
    batch.refuses(1, &[], &["line 4", "earlier line"]);
}

#[test]
fn bad_lines_are_refused_before_anything_runs() {
    let good = "{\"prompt\": \"a\"}\n";
    let cases: &[(&[u8], &[&str])] = &[
        (b"{\"prompt\": \"a\"", &["column", "EOF", "expected an object"]),
        (b"[1]", &["expected"]),
        (b"\"a\"", &["expected an object"]),
        (b"{\"prompt\": \"\"}", &["empty prompt"]),
        (b"{\"prompt_ids\": []}", &["empty prompt"]),
        (b"{}", &["prompt or prompt_ids", "neither"]),
        (b"{\"prompt\": \"a\", \"prompt_ids\": [1]}", &["both"]),
        (b"{\"prompt\": \"a\", \"max_token\": 3}", &["max_token", "unknown field", "max_tokens"]),
        (b"{\"prompt\": \"a\", \"max_tokens\": 0}", &["max_tokens", "from 1"]),
        (b"{\"prompt\": \"a\", \"stop\": [\"\"]}", &["stop"]),
        (b"{\"prompt\": \"a\", \"temperature\": -1}", &["temperature", "-1"]),
        (b"{\"prompt\": \"a\", \"seed\": -1}", &["column"]),
        (b"{\"prompt\": \"a\", \"id\": 1.5}", &["id", "string or a whole number"]),
        (b"{\"prompt\": \"a\", \"id\": {}}", &["id"]),
        (b"{\"prompt\": \"a\", \"id\": 1}", &["id 1", "line 1, too"]),
        (b"{\"prompt_ids\": [-1]}", &["column"]),
        (b"{\"prompt\": \"\xff\"}", &["UTF-8", "12"]),
    ];
    for (line, parts) in cases {
        let batch = Batch::new([good.as_bytes(), line, b"\n", good.as_bytes()].concat());
        batch.refuses(1, &[], &[&["in.jsonl", "line 2"], *parts].concat());
        assert!(!batch.path("out.jsonl").exists() && !batch.path("out.jsonl.run").exists());
    }
    let long = [&vec![b' '; 16 << 20][..], good.as_bytes()].concat();
    Batch::new([good.as_bytes(), &long].concat()).refuses(1, &[], &["line 2", "longer than 16777216 bytes"]);
    let twice = Batch::of(&[
        json!({"prompt": "a", "id": "x"}),
        json!({"prompt": "b"}),
        json!({"prompt": "c", "id": "x"}),
    ]);
    twice.refuses(1, &[], &["line 3", "\"x\"", "line 1, too"]);
}

#[test]
fn line_ends_and_blank_lines() {
    let batch = Batch::new("{\"prompt\": \"Once\"}\r\n\r\n\n  {\"prompt\": \"Twice\"}");
    batch.run(&["-q", "-n", "2"]).ok();
    let mut ids: Vec<_> = batch.results().iter().map(|result| result["id"].clone()).collect();
    ids.sort_by_key(|id| id.as_u64());
    assert_eq!(ids, [1, 4]);
}

#[test]
fn an_empty_file_has_no_results() {
    let batch = Batch::new("");
    assert!(batch.run(&[]).ok().stderr.contains("0 in"));
    assert_eq!(batch.text(), "");
    batch.run(&["-q"]).ok();
}

#[test]
fn a_prompt_that_cannot_run_does_not_stop_the_others() {
    let batch = Batch::of(&[
        json!({"id": "long", "prompt": "word ".repeat(100)}),
        json!({"id": "good", "prompt": "Once upon"}),
        json!({"id": "unknown", "prompt_ids": [1, 4_000_000]}),
    ]);
    let ran = batch.run(&["-c", "20", "-n", "3"]).ok();
    assert!(ran.stderr.contains("2 of 3 prompts failed"), "{}", ran.stderr);
    let results = batch.results();
    let of = |id: &str| results.iter().find(|result| result["id"] == id).unwrap();
    assert!(of("long")["error"].as_str().unwrap().contains("the context holds 20"));
    assert!(of("unknown")["error"].as_str().unwrap().contains("4000000"));
    assert_eq!(of("long")["finish_reason"], "error");
    assert_eq!((&of("good")["generated_tokens"], of("good").get("error")), (&json!(3), None));
    assert!(batch.run(&["-c", "20", "-n", "3"]).ok().stderr.contains("3 were done before"));
}

#[test]
fn another_run_is_refused() {
    let batch = Batch::of(&ragged(3));
    batch.run(&["-q", "--seed", "4", "--temperature", "1"]).ok();
    let same = ["--seed", "4", "--temperature", "1"];
    let todo = "another --out";
    batch.refuses(1, &["--seed", "5", "--temperature", "1"], &["out.jsonl", "--seed 4", "found 5", todo]);
    batch.refuses(1, &[&same[..], &["-n", "9"]].concat(), &["max tokens 256, found 9", todo]);
    batch.refuses(1, &[&same[..], &["--kv-bits", "4"]].concat(), &["cache", todo]);
    batch.refuses(1, &[&same[..], &["--stop", "x"]].concat(), &["stop", todo]);
    batch.refuses(1, &["--seed", "4", "--temperature", "0.5"], &["sampling", todo]);
    let model = common::tiny_dir();
    batch.refuses(1, &[&same[..], &["-m", model.to_str().unwrap()]].concat(), &["model \"kivi-tiny\"", todo]);
    // How many run at a time changes no result.
    batch.run(&[&same[..], &["--batch-size", "1", "-q", "-t", "1"]].concat()).ok();
    std::fs::write(batch.path("in.jsonl"), "{\"prompt\": \"another\"}\n").unwrap();
    batch.refuses(1, &same, &["batch file (SHA-256)", todo]);
}

#[test]
fn a_file_of_somebody_else_is_kept() {
    let batch = Batch::of(&ragged(2));
    std::fs::write(batch.path("out.jsonl"), "my notes\n").unwrap();
    batch.refuses(1, &[], &["out.jsonl", "does not say of which run", "another --out"]);
    std::fs::write(batch.path("out.jsonl.run"), "{}").unwrap();
    batch.refuses(1, &[], &["does not say of which run"]);
}

#[test]
fn two_processes_do_not_write_one_file() {
    let batch = Batch::of(&ragged(2));
    let note = std::fs::File::create(batch.path("out.jsonl.run")).unwrap();
    note.lock().unwrap();
    batch.refuses(1, &[], &["out.jsonl", "another process"]);
    drop(note);
    batch.run(&["-q", "-n", "1"]).ok();
}

#[test]
fn places_that_cannot_be_written_or_read() {
    let batch = Batch::of(&ragged(2));
    let file = batch.path("in.jsonl");
    let file = file.to_str().unwrap();
    let run =
        |file: &str, out: &Path| kivi(&["generate", "--batch-file", file, "--out", out.to_str().unwrap()]);
    run(file, &batch.path("absent/out.jsonl")).fails(1, &["absent", "no such directory"]);
    run(file, batch.dir.path()).fails(1, &["not a regular file"]);
    run(file, Path::new(file)).fails(2, &["--out", "overwrite --batch-file"]);
    run(file, &batch.dir.path().join(".").join("in.jsonl")).fails(2, &["overwrite --batch-file"]);
    std::fs::copy(file, batch.path("x.run")).unwrap();
    run(batch.path("x.run").to_str().unwrap(), &batch.path("x")).fails(2, &["overwrite --batch-file"]);
    run("absent.jsonl", &batch.path("o")).fails(1, &["absent.jsonl", "cannot be opened"]);
    run(batch.dir.path().to_str().unwrap(), &batch.path("o")).fails(1, &["not a regular file"]);
}

#[test]
fn flags_that_do_not_go_together() {
    let batch = Batch::of(&ragged(1));
    let cases = [
        &["-p", "a"][..],
        &["-f", "a"],
        &["--prompt-ids", "1"],
        &["--save-cache", "x"],
        &["--load-cache", "x"],
        &["--json"],
    ];
    for more in cases {
        batch.refuses(2, more, &["--batch-file", "cannot be used with"]);
    }
    kivi(&["generate", "--batch-file", "x"]).fails(2, &["--out"]);
    kivi(&["generate", "-p", "a", "-n", "1", "--out", "x"]).fails(2, &["--batch-file"]);
    kivi(&["generate", "-p", "a", "-n", "1", "--batch-size", "2"]).fails(2, &["--batch-file"]);
    batch.refuses(2, &["--batch-size", "0"], &["--batch-size", "from 1"]);
}

/// With `--chat`, a line is what a user says.
#[test]
fn lines_can_be_what_a_user_says() {
    let questions = ["What is 2 + 2?", "Who was the king?"];
    let lines = questions.map(|text| json!({"prompt": text}));
    let flags = ["--chat", "--system", "Be brief.", "-n", "9"];
    let batch = Batch::of(&[&lines[..], &[json!({"id": "ids", "prompt_ids": [5, 6]})]].concat());
    batch.run(&flags).ok();
    let results = batch.results();
    for (question, number) in questions.iter().zip(1..) {
        let result = results.iter().find(|result| result["id"] == number).unwrap();
        let alone = generate_json(&[&["-p", question], &flags[..]].concat());
        assert_eq!((&result["text"], &result["token_ids"]), (&alone["text"], &alone["token_ids"]));
    }
    let ids = results.iter().find(|result| result["id"] == "ids").unwrap();
    assert!(ids["error"].as_str().unwrap().contains("--chat takes text"), "{ids}");
    // Results of other prompts are not gone on with.
    for flags in [&["-n", "9"][..], &["--chat", "--system", "Be long.", "-n", "9"]] {
        batch.refuses(1, flags, &["out.jsonl"]);
    }
}
