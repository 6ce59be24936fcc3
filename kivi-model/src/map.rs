//! The one place that maps a file into memory.
#![allow(unsafe_code)]

use std::fs::File;

use memmap2::{Mmap, MmapOptions};

/// Maps the first `len` bytes of `file`, read-only; the caller has checked that it has them.
pub(crate) fn map(file: &File, len: usize) -> std::io::Result<Mmap> {
    // SAFETY: the map is private to `Checkpoint`, which gives out shared slices of it only, and `len`
    // is within the file as it was when it was opened. What remains is the contract of every mapped
    // file, stated in the documentation of `Checkpoint`: nobody truncates or rewrites it meanwhile.
    unsafe { MmapOptions::new().len(len).map(file) }
}
