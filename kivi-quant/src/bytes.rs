//! How many bytes a cache takes, exactly.

use core::ops::{Add, AddAssign};

use crate::{Bits, PageLayout, Side};

/// Bytes of a cache, by part. Scales count scale and zero together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheBytes {
    /// Packed codes (at 16 bits: the rows in pages).
    pub codes: usize,
    /// Scales and zeros, 2 bytes each.
    pub scales: usize,
    /// Full-precision rows outside pages: the residual window and sinks.
    pub residual: usize,
    /// What a 16-bit cache of the same tokens takes.
    pub fp16: usize,
}

impl CacheBytes {
    /// Bytes in use by one KV head of one layer of a sequence of `len` tokens.
    ///
    /// # Equation
    /// For K and V each: `packed * (D b / 8 + 4 ceil(D / g)) + (len - packed) * D * sizeof(kv_dtype)`; keys share
    /// a scale over tokens instead of channels, `4 D packed / g`, which is the same where `g` divides `D`. Sinks
    /// are kept besides: they count as residual, and their places in pages stay allocated.
    pub fn of_head(layout: &PageLayout, len: usize) -> Self {
        let packed = layout.config().packed(len);
        let mut bytes = Self { fp16: 2 * 2 * layout.head_dim() * len, ..Self::default() };
        let sinks = layout.config().sink_tokens();
        for (side, packed) in [(Side::Key, packed.k), (Side::Value, packed.v)] {
            let bits = layout.bits(side);
            let kept = if bits.is_quantized() { sinks.min(packed) } else { 0 };
            bytes.codes += packed * 4 * layout.token_words(side);
            bytes.residual += (len - packed + kept) * 4 * layout.row_words();
            bytes.scales += match (bits, side) {
                (Bits::B16, _) => 0,
                (_, Side::Key) => packed / layout.config().group_size() * 4 * layout.head_dim(),
                (_, Side::Value) => packed * 4 * layout.value_groups(),
            };
        }
        bytes
    }

    /// [`CacheBytes::of_head`] without the pages before token `first`, which left the window of the layer: `first` is a
    /// multiple of the tokens of a page, and all tokens before it are packed.
    pub fn of_head_from(layout: &PageLayout, first: usize, len: usize) -> Self {
        let (all, pages) = (Self::of_head(layout, len), first / layout.config().page_tokens());
        let tokens = pages * layout.config().page_tokens();
        let of_side = |side| {
            let (bits, codes) = (layout.bits(side), tokens * 4 * layout.token_words(side));
            let scales = match side {
                Side::Key => tokens / layout.config().group_size() * 4 * layout.head_dim(),
                Side::Value => tokens * 4 * layout.value_groups(),
            };
            (codes, if bits.is_quantized() { scales } else { 0 })
        };
        let (k, v) = (of_side(Side::Key), of_side(Side::Value));
        Self {
            codes: all.codes - k.0 - v.0,
            scales: all.scales - k.1 - v.1,
            residual: all.residual,
            fp16: all.fp16 - 2 * 2 * layout.head_dim() * tokens,
        }
    }

    /// Bytes that one KV head of one layer of a sequence of `len` tokens keeps allocated: whole pages, whole
    /// rings, whole sinks.
    pub fn allocated_by_head(layout: &PageLayout, len: usize) -> usize {
        layout.config().pages(len) * layout.page_bytes() + Self::outside_pages(layout)
    }

    /// Bytes of the rings and sinks of one KV head of one layer of a sequence.
    pub fn outside_pages(layout: &PageLayout) -> usize {
        let ring = layout.config().ring_rows();
        let sinks = |rows: usize| if rows > 0 { layout.config().sink_tokens() } else { 0 };
        (ring.k + ring.v + sinks(ring.k) + sinks(ring.v)) * 4 * layout.row_words()
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.codes + self.scales + self.residual
    }

    /// The same part counted `n` times.
    #[must_use]
    pub fn times(self, n: usize) -> Self {
        Self {
            codes: self.codes * n,
            scales: self.scales * n,
            residual: self.residual * n,
            fp16: self.fp16 * n,
        }
    }

    /// Bits in use for one cached element (16 for a 16-bit cache); 0 for an empty cache.
    pub fn bits_per_element(&self) -> f64 {
        if self.fp16 == 0 { 0.0 } else { 16.0 * self.used() as f64 / self.fp16 as f64 }
    }
}

impl Add for CacheBytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            codes: self.codes + other.codes,
            scales: self.scales + other.scales,
            residual: self.residual + other.residual,
            fp16: self.fp16 + other.fp16,
        }
    }
}

impl AddAssign for CacheBytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
