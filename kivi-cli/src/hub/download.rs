//! One file of the hub: fetched from where the last attempt ended, and given its name when it is complete.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::cache::{RepoCache, cannot_write};
use super::client::{Client, Metadata, header};
use crate::hash::hex;
use crate::output;

/// Fetches the files of a commit.
pub struct Download<'a> {
    /// Whom to ask.
    pub client: &'a Client,
    /// Where to put them.
    pub cache: &'a RepoCache,
    /// The commit.
    pub commit: &'a str,
    /// Whether bars are shown.
    pub progress: bool,
}

impl Download<'_> {
    /// Fetches a file unless the snapshot has it.
    pub fn file(&self, file: &str) -> Result<()> {
        if self.cache.snapshot(self.commit).join(file).exists() {
            return Ok(());
        }
        let url = self.client.file_url(self.commit, file);
        let about = self.client.metadata(&url)?;
        let _lock = self.cache.lock(&about.etag)?;
        let blob = self.cache.blob(&about.etag);
        if !blob.exists() {
            let part = self.cache.part(&about.etag);
            self.fill(&url, file, &about, &part)?;
            check(file, &about, &part)?;
            fs::rename(&part, &blob).with_context(|| cannot_write(&blob))?;
        }
        self.cache.link(&about.etag, self.commit, file)
    }

    /// Brings the part up to its full size, which is that of the file or an error.
    fn fill(&self, url: &str, file: &str, about: &Metadata, part: &Path) -> Result<()> {
        let opened = File::options().append(true).create(true).open(part);
        let mut out = opened.with_context(|| cannot_write(part))?;
        let mut start = out.metadata().with_context(|| cannot_write(part))?.len();
        if start > about.size {
            (start, _) = (0, restart(&out, part)?);
        }
        if start == about.size {
            return Ok(());
        }
        let response = self.client.get(url, (start > 0).then_some(start))?;
        if start > 0 && !continues(&response, start, about.size) {
            tracing::info!("{file}: cannot be resumed, starts again");
            (start, _) = (0, restart(&out, part)?);
            if response.status() != StatusCode::OK {
                return self.copy(self.client.get(url, None)?, file, 0, about, &mut out, part);
            }
        }
        self.copy(response, file, start, about, &mut out, part)
    }

    /// Appends what the server sends.
    fn copy(
        &self,
        response: Response<Body>,
        file: &str,
        start: u64,
        about: &Metadata,
        out: &mut File,
        part: &Path,
    ) -> Result<()> {
        let response = self.client.checked(response)?;
        let bar = self.bar(file, start, about.size);
        // One byte more than expected shows that there are too many.
        let mut body = response.into_body().into_reader().take(about.size - start + 1);
        let end = append(&mut body, out, part, &bar);
        bar.finish_and_clear();
        let done = start + end?;
        if done > about.size {
            restart(out, part)?;
            bail!("{file}: is longer than the {} bytes that were announced; try again later", about.size);
        }
        if done < about.size {
            bail!(
                "{file}: the connection broke off after {done} of {} bytes; run it again to resume",
                about.size
            );
        }
        out.sync_data().with_context(|| cannot_write(part))
    }

    fn bar(&self, file: &str, start: u64, size: u64) -> ProgressBar {
        let template = "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left";
        let bar = output::bar(self.progress, "", template).with_message(file.to_owned());
        bar.set_length(size);
        bar.set_position(start);
        bar.reset_eta();
        bar
    }
}

/// Copies until the source ends or breaks off; returns the bytes that were copied. Only writing can fail: a source
/// that breaks off has ended too early.
fn append(body: &mut impl Read, out: &mut File, part: &Path, bar: &ProgressBar) -> Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(n) => n,
            Err(error) => {
                tracing::info!("download: {error}");
                return Ok(done);
            }
        };
        out.write_all(&buffer[..n]).with_context(|| cannot_write(part))?;
        done += n as u64;
        bar.inc(n as u64);
    }
}

/// Whether an answer is the rest of the same file.
fn continues(response: &Response<Body>, start: u64, size: u64) -> bool {
    let range = header(response, "content-range");
    let expected = format!("bytes {start}-{}/{size}", size - 1);
    response.status() == StatusCode::PARTIAL_CONTENT && range == Some(expected)
}

fn restart(out: &File, part: &Path) -> Result<()> {
    out.set_len(0).with_context(|| cannot_write(part))
}

/// Checks the content of a complete file where the ETag says what it is; a damaged one is removed.
fn check(file: &str, about: &Metadata, part: &Path) -> Result<()> {
    if about.etag.len() != 64 || !about.etag.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = File::open(part).with_context(|| format!("{}: cannot be opened", part.display()))?;
    loop {
        let n = bytes.read(&mut buffer).with_context(|| format!("{}: cannot be read", part.display()))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    if hex(hash) == about.etag.to_lowercase() {
        return Ok(());
    }
    fs::remove_file(part).with_context(|| cannot_write(part))?;
    bail!("{file}: was damaged on its way: its SHA-256 is not the announced one; run it again")
}
