//! The cache of a text in a file: pages, residual rows, tokens and settings, so that the text goes on later, or elsewhere,
//! as if it had never stopped.
//!
//! `docs/format.md` has the layout of the file. A file is written whole or not at all, and is refused unless its checksum
//! is right and it belongs to this model and these settings.

mod header;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};
use sha2::{Digest, Sha256};

use crate::cache::{LayerState, SequenceState, Snapshot};
use crate::error::{LoadError, clean};
use crate::map::map;
use crate::source::open;
pub(crate) use header::Header;
pub use header::Mismatch;

const FORMAT: &str = "kivi-cache";
const VERSION: &str = "1";
const CHECKSUM: &str = "sha256";
/// How many tokens are in the cache.
const CACHED: &str = "cached";
/// How many were in the cache at each snapshot.
const SNAPSHOTS: &str = "snapshots";
/// The arrays of a layer in a snapshot.
const ROWS: [&str; 2] = ["k_rows", "v_rows"];
/// Begins the names of notes.
const NOTE: &str = "note.";
const TOKENS: &str = "tokens";
/// The arrays of a layer, in the order of [`LayerState`].
const ARRAYS: [&str; 5] = ["pages", "k_rows", "v_rows", "k_sinks", "v_sinks"];

/// The cache of a text, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedCache {
    pub(crate) header: Header,
    /// The text's tokens, the first `state.len` of which are in the cache.
    pub(crate) tokens: Vec<u32>,
    pub(crate) state: SequenceState,
    /// States that the text can be taken back to.
    pub(crate) snapshots: Vec<Snapshot>,
    /// What a program adds to the file, by name; nothing in kivi-model reads it.
    pub notes: BTreeMap<String, String>,
}

/// Why a file of a saved cache cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError {
    /// The operating system refused.
    #[error("{file}: cannot be {action}: {reason}")]
    Io {
        /// The file.
        file: String,
        /// `read` or `written`.
        action: &'static str,
        /// The system's reason.
        reason: String,
    },
    /// It is something else.
    #[error("{file}: is not a saved cache: {reason}; pass a file that --save-cache made")]
    NotACache {
        /// The file.
        file: String,
        /// What shows it.
        reason: String,
    },
    /// It was one.
    #[error("{file}: is damaged: {reason}; save the cache again")]
    Damaged {
        /// The file.
        file: String,
        /// What shows it.
        reason: String,
    },
}

/// An array of words as safetensors sees it.
struct Words<'a>([usize; 1], &'a [u32]);

impl View for Words<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::U32
    }

    fn shape(&self) -> &[usize] {
        &self.0
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(self.1))
    }

    fn data_len(&self) -> usize {
        size_of_val(self.1)
    }
}

