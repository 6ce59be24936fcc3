//! Files of tasks, in a folder of the user's. They are not part of the program; where one is missing, the message says where it
//! is from.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::args::DataArgs;
use crate::batch::input::not_a_line;
use crate::{format, hash, prompts};

/// Where a file or folder of a task is, and where it is from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Its path in the data folder, as `gsm8k/test.jsonl`.
    pub path: &'a str,
    /// How to get it, as `copy the folder X of https://... to DIR/gsm8k`.
    pub get: &'a str,
}

/// The data folder.
pub struct DataFolder(Option<PathBuf>);

impl DataFolder {
    /// That of the arguments, else of the environment.
    pub fn new(args: &DataArgs) -> Self {
        let variable = || std::env::var_os("KIVI_DATA").filter(|folder| !folder.is_empty());
        Self(args.data.clone().or_else(|| variable().map(PathBuf::from)))
    }

    /// The path of something that is there.
    ///
    /// # Errors
    /// There is no data folder, or it does not have this.
    pub fn find(&self, of: Origin<'_>) -> Result<PathBuf> {
        let Origin { path, get } = of;
        let Some(folder) = &self.0 else {
            bail!("--data: expected a folder DIR with {path}; {get}, then give --data DIR or set KIVI_DATA");
        };
        let path = folder.join(path);
        if let Err(error) = path.metadata() {
            bail!(
                "{}: cannot be opened: {error}; {get} (DIR is the folder of --data or KIVI_DATA)",
                format::path(&path)
            );
        }
        Ok(path)
    }

    /// The text of a file.
    ///
    /// # Errors
    /// It is missing, too large, empty or not UTF-8.
    pub fn text(&self, of: Origin<'_>) -> Result<DataText> {
        read(&self.find(of)?)
    }

    /// The texts of the files of a folder whose names end so, by name.
    ///
    /// # Errors
    /// The folder or its files are missing, or one of them cannot be read.
    pub fn texts(&self, of: Origin<'_>, ending: &str) -> Result<Vec<DataText>> {
        let folder = self.find(of)?;
        let unreadable = || format!("{}: cannot be read", format::path(&folder));
        let mut paths = Vec::new();
        for entry in folder.read_dir().with_context(unreadable)? {
            paths.push(entry.with_context(unreadable)?.path());
        }
        paths.retain(|path| path.to_string_lossy().ends_with(ending));
        paths.sort_unstable();
        if paths.is_empty() {
            bail!("{}: expected files *{ending}, found none; {}", format::path(&folder), of.get);
        }
        paths.iter().map(|path| read(path)).collect()
    }
}

fn read(path: &Path) -> Result<DataText> {
    let label = format::path(path);
    let file = File::open(path).with_context(|| format!("{label}: cannot be opened"))?;
    let bytes = prompts::bytes(&label, file)?;
    let text = prompts::utf8(&label, &bytes)?;
    if text.trim_ascii().is_empty() {
        bail!("{label}: expected a text, found an empty one; is the file complete?");
    }
    Ok(DataText { label, text, sha256: hash::hex(Sha256::new_with_prefix(&bytes)) })
}

/// The text of a file.
pub struct DataText {
    /// What messages call it.
    pub label: String,
    /// What it says.
    pub text: String,
    sha256: String,
}

impl DataText {
    /// The SHA-256 of the file, for [`super::task::Task::settings`].
    pub fn sha256(&self) -> Value {
        self.sha256.as_str().into()
    }

    /// The rows of a file with a JSON object on each line; `example` is such a line.
    ///
    /// # Errors
    /// A line is not what it should be, as the last one of a file that is cut off.
    pub fn rows<T: DeserializeOwned>(&self, example: &str) -> Result<Vec<T>> {
        Ok(self.numbered_rows(example)?.into_iter().map(|(_, row)| row).collect())
    }

    /// The same, each with the number of its line.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub fn numbered_rows<T: DeserializeOwned>(&self, example: &str) -> Result<Vec<(usize, T)>> {
        let lines = self.text.lines().enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
        let row = |(number, line): (usize, &str)| {
            serde_json::from_str(line).map(|row| (number + 1, row)).map_err(|error| {
                let why = not_a_line(&error, example);
                anyhow::anyhow!("{}: line {}: {why}; is the file complete?", self.label, number + 1)
            })
        };
        lines.map(row).collect()
    }
}
