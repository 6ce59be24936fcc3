//! Weights: safetensors files, mapped and checked before a byte of a tensor is used.

mod header;

use std::collections::BTreeMap;
use std::ops::Range;

use memmap2::Mmap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{LoadError, clean, list};
use crate::json::Fields;
use crate::map::map;
use crate::saved::hex;
use crate::source::{Source, open};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Largest index that is read.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Bytes of a sample of a tensor.
const SAMPLE: usize = 1024;

/// An element type that weights may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WeightDtype {
    /// IEEE single precision, 4 bytes.
    F32,
    /// IEEE half precision, 2 bytes.
    F16,
    /// bfloat16, 2 bytes.
    Bf16,
}

impl WeightDtype {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: WeightDtype,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Its elements, little-endian; not necessarily aligned. The length fits shape and dtype.
    pub bytes: &'a [u8],
}

/// The weights of a model: all tensors by name, and the maps that hold them.
///
/// Files are mapped, not read: pages come in when they are used and may go again. As with every
/// mapped file, truncating it while the program runs ends the program.
#[derive(Debug)]
pub struct Checkpoint {
    /// The weight file or the index, for messages.
    file: String,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    file: String,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Mapped(map) => map,
            Data::Embedded(bytes) => bytes,
        }
    }
}

/// Where a tensor lies; `bytes` is within the shard and has the length that shape and dtype ask for.
#[derive(Debug)]
struct Entry {
    shard: usize,
    /// `None` for a dtype that is not supported; `dtype_name` says which.
    dtype: Option<WeightDtype>,
    dtype_name: String,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or all shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// No weights, only pickled ones, a missing shard, or a file that is not valid safetensors:
    /// truncated, with a header longer than the file, with overlapping tensors, and so on.
    pub fn open(source: &Source) -> Result<Checkpoint, LoadError> {
        source.check()?;
        if source.has(SINGLE) {
            Checkpoint::open_single(source)
        } else if let Some(bytes) = source.read(INDEX, MAX_INDEX_BYTES)? {
            Checkpoint::open_sharded(source, &Fields::parse(source.place(INDEX), &bytes)?)
        } else {
            Err(no_weights(source)?)
        }
    }

    fn open_single(source: &Source) -> Result<Checkpoint, LoadError> {
        let data = open_data(source, SINGLE)?.ok_or_else(|| no_file(source))?;
        let file = source.place(SINGLE);
        let tensors = header::parse(&file, data.bytes(), 0)?.into_iter().collect();
        Ok(Checkpoint { file: file.clone(), shards: vec![Shard { file, data }], tensors })
    }