impl SavedCache {
    /// The tokens of the text; the last ones need not be in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Writes the file under a passing name beside it, and renames it when it is complete. What is there and is no regular
    /// file, such as a device, is not replaced.
    ///
    /// # Errors
    /// [`SavedError::Io`]; a file that was there before is as it was.
    pub fn write(&self, path: &Path) -> Result<(), SavedError> {
        let io = |reason: &dyn std::fmt::Display| SavedError::Io {
            file: path.display().to_string(),
            action: "written",
            reason: clean(&reason.to_string()),
        };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !dir.is_dir() {
            return Err(io(&format!("{}: no such directory", dir.display())));
        }
        // A device would be replaced by the file.
        if path.exists() && !path.is_file() {
            return Err(io(&"it is not a regular file"));
        }
        // The kind alone: the library's text names the passing file.
        let temporary = builder().tempfile_in(dir).map_err(|e| io(&e.kind()))?;
        let arrays = self.arrays();
        let mut metadata = self.header.metadata(self.state.layers.iter().map(|layer| layer.left));
        metadata.insert(CACHED.into(), self.state.len.to_string());
        let lens: Vec<usize> = self.snapshots.iter().map(|snapshot| snapshot.len).collect();
        metadata.insert(SNAPSHOTS.into(), format!("{lens:?}"));
        metadata.extend(self.notes.iter().map(|(name, text)| (format!("{NOTE}{name}"), text.clone())));
        metadata.insert(
            CHECKSUM.into(),
            checksum(&metadata, arrays.iter().map(|(n, w)| (n.as_str(), bytemuck::cast_slice(w)))),
        );
        let views = arrays.iter().map(|(name, words)| (name.as_str(), Words([words.len()], words)));
        safetensors::serialize_to_file(views, Some(metadata), temporary.path()).map_err(|e| io(&e))?;
        // The library has put a file of its own in the place of ours, which only its owner may read.
        let permissions = temporary.as_file().metadata().map_err(|e| io(&e))?.permissions();
        let file = File::open(temporary.path()).map_err(|e| io(&e))?;
        file.set_permissions(permissions).and_then(|()| file.sync_all()).map_err(|e| io(&e))?;
        temporary.persist(path).map_err(|e| io(&e.error))?;
        Ok(())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// There is no such file, it is not a saved cache, or it is damaged.
    pub fn read(path: &Path) -> Result<SavedCache, SavedError> {
        let file = path.display().to_string();
        let io = |reason: String| SavedError::Io { file: file.clone(), action: "read", reason };
        let unreadable = |error: LoadError| match error {
            LoadError::Io { source, .. } => io(source.to_string()),
            _ => io("it is not a regular file".into()),
        };
        let (opened, len) = open(path).map_err(unreadable)?.ok_or_else(|| io("no such file".into()))?;
        let not_a_cache = |reason: &str| SavedError::NotACache { file: file.clone(), reason: clean(reason) };
        let len =
            usize::try_from(len).ok().filter(|len| *len > 0).ok_or_else(|| not_a_cache("it is empty"))?;
        let bytes = map(&opened, len).map_err(|e| io(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| not_a_cache(&e.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(not_a_cache("its header does not say so"));
        }
        if metadata.get("version").map(String::as_str) != Some(VERSION) {
            return Err(not_a_cache(&format!("its version is not {VERSION}")));
        }
        let damaged = |reason: String| SavedError::Damaged { file: file.clone(), reason: clean(&reason) };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        parse(metadata, &tensors).map_err(damaged)
    }

    /// All arrays with their names.
    fn arrays(&self) -> Vec<(String, &[u32])> {
        let mut arrays = vec![(TOKENS.to_owned(), self.tokens.as_slice())];
        for (i, layer) in self.state.layers.iter().enumerate() {
            let LayerState { pages, rows: [k_rows, v_rows], sinks: [k_sinks, v_sinks], .. } = layer;
            let parts = [pages, k_rows, v_rows, k_sinks, v_sinks];
            arrays.extend(ARRAYS.iter().zip(parts).map(|(name, words)| (array(i, name), words.as_slice())));
        }
        for (s, snapshot) in self.snapshots.iter().enumerate() {
            for (i, rows) in snapshot.rows.iter().enumerate() {
                let named = ROWS.iter().zip(rows);
                arrays.extend(named.map(|(name, words)| (snapshot_array(s, i, name), words.as_slice())));
            }
        }
        arrays
    }

    /// Whether all tokens are some of the model's.
    pub(crate) fn check_tokens(&self, vocab_size: usize) -> Result<(), Mismatch> {
        let fit = self.tokens.iter().all(|token| (*token as usize) < vocab_size);
        if fit { Ok(()) } else { Err(Mismatch::Arrays) }
    }
}

/// Makes files that others may read, as far as the user lets them.
fn builder() -> tempfile::Builder<'static, 'static> {
    #[allow(unused_mut)] // elsewhere there is nothing to set
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

fn array(layer: usize, name: &str) -> String {
    format!("layers.{layer}.{name}")
}

fn snapshot_array(snapshot: usize, layer: usize, name: &str) -> String {
    format!("snapshots.{snapshot}.{}", array(layer, name))
}

/// The cache that a file describes; fails with what is wrong.
fn parse(mut metadata: HashMap<String, String>, tensors: &SafeTensors<'_>) -> Result<SavedCache, String> {
    let expected = metadata.remove(CHECKSUM).ok_or("it has no checksum")?;
    let mut views = tensors.tensors();
    views.sort_by(|(a, _), (b, _)| a.cmp(b));
    if checksum(&metadata, views.iter().map(|(name, view)| (name.as_str(), view.data()))) != expected {
        return Err("the checksum is wrong".into());
    }
    let (header, left) = Header::parse(&metadata)?;
    let words = |name: String| -> Result<Vec<u32>, String> {
        let view = tensors.tensor(&name).map_err(|_| format!("{name} is missing"))?;
        if view.dtype() != Dtype::U32 {
            return Err(format!("{name} has another type than U32"));
        }
        Ok(view.data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())
    };
    let tokens = words(TOKENS.to_owned())?;
    let layers = left.into_iter().enumerate().map(|(i, left)| {
        let of = |name| words(array(i, name));
        let [pages, k_rows, v_rows, k_sinks, v_sinks] = ARRAYS;
        Ok(LayerState {
            left,
            pages: of(pages)?,
            rows: [of(k_rows)?, of(v_rows)?],
            sinks: [of(k_sinks)?, of(v_sinks)?],
        })
    });
    let layers = layers.collect::<Result<Vec<_>, String>>()?;
    let lens = metadata.get(SNAPSHOTS).map_or("[]", String::as_str);
    let lens: Vec<usize> = serde_json::from_str(lens).map_err(|error| format!("{SNAPSHOTS}: {error}"))?;
    let snapshots = lens.into_iter().enumerate().map(|(s, len)| {
        let of = |layer, name| words(snapshot_array(s, layer, name));
        let rows = (0..layers.len()).map(|layer| Ok([of(layer, ROWS[0])?, of(layer, ROWS[1])?]));
        Ok(Snapshot { len, rows: rows.collect::<Result<_, String>>()? })
    });
    let snapshots = snapshots.collect::<Result<_, String>>()?;
    let len = metadata.get(CACHED).and_then(|len| len.parse().ok()).filter(|len| *len <= tokens.len());
    let len = len.ok_or("it does not say how many tokens are in the cache")?;
    let notes =
        metadata.into_iter().filter_map(|(key, text)| Some((key.strip_prefix(NOTE)?.to_owned(), text)));
    let state = SequenceState { len, layers };
    Ok(SavedCache { header, state, snapshots, tokens, notes: notes.collect() })
}

/// SHA-256 of the metadata and the arrays, each in the order of their names, with their lengths between.
fn checksum<'a>(
    metadata: &HashMap<String, String>,
    arrays: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    let mut metadata: Vec<_> = metadata.iter().collect();
    metadata.sort();
    for (key, value) in metadata {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    let mut arrays: Vec<_> = arrays.collect();
    arrays.sort();
    for (name, data) in arrays {
        add(name.as_bytes());
        add(data);
    }
    hex(&hash.finalize())
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
