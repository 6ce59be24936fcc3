//! Writing the KIVI cache.

use super::attention::check_cache;
use crate::error::ensure;
use crate::{Backend, Batch, Buffer, KvLayer, Rows, ShapeError};

op! {
    /// Adds each sequence's new tokens to its cache: packs what is due, rings the rest.
    ///
    /// # Shapes
    /// `k_new`, `v_new` `[rows, n_kv_heads * head_dim]` with the rows of `batch`.
    ///
    /// # Equation
    /// Rows are rounded to the cache's `kv_dtype`. Keys `[k_packed, k_packed_next)` are quantized per channel over
    /// `group_size` tokens, values `[v_packed, v_packed_next)` per token over `group_size` channels (KIVI, section
    /// 3.2; `kivi_quant::group`), each from the ring or the new rows, into the sequence's pages; the other new rows
    /// go to the ring, token `t` to row `t % residual_length`. At 16 bits rows go to pages as they are. Tokens
    /// below `sink_tokens` go to the sinks too and do not count for scales.
    ///
    /// The bytes depend on the sequence's rows alone, not on how they are cut into steps nor on the batch. Nothing
    /// happens to a sequence that is not active.
    Append, AppendParts {
        /// New keys, rotated.
        k_new: Rows<'a, B, B::Act>,
        /// New values.
        v_new: Rows<'a, B, B::Act>,
        /// The cache of the layer.
        cache: &'a mut KvLayer<B>,
        /// The step.
        batch: &'a Batch<B>,
        /// Which of the batch's cache groups the layer belongs to.
        group: usize,
    }
}

impl<'a, B: Backend> Append<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes do not fit each other, the batch or the cache.
    pub fn new(
        (k_new, v_new): (Rows<'a, B, B::Act>, Rows<'a, B, B::Act>),
        cache: &'a mut KvLayer<B>,
        (batch, group): (&'a Batch<B>, usize),
    ) -> Result<Self, ShapeError> {
        check_cache("append", cache, batch, group, k_new, v_new)?;
        Ok(Self(AppendParts { k_new, v_new, cache, batch, group }))
    }
}

op! {
    /// Zeroes pages before they are handed to another sequence.
    ///
    /// # Shapes
    /// `pages` at least `n` elements, each below the layer's `n_pages`.
    ClearPages, ClearPagesParts {
        /// The cache of the layer.
        cache: &'a mut KvLayer<B>,
        /// The pages.
        pages: &'a B::Buffer<u32>,
        /// How many of them.
        n: usize,
    }
}

impl<'a, B: Backend> ClearPages<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If there are fewer than `n` pages in the list.
    pub fn new(cache: &'a mut KvLayer<B>, pages: &'a B::Buffer<u32>, n: usize) -> Result<Self, ShapeError> {
        ensure(pages.len() >= n, "clear_pages", "pages", || format!("{n} elements"), pages.len())?;
        Ok(Self(ClearPagesParts { cache, pages, n }))
    }
}