    /// Opens the shards that the index names. The index decides which shard a tensor is taken from.
    fn open_sharded(source: &Source, index: &Fields) -> Result<Checkpoint, LoadError> {
        let map = index.object("weight_map")?.ok_or_else(|| index.error("weight_map", "an object"))?;
        let mut wanted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in map.iter() {
            let shard = shard.as_str().ok_or_else(|| map.error(tensor, "a file name"))?;
            wanted.entry(shard).or_default().push(tensor);
        }
        let mut checkpoint =
            Checkpoint { file: index.file().into(), shards: Vec::new(), tensors: BTreeMap::new() };
        for (shard, tensors) in wanted {
            checkpoint.add_shard(source, shard, &tensors)?;
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, source: &Source, shard: &str, wanted: &[&str]) -> Result<(), LoadError> {
        if !is_plain_file_name(shard) {
            return Err(LoadError::ShardOutside { index: self.file.clone(), shard: clean(shard) });
        }
        let Some(data) = open_data(source, shard)? else {
            return Err(LoadError::MissingShard { index: self.file.clone(), shard: clean(shard) });
        };
        let file = source.place(shard);
        let mut found = header::parse(&file, data.bytes(), self.shards.len())?;
        let missing: Vec<&str> = wanted.iter().copied().filter(|name| !found.contains_key(*name)).collect();
        if !missing.is_empty() {
            return Err(LoadError::MissingTensors { file, tensors: list(&missing) });
        }
        self.tensors.extend(wanted.iter().filter_map(|name| found.remove_entry(*name)));
        self.shards.push(Shard { file, data });
        Ok(())
    }

    /// The weight file, or the index of a sharded checkpoint, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.bytes.len() as u64).sum()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// For each element type, as safetensors names it: how many tensors have it, and their bytes.
    pub fn dtypes(&self) -> BTreeMap<&str, (usize, u64)> {
        let mut dtypes = BTreeMap::new();
        for entry in self.tensors.values() {
            let (tensors, bytes) = dtypes.entry(entry.dtype_name.as_str()).or_insert((0, 0));
            *tensors += 1;
            *bytes += entry.bytes.len() as u64;
        }
        dtypes
    }

    /// A hash (SHA-256, hexadecimal) of `config`, of the name, type and shape of each tensor, and of 1 KiB each from its beginning,
    /// middle and end: other weights of the same shapes have another one, and no file is read whole.
    pub fn fingerprint(&self, config: &str) -> String {
        let mut hash = Sha256::new_with_prefix(config);
        for (name, entry) in &self.tensors {
            let data = &self.shards[entry.shard].data.bytes()[entry.bytes.clone()];
            hash.update(format!("\n{name} {} {:?}\n", entry.dtype_name, entry.shape));
            for start in [0, data.len() / 2, data.len().saturating_sub(SAMPLE)] {
                hash.update(&data[start..data.len().min(start + SAMPLE)]);
            }
        }
        hex(&hash.finalize())
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// There is none, or its dtype is not supported.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, LoadError> {
        let Some((name, entry)) = self.tensors.get_key_value(name) else {
            return Err(LoadError::MissingTensors { file: self.file.clone(), tensors: clean(name) });
        };
        let shard = &self.shards[entry.shard];
        let Some(dtype) = entry.dtype else {
            return Err(LoadError::TensorDtype { file: shard.file.clone(), tensors: entry.describe(name) });
        };
        let bytes = &shard.data.bytes()[entry.bytes.clone()];
        Ok(TensorView { name, dtype, shape: entry.shape.clone(), bytes })
    }

    /// A tensor by name, if it has this shape.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and [`LoadError::TensorShape`].
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, LoadError> {
        let view = self.tensor(name)?;
        if view.shape == shape {
            return Ok(view);
        }
        let file = self.shards[self.tensors[name].shard].file.clone();
        let (tensor, found) = (clean(name), view.shape);
        Err(LoadError::TensorShape { file, tensor, expected: shape.to_vec(), found })
    }

    /// Checks all tensors at once, so that one message says all that is wrong.
    ///
    /// `expected` are the names and shapes that the architecture uses; `ignore` says which other
    /// tensors may be there without being used.
    ///
    /// # Errors
    /// Tensors are missing, unexpected, of an unsupported dtype, or one has another shape.
    pub fn check(
        &self,
        expected: &BTreeMap<String, Vec<usize>>,
        ignore: impl Fn(&str) -> bool,
    ) -> Result<(), LoadError> {
        let file = || self.file.clone();
        let missing: Vec<&String> =
            expected.keys().filter(|name| !self.tensors.contains_key(*name)).collect();
        if !missing.is_empty() {
            return Err(LoadError::MissingTensors { file: file(), tensors: list(&missing) });
        }
        let unexpected: Vec<&str> =
            self.names().filter(|name| !expected.contains_key(*name) && !ignore(name)).collect();
        if !unexpected.is_empty() {
            return Err(LoadError::UnexpectedTensors { file: file(), tensors: list(&unexpected) });
        }
        let used = self.tensors.iter().filter(|(name, _)| expected.contains_key(*name));
        let unsupported: Vec<String> = used
            .filter(|(_, entry)| entry.dtype.is_none())
            .map(|(name, entry)| entry.describe(name))
            .collect();
        if !unsupported.is_empty() {
            return Err(LoadError::TensorDtype { file: file(), tensors: list(&unsupported) });
        }
        expected.iter().try_for_each(|(name, shape)| self.expect(name, shape).map(drop))
    }
}

impl Entry {
    /// Name and dtype, for messages.
    fn describe(&self, name: &str) -> String {
        format!("{} ({})", clean(name), self.dtype_name)
    }
}

/// Maps a weight file after a look at its length; `None` if there is none of this name.
fn open_data(source: &Source, name: &str) -> Result<Option<Data>, LoadError> {
    let dir = match source {
        Source::Embedded { files, .. } => {
            let found = files.iter().find(|(file, _)| *file == name);
            return Ok(found.map(|(_, bytes)| Data::Embedded(bytes)));
        }
        Source::Dir(dir) => dir,
    };
    let Some((file, len)) = open(&dir.join(name))? else { return Ok(None) };
    let io = |source_error| LoadError::Io { file: source.place(name), source: source_error };
    let len = usize::try_from(len).map_err(|_| io(std::io::ErrorKind::FileTooLarge.into()))?;
    if len == 0 {
        return Ok(Some(Data::Embedded(&[]))); // An empty file cannot be mapped.
    }
    Ok(Some(Data::Mapped(map(&file, len).map_err(io)?)))
}

/// A file name that stays within the directory on every system: no separators, drives or `..`.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', ':', '\0']) && name != "." && name != ".."
}

fn no_file(source: &Source) -> LoadError {
    LoadError::NoWeights { dir: source.place("") }
}

/// The error of a directory without safetensors: does it have weights in another format?
fn no_weights(source: &Source) -> Result<LoadError, LoadError> {
    let pickled = |name: &String| [".bin", ".pth", ".pt"].iter().any(|end| name.ends_with(end));
    Ok(match source.names()?.into_iter().find(pickled) {
        Some(found) => LoadError::OnlyPickledWeights { dir: source.place(""), found: clean(&found) },
        None => no_file(source),
    })
}

/// A header value as text, for messages.
fn as_text(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".into(), crate::json::show)
}
