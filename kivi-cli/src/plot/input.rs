//! Results as they are read from files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::bench::results::Results;
use crate::format;

/// The largest file that is read.
const MAX_BYTES: u64 = 256 << 20;

/// A result.
#[derive(Debug)]
pub struct Input {
    /// What messages call it.
    pub name: String,
    /// What wrote it.
    pub command: String,
    value: Value,
}

impl Input {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is not what a command of kivi wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let name = format::path(path);
        let file = File::open(path).with_context(|| format!("{name}: cannot be opened"))?;
        let mut bytes = Vec::new();
        let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("{name}: cannot be read"))?;
        if bytes.len() as u64 > MAX_BYTES {
            bail!("{name}: is longer than {MAX_BYTES} bytes, expected a result");
        }
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| anyhow!("{name}: expected JSON that kivi-cli wrote: {error}"))?;
        Self::new(name, value)
    }

    /// A result with its name.
    ///
    /// # Errors
    /// It does not say which command wrote it.
    pub fn new(name: String, value: Value) -> Result<Self> {
        let Some(command) = value.get("command").and_then(Value::as_str).map(str::to_owned) else {
            bail!("{name}: has no text `command`, expected JSON that kivi-cli wrote");
        };
        Ok(Self { name, command, value })
    }

    /// What it says, as `T`.
    ///
    /// # Errors
    /// It lacks something.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.value)
            .map_err(|error| anyhow!("expected a result of `{}`: {error}", self.command))
    }

    /// The file, without its folder and ending.
    pub fn stem(&self) -> &str {
        let name = super::kld::file_name(&self.name);
        name.strip_suffix(".json").unwrap_or(name)
    }
}

/// The only result.
///
/// # Errors
/// There are several.
pub fn only(inputs: &[Input]) -> Result<&Input> {
    match inputs {
        [input] => Ok(input),
        _ => bail!("expected one result for this kind, found {}", inputs.len()),
    }
}

/// The rows of all results of `bench`.
///
/// # Errors
/// One is none, has no rows, or is of another model or device.
pub fn bench(inputs: &[Input]) -> Result<Results> {
    let mut all: Option<Results> = None;
    for input in inputs {
        let one: Results = input.parse().with_context(|| input.name.clone())?;
        if one.rows.is_empty() {
            bail!("{}: has no rows", input.name);
        }
        let Some(all) = &mut all else {
            all = Some(one);
            continue;
        };
        let of = |results: &Results| format!("{} on {}", results.host.model, results.host.provenance.device);
        if of(all) != of(&one) {
            bail!("{}: is of {}, expected {} as the first", input.name, of(&one), of(all));
        }
        all.rows.extend(one.rows);
    }
    all.ok_or_else(|| anyhow!("no results were given"))
}

/// The names of all results.
pub fn names(inputs: &[Input]) -> String {
    inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ")
}
