//! Where the files of a checkpoint come from: a directory, or bytes inside the program.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{LoadError, clean};

/// First bytes of the file that git leaves in the place of a large one.
pub(crate) const LFS_PREFIX: &[u8] = b"version https://git-lfs";

/// The files of one checkpoint, in the layout of the Hugging Face hub.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory.
    Dir(PathBuf),
    /// Files that are part of the program.
    Embedded {
        /// What messages call it, in place of a path.
        name: &'static str,
        /// File names with their bytes.
        files: &'static [(&'static str, &'static [u8])],
    },
}

impl Source {
    /// Checks that there is something to look into.
    ///
    /// # Errors
    /// [`LoadError::NoSuchDirectory`] and [`LoadError::NotADirectory`].
    pub fn check(&self) -> Result<(), LoadError> {
        let Source::Dir(dir) = self else { return Ok(()) };
        match std::fs::metadata(dir) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(LoadError::NotADirectory { path: show(dir) }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(LoadError::NoSuchDirectory { dir: show(dir) })
            }
            Err(source) => Err(LoadError::Io { file: show(dir), source }),
        }
    }

    /// How messages name a file of this checkpoint; an empty name means the checkpoint itself.
    pub fn place(&self, file: &str) -> String {
        match self {
            Source::Dir(dir) if file.is_empty() => show(dir),
            Source::Dir(dir) => show(&dir.join(file)),
            Source::Embedded { name, .. } if file.is_empty() => (*name).to_string(),
            Source::Embedded { name, .. } => format!("{name}/{}", clean(file)),
        }
    }

    /// Whether the checkpoint has something of this name.
    pub fn has(&self, file: &str) -> bool {
        match self {
            Source::Dir(dir) => dir.join(file).exists(),
            Source::Embedded { files, .. } => files.iter().any(|(name, _)| *name == file),
        }
    }

    /// The names of all files, sorted.
    ///
    /// # Errors
    /// [`LoadError::Io`] if the directory cannot be listed.
    pub(crate) fn names(&self) -> Result<Vec<String>, LoadError> {
        let mut names: Vec<String> = match self {
            Source::Embedded { files, .. } => files.iter().map(|(name, _)| (*name).to_string()).collect(),
            Source::Dir(dir) => std::fs::read_dir(dir)
                .map_err(|source| LoadError::Io { file: show(dir), source })?
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
        };
        names.sort_unstable();
        Ok(names)
    }

    /// Reads a small file; `None` if there is none of this name.
    ///
    /// # Errors
    /// The directory does not exist, the file is unreadable, not a regular file, larger than
    /// `max_bytes`, or a git-LFS pointer.
    pub fn read(&self, file: &str, max_bytes: u64) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        let place = || self.place(file);
        let bytes: Cow<'static, [u8]> = match self {
            Source::Embedded { files, .. } => match files.iter().find(|(name, _)| *name == file) {
                Some((_, bytes)) => Cow::Borrowed(bytes),
                None => return Ok(None),
            },
            Source::Dir(dir) => {
                self.check()?;
                let Some((opened, len)) = open(&dir.join(file))? else { return Ok(None) };
                if len > max_bytes {
                    return Err(LoadError::FileTooLarge { file: place(), bytes: len, max_bytes });
                }
                let mut bytes = Vec::new();
                let read = opened.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes);
                read.map_err(|source| LoadError::Io { file: place(), source })?;
                Cow::Owned(bytes)
            }
        };
        if bytes.len() as u64 > max_bytes {
            return Err(LoadError::FileTooLarge { file: place(), bytes: bytes.len() as u64, max_bytes });
        }
        if bytes.starts_with(LFS_PREFIX) {
            return Err(LoadError::LfsPointer { file: place() });
        }
        Ok(Some(bytes))
    }

    /// Reads a small file that must be there; `hint` says what to do if it is not.
    ///
    /// # Errors
    /// [`LoadError::MissingFile`], and those of [`Source::read`].
    pub fn read_required(
        &self,
        file: &str,
        max_bytes: u64,
        hint: &'static str,
    ) -> Result<Cow<'static, [u8]>, LoadError> {
        self.read(file, max_bytes)?.ok_or_else(|| LoadError::MissingFile { file: self.place(file), hint })
    }
}

/// Opens a regular file and gives its length; `None` if it does not exist.
///
/// The kind is checked before opening: opening a named pipe would wait for a writer.
pub(crate) fn open(path: &Path) -> Result<Option<(File, u64)>, LoadError> {
    let io = |source| LoadError::Io { file: show(path), source };
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
        Ok(found) if !found.is_file() => return Err(LoadError::NotAFile { file: show(path) }),
        Ok(_) => {}
    }
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    Ok(Some((file, len)))
}

/// A path as one line; long paths are kept whole, since the user has to find them.
fn show(path: &Path) -> String {
    path.display().to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMBEDDED: Source = Source::Embedded {
        name: "tiny",
        files: &[("config.json", b"{}"), ("big.json", b"version https://git-lfs.github.com/spec/v1")],
    };

    #[test]
    fn embedded_files_are_read_like_others() {
        assert_eq!(EMBEDDED.read("config.json", 2).unwrap().unwrap().as_ref(), b"{}");
        assert!(EMBEDDED.read("absent", 2).unwrap().is_none());
        assert!(matches!(EMBEDDED.read("config.json", 1), Err(LoadError::FileTooLarge { bytes: 2, .. })));
        assert!(matches!(EMBEDDED.read("big.json", 99), Err(LoadError::LfsPointer { .. })));
        assert_eq!(EMBEDDED.place("config.json"), "tiny/config.json");
        assert_eq!(EMBEDDED.place(""), "tiny");
    }

    #[test]
    fn a_directory_in_the_place_of_a_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("config.json")).unwrap();
        let source = Source::Dir(dir.path().to_path_buf());
        assert!(matches!(source.read("config.json", 9), Err(LoadError::NotAFile { .. })));
        assert_eq!(source.names().unwrap(), ["config.json"]);
    }
}
