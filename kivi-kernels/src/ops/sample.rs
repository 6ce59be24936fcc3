//! Drawing tokens.

use crate::error::ensure;
use crate::{Backend, Buffer, Rows, ShapeError};

/// How a row's token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the k largest logits, and those equal to the last of them; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest tokens whose weights reach this share; 1 keeps all.
    pub top_p: f32,
    /// The logarithm of the least weight, relative to the likeliest's, that is kept; minus infinity keeps all.
    pub min_log_p: f32,
    /// Random bits, of which each token's number in the race is made.
    pub bits: u64,
}

impl Draw {
    /// The likeliest token.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_log_p: f32::NEG_INFINITY, bits: 0 };

    /// Words of a draw on a device.
    pub const WORDS: usize = 6;

    /// As a device has it: numbers by their bits, `bits` from its low half on.
    pub fn to_words(self) -> [u32; Self::WORDS] {
        let Self { temperature, top_k, top_p, min_log_p, bits } = self;
        let [low, high] = [bits as u32, (bits >> 32) as u32];
        [temperature.to_bits(), top_k, top_p.to_bits(), min_log_p.to_bits(), low, high]
    }

    /// What [`Self::to_words`] made.
    pub fn from_words([temperature, top_k, top_p, min_log_p, low, high]: [u32; Self::WORDS]) -> Self {
        Self {
            temperature: f32::from_bits(temperature),
            top_k,
            top_p: f32::from_bits(top_p),
            min_log_p: f32::from_bits(min_log_p),
            bits: u64::from(high) << 32 | u64::from(low),
        }
    }
}

op! {
    /// A token of each row, drawn.
    ///
    /// # Shapes
    /// `logits` `[rows, vocab_size]`; `draws` at least `rows` times the words of a [`Draw`]; `out` at least `rows` elements.
    ///
    /// # Equation
    /// With the tokens in order, the largest logit `m` first and the lower index first among equals, in f32:
    ///
    /// ```text
    /// d_j    = (logits_j - m) / temperature        w_j = 2^40 e^(d_j), an integer        c_j = w_1 + .. + w_j
    /// W      = the last c_j that top_k keeps
    /// kept   = tokens that top_k keeps, up to the first with c_j >= top_p W, with d_j >= min_log_p
    /// e_j    = -ln(1 - v_j)        v_j in (0, 1): random, of bits and the token's id
    /// out    = the kept token with the largest w_j / e_j, the lower id among equals
    /// ```
    ///
    /// `top_p W` is rounded down. Tokens race, each arriving after a time with an exponential distribution of rate `w_j`; the first is `j` with the
    /// probability `w_j / (w_1 + ..)` of what is kept. The filters have the order and the meaning of transformers' logits
    /// processors; the likeliest token is always kept. How `e^d` and `e_j` are computed, `docs/numerics.md` says to the last bit:
    /// backends that hold the logits exactly in f32 draw the same tokens. At temperature 0 it is [`Argmax`](super::Argmax), as it is
    /// for `u32::MAX`, the token of a row that is not finite.
    Sample, SampleParts {
        /// Tokens.
        out: &'a mut B::Buffer<u32>,
        /// Input rows.
        logits: Rows<'a, B, B::Act>,
        /// How each is drawn.
        draws: &'a B::Buffer<u32>,
    }
}

impl<'a, B: Backend> Sample<'a, B> {
    /// Rows have at most so many columns, so that the sum of their weights is below 2^64.
    pub const MAX_COLUMNS: usize = 1 << 23;

    /// Validates the operands.
    ///
    /// # Errors
    /// If `out` or `draws` is too short, or rows are empty or too long.
    pub fn new(
        out: &'a mut B::Buffer<u32>,
        logits: Rows<'a, B, B::Act>,
        draws: &'a B::Buffer<u32>,
    ) -> Result<Self, ShapeError> {
        let (rows, cols) = logits.shape();
        let fits = (1..=Self::MAX_COLUMNS).contains(&cols);
        ensure(fits, "sample", "logits", || format!("1 to {} columns", Self::MAX_COLUMNS), cols)?;
        ensure(out.len() >= rows, "sample", "out", || format!("{rows} elements"), out.len())?;
        let words = rows * Draw::WORDS;
        ensure(draws.len() >= words, "sample", "draws", || format!("{words} elements"), draws.len())?;
        Ok(Self(SampleParts { out, logits, draws }))
    }
}
