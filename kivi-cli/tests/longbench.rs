//! `eval longbench` as a user sees it. The data folder is a small one that is made here.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Checkpoint, Ran, run};
use serde_json::{Value, json};
use tempfile::TempDir;

const TASKS: &str = "narrativeqa qasper multifieldqa_en multifieldqa_zh hotpotqa 2wikimqa musique dureader gov_report qmsum \
    multi_news vcsum trec triviaqa samsum lsht passage_count passage_retrieval_en passage_retrieval_zh lcc repobench-p";
const CHINESE: [&str; 3] = ["multifieldqa_zh", "dureader", "vcsum"];

/// The program, whose data folder is not that of whoever runs the tests.
fn longbench(args: &[&str]) -> Ran {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_kivi-cli"));
    command.env_remove("KIVI_DATA").args([&["eval", "longbench"], args].concat());
    run(command, "")
}

/// The tasks that this build can score.
fn tasks() -> Vec<&'static str> {
    let here = |task: &&str| cfg!(feature = "chinese") || !CHINESE.contains(task);
    TASKS.split_whitespace().filter(here).collect()
}

fn row(task: &str) -> Value {
    let answer = match task {
        "passage_retrieval_en" => "Paragraph 3",
        "passage_retrieval_zh" => "段落3",
        _ => "the king",
    };
    json!({"input": "Who had a son?", "context": "Once there was a king. The king had a son.", "answers": [answer, answer],
        "length": 9, "all_classes": ["the king", "a son"], "language": "en", "_id": "0"})
}

