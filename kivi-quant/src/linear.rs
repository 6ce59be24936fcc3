//! The authors' linear word order: code `i` of a run lies in word `i / (32 / bits)`, lowest bits first.

use crate::Bits;

/// Words that `len` codes take.
pub fn words(len: usize, bits: Bits) -> usize {
    (len * bits.get() as usize).div_ceil(32)
}

/// Packs `codes` into `words`, first code in the lowest bits; unused high bits are 0.
///
/// # Panics
/// If `words` is shorter than [`words`] says.
pub fn pack(codes: &[u32], bits: Bits, words: &mut [u32]) {
    let per_word = 32 / bits.get() as usize;
    for (word, chunk) in words[..self::words(codes.len(), bits)].iter_mut().zip(codes.chunks(per_word)) {
        *word = chunk.iter().rev().fold(0, |acc, &code| acc << bits.get() | code & bits.max_code());
    }
}

/// Reads `codes.len()` codes from `words`.
///
/// # Panics
/// If `words` is shorter than [`words`] says.
pub fn unpack(words: &[u32], bits: Bits, codes: &mut [u32]) {
    let per_word = 32 / bits.get() as usize;
    for (i, code) in codes.iter_mut().enumerate() {
        *code = words[i / per_word] >> (i % per_word * bits.get() as usize) & bits.max_code();
    }
}
