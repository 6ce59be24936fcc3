//! The files of LongBench, in the data folder.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::tasks::Part;
use super::template::Template;
use crate::args::DataArgs;
use crate::eval::data::{DataFolder, DataText, Origin};

/// Where prompts and lengths are from.
const GET_CONFIG: &str = "copy dataset2prompt.json and dataset2maxlen.json of https://github.com/THUDM/LongBench, folder config, to DIR/longbench";
/// Where rows are from.
const GET_ROWS: &str = "unpack data.zip of https://huggingface.co/datasets/THUDM/LongBench in DIR/longbench";
const EXAMPLE: &str =
    r#"{"input": "Who?", "context": "A long text", "answers": ["Anna"], "length": 3, "all_classes": null}"#;

/// Bytes of a right answer, at most: the time and memory of a score grow with it. LongBench's have some thousands.
const MAX_ANSWER: usize = 256 << 10;

/// A part of LongBench, read.
pub struct Set {
    /// Which.
    pub part: Part,
    /// Its prompt.
    pub template: Template,
    /// Tokens of an answer.
    pub answer_tokens: usize,
    /// Its rows.
    pub rows: Vec<Row>,
    /// The SHA-256 of their file.
    pub sha256: Value,
}

/// A question with its text.
#[derive(Debug, Deserialize)]
pub struct Row {
    /// The question.
    pub input: String,
    /// The text.
    pub context: String,
    #[serde(flatten)]
    pub key: Key,
}

/// What an answer is compared with.
#[derive(Clone, Debug, Deserialize)]
pub struct Key {
    /// The right answers.
    pub answers: Vec<String>,
    /// Names that a classification chooses from.
    #[serde(default, rename = "all_classes")]
    classes: Option<Vec<String>>,
    /// Words of the text, or its characters if it is Chinese: what LongBench-E is reported by.
    #[serde(default)]
    length: Option<u64>,
}

impl Key {
    /// The score of an answer, from 0 to 1.
    ///
    /// # Errors
    /// A right answer is not one of this task.
    pub fn score(&self, part: Part, answer: &str) -> Result<f64> {
        part.task.score(answer, &self.answers, self.classes.as_deref().unwrap_or_default())
    }

    /// The length of the text, if it is known.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Checks that an answer can be scored.
    fn check(&self, part: Part) -> Result<()> {
        if self.answers.is_empty() {
            bail!("answers: expected at least one, found none");
        }
        if let Some(long) = self.answers.iter().map(String::len).find(|len| *len > MAX_ANSWER) {
            bail!("answers: expected at most {MAX_ANSWER} bytes each, found {long}");
        }
        if part.task.needs_classes() && self.classes.as_deref().unwrap_or_default().is_empty() {
            bail!("all_classes: expected the names of the classes, found none");
        }
        if part.by_length && self.length.is_none() {
            bail!("length: expected a number, found none");
        }
        self.score(part, "").map(drop)
    }
}

/// Reads these parts, and SHA-256 of the prompts.
///
/// # Errors
/// A file is missing or is not what it should be.
pub fn read(args: &DataArgs, parts: &[Part]) -> Result<(Vec<Set>, Value)> {
    let folder = DataFolder::new(args);
    let prompts = find(&folder, ["dataset2prompt.json", "config/dataset2prompt.json"], GET_CONFIG)?;
    let lengths = find(&folder, ["dataset2maxlen.json", "config/dataset2maxlen.json"], GET_CONFIG)?;
    let templates: BTreeMap<String, String> = map(&prompts)?;
    let answer_tokens: BTreeMap<String, usize> = map(&lengths)?;
    let set = |part: &Part| {
        let name = part.task.name;
        let of = |label: &str| format!("{label}: {name}");
        let template =
            templates.get(name).context("expected a prompt, found none").and_then(|text| Template::new(text));
        let tokens = answer_tokens.get(name).copied().filter(|tokens| *tokens > 0);
        let rows = find(&folder, [&format!("{part}.jsonl"), &format!("data/{part}.jsonl")], GET_ROWS)?;
        Ok(Set {
            part: *part,
            template: template.with_context(|| of(&prompts.label))?,
            answer_tokens: tokens
                .context("expected a number of tokens from 1, found none")
                .with_context(|| of(&lengths.label))?,
            rows: checked(&rows, *part)?,
            sha256: rows.sha256(),
        })
    };
    Ok((parts.iter().map(set).collect::<Result<_>>()?, prompts.sha256()))
}

/// The first of two files that is there.
fn find(folder: &DataFolder, names: [&str; 2], get: &str) -> Result<DataText> {
    let [here, there] = names.map(|name| format!("longbench/{name}"));
    let [here, there] = [&here, &there].map(|path| Origin { path, get });
    let is_there = folder.find(here).is_err() && folder.find(there).is_ok();
    folder.text(if is_there { there } else { here })
}

/// An object of JSON with something for each task.
fn map<T: DeserializeOwned>(text: &DataText) -> Result<BTreeMap<String, T>> {
    serde_json::from_str(&text.text).with_context(|| format!("{}: is not of LongBench", text.label))
}

fn checked(text: &DataText, part: Part) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (line, row) in text.numbered_rows::<Row>(EXAMPLE)? {
        row.key.check(part).with_context(|| format!("{}: line {line}", text.label))?;
        rows.push(row);
    }
    Ok(rows)
}
