//! What is made of SHA-256.

use sha2::{Digest, Sha256};

/// The digest of what was hashed, as hexadecimal digits.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number that follows from what was hashed.
pub fn number(hash: Sha256) -> u64 {
    hash.finalize().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