/// A data folder with a row of each task; answers have 4 to 8 tokens.
fn data() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let of_all = |value: fn(usize) -> Value| {
        let entries = TASKS.split_whitespace().enumerate().map(|(n, task)| (task, value(n)));
        json!(entries.collect::<BTreeMap<_, _>>()).to_string()
    };
    write(&dir, "dataset2prompt.json", of_all(|_| json!("Read this.\n{context}\n{input}\nAnswer:")));
    write(&dir, "dataset2maxlen.json", of_all(|n| json!(4 + n % 5)));
    for task in TASKS.split_whitespace() {
        write(&dir, &format!("{task}.jsonl"), row(task).to_string());
    }
    dir
}

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) {
    let path = dir.path().join("longbench").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn path(dir: &TempDir) -> &str {
    dir.path().to_str().unwrap()
}

/// kivi-tiny with a context of 600 tokens, and no chat template.
fn short() -> Checkpoint {
    let model = Checkpoint::new();
    model.edit("config.json", |config| config["max_position_embeddings"] = json!(600));
    model.edit("tokenizer_config.json", |config| config["chat_template"] = Value::Null);
    model
}

/// The lines of a file of answers, by id.
fn answers(out: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(out).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.into_iter().map(|line| (line["id"].as_str().unwrap().to_owned(), line)).collect()
}

#[test]
fn every_task_runs() {
    let dir = data();
    let tasks = tasks();
    let args = ["--data", path(&dir), "--tasks", &tasks.join(",")];
    let found = longbench(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!((&found["command"], &found["task"]), (&json!("eval"), &json!("longbench")));
    assert_eq!(found["prompts"], tasks.len());
    let of = |field: &str| {
        found["tasks"].as_array().unwrap().iter().map(|task| task[field].clone()).collect::<Vec<_>>()
    };
    assert_eq!(json!(of("task")), json!(tasks));
    let scores: Vec<f64> = of("score").iter().map(|score| score.as_f64().unwrap()).collect();
    assert!(scores.iter().all(|score| (0.0..=100.0).contains(score)));
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    assert!((found["average"].as_f64().unwrap() - mean).abs() <= 0.005 + 1e-9, "{found}");
    let table = longbench(&["--data", path(&dir)]).ok().stdout;
    assert!(
        table.contains("| task | metric | prompts | score |\n|---|---|---|---|\n| triviaqa | qa_f1 | 1 | "),
        "{table}"
    );
    assert!(table.contains("| average | | 8 | "), "{table}");
}

/// Where the right answer is what the model says, the score is 100.
#[test]
fn right_answers_have_all_points() {
    let dir = data();
    let tasks: Vec<_> =
        ["qasper", "gov_report", "triviaqa", "samsum", "trec", "lcc", "multifieldqa_zh", "vcsum"]
            .into_iter()
            .filter(|task| tasks().contains(task))
            .collect();
    let out = dir.path().join("out");
    let args = ["--data", path(&dir), "--tasks", &tasks.join(","), "--json"];
    let few = longbench(&[&args[..], &["--out", out.to_str().unwrap()]].concat()).ok().json();
    assert!(few["average"].as_f64().unwrap() < 90.0, "{few}");
    let answers = answers(&out);
    for task in &tasks {
        let text = answers[&format!("longbench/{task}/0")]["text"].as_str().unwrap();
        let line = text.trim_start_matches('\n').split('\n').next().unwrap();
        let right = if ["triviaqa", "samsum", "trec", "lcc"].contains(task) { line } else { text };
        let mut row = row(task);
        row["answers"] = json!(["something else", right]);
        row["all_classes"] = json!([right, "no class at all"]);
        write(&dir, &format!("{task}.jsonl"), row.to_string());
    }
    let all = longbench(&args).ok().json();
    assert_eq!(all["average"], 100.0, "{all}");
}

#[test]
fn parts_of_longbench_e_are_reported_by_length() {
    let dir = data();
    let rows = [100, 5000, 9000, 9001].map(|length| {
        let mut row = row("qasper");
        row["length"] = json!(length);
        row.to_string()
    });
    // Blank lines are none, and the archive of the hub has a folder.
    write(&dir, "data/qasper_e.jsonl", rows.join("\n\n"));
    let args = ["--data", path(&dir), "--tasks", "qasper_e,trec"];
    let found = longbench(&[&args[..], &["--json"]].concat()).ok().json();
    let prompts =
        found["tasks"][0]["lengths"].as_array().unwrap().iter().map(|of| of["prompts"].as_u64().unwrap());
    assert_eq!((prompts.collect::<Vec<_>>(), &found["tasks"][1]["lengths"]), (vec![1, 1, 2], &Value::Null));
    let table = longbench(&args).ok().stdout;
    assert!(
        table.contains("| prompts | score | 0-4k | 4-8k | 8k+ |")
            && table.contains("| trec | classification | 1 |"),
        "{table}"
    );
    // Rows of each task.
    let few = longbench(&[&args[..], &["--limit", "2", "--json"]].concat()).ok().json();
    assert_eq!((&few["prompts"], &few["tasks"][0]["lengths"][2]["score"]), (&json!(3), &Value::Null));
}

#[test]
fn the_middle_of_long_texts_is_left_out() {
    let (dir, model) = (data(), short());
    let mut row = row("qasper");
    row["context"] = json!("A man went to the town and came to the sea. ".repeat(200));
    write(&dir, "qasper.jsonl", row.to_string());
    let out = dir.path().join("out");
    for (more, least, most) in [(&[][..], 590, 595), (&["--max-length", "100"], 98, 104)] {
        std::fs::remove_file(&out).ok();
        std::fs::remove_file(dir.path().join("out.run")).ok();
        let args =
            ["--data", path(&dir), "--tasks", "qasper", "-m", model.path(), "--out", out.to_str().unwrap()];
        longbench(&[&args[..], more].concat()).ok();
        let tokens = answers(&out)["longbench/qasper/0"]["prompt_tokens"].as_u64().unwrap();
        assert!((least..=most).contains(&tokens), "{tokens}");
    }
    let fails = |args: &[&str], code: i32, parts: &[&str]| {
        longbench(&[&["--data", path(&dir), "--tasks", "qasper", "-m", model.path()], args].concat())
            .fails(code, parts);
    };
    fails(&["--max-length", "596"], 1, &["--max-length", "at most 595 for qasper", "596"]);
    fails(&["--max-length", "3"], 2, &["--max-length", "from 16"]);
    write(&dir, "dataset2maxlen.json", r#"{"qasper": 600}"#);
    fails(&[], 1, &["qasper", "600 tokens", "holds 600", "--tasks"]);
}

/// A template goes around questions, not around what is to be continued, and begin-of-text is there once.
#[test]
fn a_chat_template_is_for_questions() {
    let dir = data();
    let tokens = |model: &Checkpoint, more: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("out");
        let args = [
            "--data",
            path(&dir),
            "--tasks",
            "qasper,trec",
            "-m",
            model.path(),
            "--out",
            file.to_str().unwrap(),
        ];
        longbench(&[&args[..], more].concat()).ok();
        ["qasper", "trec"]
            .map(|task| answers(&file)[&format!("longbench/{task}/0")]["prompt_tokens"].as_u64().unwrap())
    };
    let model = short();
    let args = ["--data", path(&dir), "-m", model.path(), "--chat"];
    longbench(&args).fails(1, &["--chat", "no chat template"]);
    let plain = tokens(&model, &[]);
    model.write("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}");
    assert_eq!(tokens(&model, &["--chat"]), plain);
    model.write(
        "chat_template.jinja",
        "{{ bos_token }}The man says: {{ messages[0].content }} The king says:",
    );
    assert_eq!(tokens(&model, &[]), plain);
    let [qasper, trec] = tokens(&model, &["--chat"]);
    assert!(qasper > plain[0] + 5 && trec == plain[1]);
    // A prompt that fills the context leaves room for the template.
    let mut row = row("qasper");
    row["context"] = json!("A man went to the sea. ".repeat(300));
    write(&dir, "qasper.jsonl", row.to_string());
    let [qasper, _] = tokens(&model, &["--chat"]);
    assert!((585..=595).contains(&qasper), "{qasper}");
}

/// A run that broke off goes on, also in the middle of a line.
#[test]
fn a_torn_file_goes_on() {
    let dir = data();
    let out = dir.path().join("out");
    let args = ["--data", path(&dir), "--out", out.to_str().unwrap(), "--json", "--batch-size", "2"];
    let found = || {
        let mut found = longbench(&args).ok().json();
        found.as_object_mut().unwrap().remove("date").expect("a date");
        found
    };
    let whole = found();
    let text = std::fs::read_to_string(&out).unwrap();
    let torn = text.lines().take(3).map(str::len).sum::<usize>() + 20;
    std::fs::write(&out, &text.as_bytes()[..torn]).unwrap();
    assert_eq!(found(), whole);
    assert_eq!((answers(&out).len(), std::fs::read_to_string(&out).unwrap().lines().count()), (8, 8));
    let other = [&args[..], &["--max-length", "50"]].concat();
    longbench(&other).fails(1, &["out", "was begun with --max-length", "another --out"]);
    write(&dir, "trec.jsonl", row("trec").to_string() + "\n");
    longbench(&args).fails(1, &["out", "was begun with rows (SHA-256)"]);
}

#[test]
fn what_is_missing_or_wrong_is_one_line() {
    let dir = data();
    let fails = |tasks: &str, code: i32, parts: &[&str]| {
        longbench(&["--data", path(&dir), "--tasks", tasks]).fails(code, parts);
    };
    fails("riddles", 2, &["--tasks", "narrativeqa", "repobench-p"]);
    fails("qmsum_e", 2, &["--tasks", "LongBench-E has no qmsum"]);
    fails("qasper,qasper", 1, &["longbench/qasper/0", "twice"]);
    fails("qasper_e", 1, &["longbench/qasper_e.jsonl", "cannot be opened", "THUDM/LongBench", "data.zip"]);
    let empty = tempfile::tempdir().unwrap();
    longbench(&["--data", path(&empty)])
        .fails(1, &["dataset2prompt.json", "cannot be opened", "github.com/THUDM/LongBench"]);
    longbench(&[]).fails(1, &["--data DIR", "KIVI_DATA", "THUDM/LongBench"]);

    let damaged = |task: &str, change: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut bad = row(task);
        change(&mut bad);
        write(&dir, &format!("{task}.jsonl"), format!("{}\n\n{bad}\n", row(task)));
        fails(task, 1, &[&[&format!("{task}.jsonl: line 3: ")[..]], parts].concat());
        write(&dir, &format!("{task}.jsonl"), row(task).to_string());
    };
    damaged(
        "qasper",
        &|row| drop(row.as_object_mut().unwrap().remove("context")),
        &["missing field `context`"],
    );
    damaged("qasper", &|row| row["answers"] = json!("the king"), &["expected a sequence"]);
    damaged("qasper", &|row| row["answers"] = json!([]), &["answers: expected at least one"]);
    let long = "a ".repeat(200_000);
    damaged("qasper", &|row| row["answers"] = json!([long]), &["answers: expected at most 262144 bytes"]);
    damaged("trec", &|row| row["all_classes"] = Value::Null, &["all_classes: expected the names"]);
    damaged(
        "passage_retrieval_en",
        &|row| row["answers"] = json!(["3"]),
        &["\"Paragraph \" and a number", "\"3\""],
    );
    write(&dir, "trec_e.jsonl", row("trec").to_string().replace("\"length\":9", "\"length\":null"));
    fails("trec_e", 1, &["trec_e.jsonl: line 1: length: expected a number"]);
    write(&dir, "qasper.jsonl", &row("qasper").to_string()[..50]);
    fails("qasper", 1, &["qasper.jsonl: line 1: column 50", "is the file complete?"]);

    let config = |name: &str, text: &str, parts: &[&str]| {
        let file = dir.path().join("longbench").join(name);
        let before = std::fs::read(&file).unwrap();
        std::fs::write(&file, text).unwrap();
        fails("trec", 1, &[&[name], parts].concat());
        std::fs::write(&file, before).unwrap();
    };
    config("dataset2prompt.json", "[]", &["is not of LongBench", "expected a map"]);
    config("dataset2prompt.json", "{}", &["trec: expected a prompt, found none"]);
    config("dataset2prompt.json", r#"{"trec": "{input}"}"#, &["trec: expected a prompt with {context}"]);
    config(
        "dataset2prompt.json",
        r#"{"trec": "{context} {question}"}"#,
        &["trec: expected {context} and {input}", "{question}"],
    );
    config("dataset2maxlen.json", r#"{"trec": -1}"#, &["is not of LongBench", "-1"]);
    config("dataset2maxlen.json", r#"{"trec": 0}"#, &["trec: expected a number of tokens from 1"]);
    if !cfg!(feature = "chinese") {
        fails("vcsum", 1, &["vcsum.jsonl: line 1", "Chinese words", "feature `chinese`"]);
    }
}

/// The task that is there whole; what kivi-tiny scores is of no interest.
#[test]
fn multi_news_runs_to_its_end() {
    let Some(data) = std::env::var_os("KIVI_DATA")
        .filter(|data| Path::new(data).join("longbench/multi_news.jsonl").is_file())
    else {
        println!("skipped: KIVI_DATA is not set to a folder that has longbench/multi_news.jsonl");
        return;
    };
    let args = [
        "--data",
        data.to_str().unwrap(),
        "--tasks",
        "multi_news",
        "--limit",
        "5",
        "--max-length",
        "2000",
        "--json",
    ];
    let found = longbench(&args).ok().json();
    assert_eq!((&found["prompts"], &found["tasks"][0]["metric"]), (&json!(5), &json!("rouge_l")));
    let score = found["average"].as_f64().unwrap();
    assert!(score > 0.0 && score < 50.0, "{found}");
}
