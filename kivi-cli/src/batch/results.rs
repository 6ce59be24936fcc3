//! The results of a batch file: a line each, and beside them `OUT.run`, which says what they belong to and is locked
//! while they are written.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kivi_model::error::clean;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Usage;
use crate::format::path as name;

/// What results depend on: those of a run that goes on must be the same.
pub type Settings = BTreeMap<String, Value>;

/// The content of `OUT.run`.
#[derive(Serialize, Deserialize)]
struct Note {
    seed: u64,
    settings: Settings,
}

/// One result.
#[derive(Serialize)]
pub struct ResultLine<'a> {
    /// The prompt's.
    pub id: &'a Value,
    /// The new text.
    pub text: &'a str,
    /// The new tokens.
    pub token_ids: &'a [u32],
    /// `stop`, `length` or `error`.
    pub finish_reason: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The number of `token_ids`.
    pub generated_tokens: usize,
    /// The seed, if anything was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The file of results, open for more.
pub struct Results {
    label: String,
    file: File,
    /// Ids, as JSON, of the results that were there.
    pub done: HashSet<String>,
    /// The seed of the run.
    pub seed: u64,
    /// Holds the lock.
    _note: File,
}

/// Checks what can be checked of `--out` before the batch file is read.
pub fn check(out: &Path, batch_file: &Path) -> Result<()> {
    let same = |path: &Path| match (path.canonicalize(), batch_file.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => path == batch_file,
    };
    if same(out) || same(&note_path(out)) {
        return Err(Usage(format!("--out: {} would overwrite --batch-file; give another", name(out))).into());
    }
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        bail!("{}: cannot be written: {}: no such directory; make it first", name(out), name(dir));
    }
    if out.exists() && !out.is_file() {
        bail!("{}: is not a regular file; give another --out", name(out));
    }
    Ok(())
}

impl Results {
    /// Opens the results of a run, or goes on with those that are there if they are of the same run. `asked` is the
    /// seed that was asked for, `seed` the one of a new run.
    pub fn open(out: &Path, settings: Settings, asked: Option<u64>, seed: u64) -> Result<Self> {
        let label = name(out);
        let unwritable = || format!("{label}: cannot be written");
        let mut note = locked(out)?;
        let file = File::options().read(true).append(true).create(true).open(out).with_context(unwritable)?;
        let begun = file.metadata().with_context(unwritable)?.len() > 0;
        let mut text = String::new();
        let known =
            note.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str::<Note>(&text).ok());
        let seed = match known {
            _ if !begun => {
                let seed = asked.unwrap_or(seed);
                write_note(&mut note, &Note { seed, settings }).with_context(unwritable)?;
                seed
            }
            None => {
                bail!("{label}: exists, but its {label}.run does not say of which run; give another --out")
            }
            Some(known) => {
                known.same(&settings, asked).map_err(|why| anyhow::anyhow!("{label}: {why}"))?;
                known.seed
            }
        };
        let done = recover(&file, &label)?;
        Ok(Self { label, file, done, seed, _note: note })
    }

    /// Adds a result: one line, one write, so that at most the last line is torn when the power fails.
    pub fn add(&mut self, result: &ResultLine<'_>) -> Result<()> {
        let line = serde_json::to_string(result)? + "\n";
        let written = self.file.write_all(line.as_bytes());
        written.with_context(|| {
            format!("{}: cannot be written; the same command goes on from there", self.label)
        })
    }
}

impl Note {
    /// Whether a run with these settings can go on with this one's results, or why not.
    fn same(&self, settings: &Settings, asked: Option<u64>) -> Result<(), String> {
        let todo = "go on with the same, or give another --out";
        if let Some(asked) = asked.filter(|asked| *asked != self.seed) {
            return Err(format!("was begun with --seed {}, found {asked}; {todo}", self.seed));
        }
        let differs = |key: &&String| self.settings.get(*key) != settings.get(*key);
        let Some(key) = settings.keys().chain(self.settings.keys()).find(differs) else { return Ok(()) };
        let value =
            |of: &Settings| of.get(key).map_or("nothing".to_owned(), |value| clean(&value.to_string()));
        Err(format!("was begun with {key} {}, found {}; {todo}", value(&self.settings), value(settings)))
    }
}

/// `OUT.run`, locked.
fn locked(out: &Path) -> Result<File> {
    let path = note_path(out);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("{}: cannot be written", name(&path)))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{}: another process is writing it; wait for it, or give another --out", name(out))
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{}: cannot be locked", name(&path)))
        }
    }
}

fn write_note(file: &mut File, note: &Note) -> Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all((serde_json::to_string_pretty(note)? + "\n").as_bytes())?;
    Ok(file.sync_data()?)
}

/// The ids that are done. A torn line at the end is cut off; anything else that is no result is an error.
fn recover(file: &File, label: &str) -> Result<HashSet<String>> {
    let mut reader = BufReader::new(file);
    let (mut done, mut good, mut number) = (HashSet::new(), 0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).with_context(|| format!("{label}: cannot be read"))?;
        number += 1;
        let Some(id) = id(&line) else { break };
        if !done.insert(id) {
            bail!("{label}: line {number}: has the id of an earlier line; give another --out");
        }
        good += line.len() as u64;
    }
    let rest = !reader.fill_buf().with_context(|| format!("{label}: cannot be read"))?.is_empty();
    if rest {
        bail!("{label}: line {number}: is not a result; give another --out, or remove the line");
    }
    if !line.is_empty() {
        tracing::warn!("{label}: line {number} is torn and is made again");
        file.set_len(good).with_context(|| format!("{label}: cannot be written"))?;
    }
    Ok(done)
}

/// The id of a line that is complete.
fn id(line: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
    let id = value.get("id").filter(|id| id.is_string() || id.is_number())?;
    value.get("finish_reason").map(|_| id.to_string())
}

fn note_path(out: &Path) -> PathBuf {
    let mut path: OsString = out.into();
    path.push(".run");
    path.into()
}
