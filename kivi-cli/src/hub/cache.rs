//! A repository in the cache: `blobs` has files by their ETag, `snapshots/COMMIT` names for them, `refs/REVISION` the
//! commit that a revision was when it was last fetched.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::hub_name::{HubName, is_plain};

/// The folder of one repository.
pub struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// The folder of `name` in a cache.
    pub fn new(cache: &Path, name: &HubName) -> Self {
        // Absolute, so that a relative HF_HOME does not end up in links.
        let cache = std::path::absolute(cache).unwrap_or_else(|_| cache.to_owned());
        Self { dir: cache.join(name.folder()), locks: cache.join(".locks").join(name.folder()) }
    }

    /// How messages name it.
    pub fn shown(&self) -> String {
        self.dir.display().to_string()
    }

    /// The directory of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The commit that a revision is, as far as the cache knows.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let noted = fs::read_to_string(self.dir.join("refs").join(revision)).ok();
        let commit = noted.map_or_else(|| revision.to_owned(), |noted| noted.trim().to_owned());
        (is_plain(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Notes which commit a revision is.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.dir.join("refs").join(revision);
        let known = fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit);
        if known || revision == commit {
            return Ok(());
        }
        let dir = path.parent().unwrap_or(&self.dir);
        let written = fs::create_dir_all(dir).and_then(|()| fs::write(&path, commit));
        written.with_context(|| cannot_write(&path))
    }

    /// Where the file of an ETag is when it is complete.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Where it is until then.
    pub fn part(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until no other process downloads the file of an ETag, and keeps others out while the result lives.
    pub fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let locked = || -> io::Result<File> {
            fs::create_dir_all(&self.locks)?;
            fs::create_dir_all(self.dir.join("blobs"))?;
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    tracing::warn!("{}: another process has it; waiting", path.display());
                    file.lock()?;
                }
                other => other?,
            }
            Ok(file)
        };
        locked().with_context(|| cannot_write(&path))
    }

    /// Gives a complete file its name in the snapshot.
    pub fn link(&self, etag: &str, commit: &str, file: &str) -> Result<()> {
        let (dir, blob) = (self.snapshot(commit), self.blob(etag));
        let name = dir.join(file);
        let linked = fs::create_dir_all(&dir).and_then(|()| {
            let _ = fs::remove_file(&name); // A link to a blob that is gone, at most.
            link(&blob, &Path::new("../../blobs").join(etag), &name)
        });
        linked.with_context(|| cannot_write(&name))
    }
}

#[cfg(unix)]
fn link(_blob: &Path, from_snapshot: &Path, name: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(from_snapshot, name)
}

/// Links need a privilege here; `huggingface_hub` moves files into the snapshot, too.
#[cfg(not(unix))]
fn link(blob: &Path, _from_snapshot: &Path, name: &Path) -> io::Result<()> {
    fs::rename(blob, name)
}

/// What to say of a path that cannot be written.
pub fn cannot_write(path: &Path) -> String {
    format!("{}: cannot be written; make room or set HF_HOME to another directory", path.display())
}
