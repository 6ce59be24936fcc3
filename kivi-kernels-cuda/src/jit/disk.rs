//! Compiled kernels on disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::{env, fs, io};

/// FNV-1a in 128 bits over parts, each with its length before it, so that no two lists of parts read alike.
pub(super) struct Hash(u128);

impl Default for Hash {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Hash {
    pub fn add(&mut self, part: impl AsRef<[u8]>) -> &mut Self {
        let part = part.as_ref();
        for &byte in (part.len() as u64).to_le_bytes().iter().chain(part) {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
        self
    }

    pub fn finish(&self) -> u128 {
        self.0
    }
}

/// Where compiled kernels are kept, if the user has such a place.
fn directory() -> Option<PathBuf> {
    let variable =
        |name: &str| env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    let kivi = variable("KIVI_CACHE_DIR")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("kivi")))
        .or_else(|| Some(variable("LOCALAPPDATA")?.join("kivi")))
        .or_else(|| Some(variable("HOME")?.join(".cache").join("kivi")));
    Some(kivi?.join("cuda"))
}

/// The lock of `entry`, the same for all threads of the process.
pub(super) fn turn(entry: &str) -> Arc<Mutex<()>> {
    static TURNS: Mutex<BTreeMap<String, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    Arc::clone(super::lock(&TURNS).entry(entry.to_owned()).or_default())
}

/// The bytes kept under `entry`.
pub(super) fn read(entry: &str) -> Option<Vec<u8>> {
    fs::read(directory()?.join(entry)).ok()
}

/// Keeps `bytes` under `entry`; where that fails, they are compiled again next time.
pub(super) fn write(entry: &str, bytes: &[u8]) {
    let Some(directory) = directory() else { return };
    if let Err(error) = try_write(&directory, entry, bytes) {
        tracing::warn!("compiled kernels are not kept: {}: {error}", directory.display());
    }
}

/// Writes beside the entry and renames, so that nobody reads half a file.
fn try_write(directory: &PathBuf, entry: &str, bytes: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = COUNT.fetch_add(1, Ordering::Relaxed);
    fs::create_dir_all(directory)?;
    let temporary = directory.join(format!("{entry}.{}-{unique}", std::process::id()));
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, directory.join(entry)));
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_fnv_and_tells_parts_apart() {
        let of = |parts: &[&str]| {
            let mut hash = Hash::default();
            for part in parts {
                hash.add(part);
            }
            hash.finish()
        };
        assert_eq!(of(&[]), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["", "a"]), of(&["a", ""]));
    }
}
