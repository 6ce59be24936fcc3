//! The cache of one layer: a pool of pages, rings of recent tokens, sinks. All of it 32-bit words.

use kivi_quant::PageLayout;

use crate::{Backend, Buffer, ShapeError, error::ensure};

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
        let [pool, k_ring, v_ring, k_sink, v_sink] = lengths(&layout, n_kv_heads, n_pages, n_slots);
        Ok(Self {
            pool: backend.zeros(pool)?,
            k_ring: backend.zeros(k_ring)?,
            v_ring: backend.zeros(v_ring)?,
            k_sink: backend.zeros(k_sink)?,
            v_sink: backend.zeros(v_sink)?,
            layout,
            n_kv_heads,
            n_pages,
            n_slots,
        })
    }

    /// The cache of one layer in memory that is there already: the pool, the rings and the sinks of keys and values. Buffers
    /// may be longer than they need be. A pool that is new is all zero; rings and sinks may hold anything.
    ///
    /// # Errors
    /// If a buffer is shorter than its shape says.
    pub fn from_buffers(
        (layout, n_kv_heads): (PageLayout, usize),
        (n_pages, n_slots): (usize, usize),
        pool: B::Buffer<u32>,
        [k_ring, v_ring]: [B::Buffer<u32>; 2],
        [k_sink, v_sink]: [B::Buffer<u32>; 2],
    ) -> Result<Self, ShapeError> {
        let needed = lengths(&layout, n_kv_heads, n_pages, n_slots);
        let names = ["pool", "k_ring", "v_ring", "k_sink", "v_sink"];
        let found = [&pool, &k_ring, &v_ring, &k_sink, &v_sink].map(Buffer::len);
        for ((name, needed), found) in names.into_iter().zip(needed).zip(found) {
            ensure(found >= needed, "cache", name, || format!("{needed} words"), found)?;
        }
        Ok(Self { layout, n_kv_heads, n_pages, n_slots, pool, k_ring, v_ring, k_sink, v_sink })
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

/// Words of pool, rings and sinks. No size wraps around: what does not fit a usize is too much for any memory.
fn lengths(layout: &PageLayout, n_kv_heads: usize, n_pages: usize, n_slots: usize) -> [usize; 5] {
    let ring = layout.config().ring_rows();
    let size = |factors: [usize; 4]| factors.into_iter().fold(1, usize::saturating_mul);
    let slot = |rows: usize| size([n_slots, n_kv_heads, rows, layout.row_words()]);
    let sinks = |ring: usize| if ring > 0 { slot(layout.config().sink_tokens()) } else { 0 };
    let pool = size([n_pages, n_kv_heads, layout.page_words(), 1]);
    [pool, slot(ring.k), slot(ring.v), sinks(ring.k), sinks(ring.v)]
}
