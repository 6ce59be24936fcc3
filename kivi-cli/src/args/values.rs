//! Values of flags, each with a message that says what would be right.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::eval::lines::NAMES;
use crate::sizing::MAX_SEQS;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};

/// More tokens than any model's context: a larger number is a slip.
pub const MAX_TOKENS: usize = 1 << 24;

/// Places are counted in thousandths.
const MAX_DEPTHS: usize = 500;

/// More threads than this are a slip, too.
const MAX_THREADS: usize = 1024;

/// Bits of keys and of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBits {
    /// Of keys.
    pub k: Bits,
    /// Of values.
    pub v: Bits,
}

impl FromStr for KvBits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (k, v) = text.split_once(':').unwrap_or((text, text));
        match (bits(k), bits(v)) {
            (Ok(k), Ok(v)) => Ok(Self { k, v }),
            _ => Err("expected 2, 4, 8 or 16, or K:V as 4:2".into()),
        }
    }
}

impl fmt::Display for KvBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.k, self.v)
    }
}

/// The token ids of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptIds(pub Vec<u32>);

impl FromStr for PromptIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ids = text.split(',').map(|id| id.trim().parse());
        let ids: Result<_, _> = ids.collect();
        ids.map(Self).map_err(|_| "expected token ids as 1,2,3".into())
    }
}

/// Layers; negative ones count from the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerList(pub Vec<i64>);

impl FromStr for LayerList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let layers: Result<_, _> = text.split(',').map(|layer| layer.trim().parse()).collect();
        layers.map(Self).map_err(|_| "expected layers as 0,1,-1".into())
    }
}

/// A number of tokens, or of anything else there is at least one of.
pub fn tokens(text: &str) -> Result<usize, String> {
    whole(text, 1..=MAX_TOKENS)
}

/// A number of prompts that run at a time.
pub fn batch_size(text: &str) -> Result<usize, String> {
    whole(text, 1..=MAX_SEQS)
}

/// The place of a head.
pub fn head(text: &str) -> Result<usize, String> {
    whole(text, 0..=1 << 16)
}

/// A number of tokens that may be none.
pub fn count(text: &str) -> Result<usize, String> {
    whole(text, 0..=MAX_TOKENS)
}

/// A number of sequences that a bench runs at a time.
pub fn sequences(text: &str) -> Result<usize, String> {
    whole(text, 1..=1 << 16)
}

/// A number of repetitions.
pub fn repetitions(text: &str) -> Result<usize, String> {
    whole(text, 1..=1000)
}

/// A number of places in a text.
pub fn depths(text: &str) -> Result<usize, String> {
    whole(text, 1..=MAX_DEPTHS)
}

/// A number of lines with a name each.
pub fn lines(text: &str) -> Result<usize, String> {
    whole(text, 1..=NAMES)
}

/// A number of tokens that is worth cutting a text to.
pub fn long(text: &str) -> Result<usize, String> {
    whole(text, 16..=MAX_TOKENS)
}

/// A number of digits.
pub fn digits(text: &str) -> Result<u32, String> {
    whole(text, 1..=18).map(|digits| digits as u32)
}

/// A number of first tokens.
pub fn sinks(text: &str) -> Result<usize, String> {
    whole(text, 0..=KiviConfig::MAX_RESIDUAL)
}

/// A number of tokens to choose from.
pub fn top_k(text: &str) -> Result<usize, String> {
    whole(text, 0..=MAX_TOKENS)
}

/// A number of threads.
pub fn threads(text: &str) -> Result<usize, String> {
    whole(text, 0..=MAX_THREADS)
}

fn whole(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
}

/// A seed.
pub fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// A number; whether it is in its range is checked later.
pub fn real(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "expected a number".into())
}

/// A share of a whole.
pub fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected a number above 0 and up to 1".into())
}

/// A number of bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(0),
        "k" | "kib" => Some(10),
        "m" | "mib" => Some(20),
        "g" | "gib" => Some(30),
        _ => None,
    };
    let bytes = scale.and_then(|scale| Some(number.parse::<f64>().ok()? * f64::from(1_u32 << scale)));
    let bytes = bytes.filter(|bytes| (1.0..1e18).contains(bytes)).map(|bytes| bytes as u64);
    bytes.ok_or_else(|| "expected a size as 512MiB or 20GiB".into())
}

/// The width of codes.
pub fn bits(text: &str) -> Result<Bits, String> {
    let bits = text.parse::<u32>().ok().and_then(|bits| Bits::try_from(bits).ok());
    bits.ok_or_else(|| "expected 2, 4, 8 or 16".into())
}

/// A group size.
pub fn group_size(text: &str) -> Result<GroupSize, String> {
    let size = text.parse::<usize>().ok().and_then(|size| GroupSize::try_from(size).ok());
    size.ok_or_else(|| "expected 32, 64 or 128".into())
}

/// The type of full-precision rows, under any of its usual names.
pub fn kv_dtype(text: &str) -> Result<KvDtype, String> {
    match text {
        "f16" | "half" | "float16" => Ok(KvDtype::F16),
        "bf16" | "bfloat16" => Ok(KvDtype::Bf16),
        "f32" | "float" | "float32" => Ok(KvDtype::F32),
        _ => Err("expected f16, bf16 or f32".into()),
    }
}
