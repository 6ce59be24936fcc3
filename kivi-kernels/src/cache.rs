//! The cache of one layer: a pool of pages, rings of recent tokens, sinks. All of it 32-bit words.

use kivi_quant::PageLayout;

use crate::{Backend, ShapeError, error::ensure};

/// Device arrays of the KIVI cache of one layer, sized by its [`PageLayout`].
///
/// Layers of one cache group (equal settings, heads and window) have equal geometry and share page tables and
/// slots: page `p` of a sequence is record `page_table[p]` in each of their pools.
pub struct KvLayer<B: Backend> {
    layout: PageLayout,
    n_kv_heads: usize,
    n_pages: usize,
    n_slots: usize,
    /// `[n_pages][n_kv_heads][page_words]`; a page is all zero when it is handed out.
    pub pool: B::Buffer<u32>,
    /// Residual keys `[n_slots][n_kv_heads][residual_length][row_words]`, token `t` in row `t % residual_length`;
    /// empty at 16 bits.
    pub k_ring: B::Buffer<u32>,
    /// Residual values, likewise.
    pub v_ring: B::Buffer<u32>,
    /// Keys of the sinks `[n_slots][n_kv_heads][sink_tokens][row_words]`; empty at 16 bits.
    pub k_sink: B::Buffer<u32>,
    /// Values of the sinks, likewise.
    pub v_sink: B::Buffer<u32>,
}

impl<B: Backend> KvLayer<B> {
    /// Allocates the cache of one layer: `n_pages` pages and `n_slots` sequences at a time.
    ///
    /// # Errors
    /// Those of [`Backend::zeros`].
    pub fn new(
        backend: &B,
        layout: PageLayout,
        n_kv_heads: usize,
        n_pages: usize,
        n_slots: usize,
    ) -> Result<Self, B::Error> {
        let ring = layout.config().ring_rows();
        // No size wraps around: what does not fit a usize is too much for `zeros` too.
        let size = |factors: [usize; 4]| factors.into_iter().fold(1, usize::saturating_mul);
        let slot = |rows: usize| size([n_slots, n_kv_heads, rows, layout.row_words()]);
        let sinks = |ring: usize| if ring > 0 { slot(layout.config().sink_tokens()) } else { 0 };
        Ok(Self {
            pool: backend.zeros(size([n_pages, n_kv_heads, layout.page_words(), 1]))?,
            k_ring: backend.zeros(slot(ring.k))?,
            v_ring: backend.zeros(slot(ring.v))?,
            k_sink: backend.zeros(sinks(ring.k))?,
            v_sink: backend.zeros(sinks(ring.v))?,
            layout,
            n_kv_heads,
            n_pages,
            n_slots,
        })
    }

    /// Layout of a page of one head.
    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    /// Key/value heads.
    pub fn n_kv_heads(&self) -> usize {
        self.n_kv_heads
    }

    /// Pages of the pool.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Sequences that have a ring.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// Fails unless rows of `cols` elements are `n_heads` heads of this layer's `head_dim`, for a multiple
    /// `n_heads` of the KV heads; returns `n_heads`.
    pub(crate) fn query_heads(&self, op: &'static str, cols: usize) -> Result<usize, ShapeError> {
        let (n, d) = (self.n_kv_heads, self.layout.head_dim());
        let ok = cols > 0 && cols.is_multiple_of(n * d);
        ensure(ok, op, "q", || format!("a multiple of {n} KV heads x head_dim {d} columns"), cols)?;
        Ok(cols / d)
    }
}
