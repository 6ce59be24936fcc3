//! The lines of a batch file. The file is read twice, a line at a time: once to check it, once to run it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use kivi_model::error::clean;
use kivi_model::sampler::SamplingParams;
use kivi_model::stop::StopStrings;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::args::MAX_TOKENS;
use crate::prompts::{Content, Prompt};
use crate::{format, hash};

/// The longest line.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// A line as it is written; what is not here is no field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    id: Option<Value>,
    prompt: Option<String>,
    prompt_ids: Option<Vec<u32>>,
    max_tokens: Option<usize>,
    stop: Option<Vec<String>>,
    seed: Option<u64>,
    temperature: Option<f32>,
}

/// One prompt of the file, with what it asks for instead of the flags.
#[derive(Debug)]
pub struct Line {
    /// Its number in the file, from 1.
    pub number: usize,
    /// Its name in the results: a string or a number.
    pub id: Value,
    /// What is to be continued.
    pub prompt: Prompt,
    /// Instead of `--max-tokens`.
    pub max_tokens: Option<usize>,
    /// Instead of `--stop`.
    pub stop: Option<Vec<String>>,
    /// Instead of the seed that follows from the run's and the id.
    pub seed: Option<u64>,
    /// Instead of `--temperature`.
    pub temperature: Option<f32>,
}

impl Line {
    /// The seed of this line: its own, or one that depends on the run's seed and the id alone.
    pub fn seed(&self, run: u64) -> u64 {
        let derived =
            || hash::number(Sha256::new().chain_update(run.to_le_bytes()).chain_update(self.id.to_string()));
        self.seed.unwrap_or_else(derived)
    }
}

/// Reads a batch file.
pub struct Lines {
    label: String,
    file: BufReader<File>,
    hash: Sha256,
    number: usize,
}

impl Lines {
    /// Opens a batch file at its beginning.
    pub fn open(path: &Path) -> Result<Self> {
        let label = format::path(path);
        let meta = std::fs::metadata(path).with_context(|| format!("{label}: cannot be opened"))?;
        if !meta.is_file() {
            bail!("{label}: is not a regular file; a batch file is read twice, so write it to one");
        }
        let file = File::open(path).with_context(|| format!("{label}: cannot be opened"))?;
        Ok(Self { label, file: BufReader::new(file), hash: Sha256::new(), number: 0 })
    }

    /// The next prompt; blank lines are passed over.
    pub fn next(&mut self) -> Result<Option<Line>> {
        loop {
            let Some(bytes) = self.bytes()? else { return Ok(None) };
            if !bytes.trim_ascii().is_empty() {
                let line = parse(&bytes, self.number);
                return line.map(Some).map_err(|why| self.error(self.number, &why));
            }
        }
    }

    /// The SHA-256 of what was read.
    pub fn sha256(self) -> String {
        hash::hex(self.hash)
    }

    /// What is wrong with a line, with its place.
    pub fn error(&self, number: usize, why: &str) -> anyhow::Error {
        anyhow!("{}: line {number}: {why}", self.label)
    }

    fn bytes(&mut self) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut source = (&mut self.file).take(MAX_LINE_BYTES + 1);
        let read = source.read_until(b'\n', &mut bytes);
        read.with_context(|| format!("{}: cannot be read", self.label))?;
        self.number += 1;
        self.hash.update(&bytes);
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(
                self.error(self.number, &format!("is longer than {MAX_LINE_BYTES} bytes; shorten it"))
            );
        }
        Ok((!bytes.is_empty()).then_some(bytes))
    }
}

fn parse(bytes: &[u8], number: usize) -> Result<Line, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        format!("expected UTF-8 text, found another byte at {}; convert it", error.valid_up_to())
    })?;
    let fields: Fields = serde_json::from_str(text)
        .map_err(|error| not_a_line(&error, r#"{"prompt": "Once upon a time"}"#))?;
    let content = match (fields.prompt, fields.prompt_ids) {
        (Some(text), None) if !text.is_empty() => Content::Text(text),
        (None, Some(ids)) if !ids.is_empty() => Content::Ids(ids),
        (Some(_), Some(_)) => return Err("expected prompt or prompt_ids, found both".into()),
        (None, None) => return Err("expected prompt or prompt_ids, found neither".into()),
        _ => return Err("expected something to continue, found an empty prompt".into()),
    };
    if let Some(n) = fields.max_tokens.filter(|n| !(1..=MAX_TOKENS).contains(n)) {
        return Err(format!("max_tokens: expected a whole number from 1 to {MAX_TOKENS}, found {n}"));
    }
    StopStrings::new(fields.stop.clone().unwrap_or_default()).map_err(|error| error.to_string())?;
    if let Some(temperature) = fields.temperature {
        let params = SamplingParams { temperature, ..SamplingParams::default() };
        params.validate().map_err(|error| error.to_string())?;
    }
    let id = id(fields.id, number)?;
    Ok(Line {
        number,
        prompt: Prompt { label: format!("prompt {id}"), content },
        id,
        max_tokens: fields.max_tokens,
        stop: fields.stop,
        seed: fields.seed,
        temperature: fields.temperature,
    })
}

/// A string, a whole number, or else the number of the line.
fn id(asked: Option<Value>, number: usize) -> Result<Value, String> {
    match asked {
        None => Ok(number.into()),
        Some(id) if id.is_string() || id.is_u64() || id.is_i64() => Ok(id),
        Some(id) => Err(format!("id: expected a string or a whole number, found {}", clean(&id.to_string()))),
    }
}

/// Why a line of JSON is not what it should be, without the parser's line, which is always 1.
pub fn not_a_line(error: &serde_json::Error, example: &str) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    // It may quote the line, which may be long.
    let reason: String = reason.chars().take(200).collect();
    format!("column {}: {reason}; expected an object as {example}", error.column())
}
