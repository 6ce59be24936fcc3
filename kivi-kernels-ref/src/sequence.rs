//! The sequences of a step, as the batch's device arrays describe them.

use core::ops::Range;

use kivi_kernels::{Batch, KvLayer};
use kivi_quant::Packed;

use crate::{Accum, Cpu};

/// One sequence of a step and its place in one cache group.
#[derive(Clone, Debug)]
pub(crate) struct Sequence<'a> {
    /// Its new rows.
    pub rows: Range<usize>,
    /// Tokens in the cache before the step.
    pub len: usize,
    /// What is packed before the step.
    pub packed: Packed,
    /// What is packed after it.
    pub packed_next: Packed,
    /// Its ring and sinks.
    pub slot: usize,
    /// Its pages (and whatever follows in the table).
    pub pages: &'a [u32],
    /// Whether it takes part.
    pub active: bool,
}

impl<'a> Sequence<'a> {
    /// Every sequence of `batch`, with its place in cache group `group`.
    pub fn all<A: Accum>(batch: &'a Batch<Cpu<A>>, group: usize) -> impl Iterator<Item = Self> {
        let arrays = &batch.groups[group];
        (0..batch.n_seqs()).map(move |s| {
            let at = |array: &[u32]| array[s] as usize;
            Self {
                rows: at(&batch.row_start.0)..batch.row_start.0[s + 1] as usize,
                len: at(&batch.len.0),
                packed: Packed { k: at(&arrays.k_packed.0), v: at(&arrays.v_packed.0) },
                packed_next: Packed { k: at(&arrays.k_packed_next.0), v: at(&arrays.v_packed_next.0) },
                slot: at(&arrays.slots.0),
                pages: &arrays.page_table.0[s * arrays.max_pages..][..arrays.max_pages],
                active: batch.active.0[s] != 0,
            }
        })
    }

    /// Tokens in the cache after the step.
    pub fn end(&self) -> usize {
        self.len + self.rows.len()
    }

    /// The words of the pool that hold `head`'s part of the page of `token`.
    pub fn page<A: Accum>(&self, cache: &KvLayer<Cpu<A>>, head: usize, token: usize) -> Range<usize> {
        let (layout, heads) = (cache.layout(), cache.n_kv_heads());
        let page = self.pages[token / layout.config().page_tokens()] as usize;
        let start = (page * heads + head) * layout.page_words();
        start..start + layout.page_words()
    }

    /// `head`'s part of the page of `token`.
    pub fn page_mut<'c, A: Accum>(
        &self,
        cache: &'c mut KvLayer<Cpu<A>>,
        head: usize,
        token: usize,
    ) -> &'c mut [u32] {
        let words = self.page(cache, head, token);
        &mut cache.pool.0[words]
    }

    /// The words of a ring that hold `head`'s row of `token`.
    pub fn ring<A: Accum>(&self, cache: &KvLayer<Cpu<A>>, head: usize, token: usize) -> Range<usize> {
        let rows = cache.layout().config().residual_length();
        self.slot_row(cache, head, rows, token % rows)
    }

    /// The words of the sinks that hold `head`'s row of `token`.
    pub fn sink<A: Accum>(&self, cache: &KvLayer<Cpu<A>>, head: usize, token: usize) -> Range<usize> {
        self.slot_row(cache, head, cache.layout().config().sink_tokens(), token)
    }

    fn slot_row<A: Accum>(
        &self,
        cache: &KvLayer<Cpu<A>>,
        head: usize,
        rows: usize,
        row: usize,
    ) -> Range<usize> {
        let words = cache.layout().row_words();
        let start = ((self.slot * cache.n_kv_heads() + head) * rows + row) * words;
        start..start + words
    }
}
