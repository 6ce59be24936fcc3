//! Caches of a length that were not computed, for measuring: what a short text left behind, again and again.

use kivi_kernels::Backend;

use super::{KvCache, SeqCache};

/// Pages of a text that are repeated.
const PAGES: usize = 4;

impl<B: Backend> KvCache<B> {
    /// Fills all pages, rings and sinks with those of `seq`, repeated. There must be no other sequence.
    pub(crate) fn fill(&mut self, backend: &B, seq: &SeqCache) -> Result<(), B::Error> {
        for index in 0..self.layers.len() {
            let group = self.shape.of_layer[index];
            let state = self.pattern(backend, index, seq)?;
            let (layer, ring) =
                (&mut self.layers[index], self.shape.groups[group].layout.config().ring_rows());
            let [pages, k_ring, v_ring] = state;
            backend.repeat(&mut layer.pool, &pages)?;
            backend.repeat(&mut layer.k_ring, &k_ring)?;
            backend.repeat(&mut layer.v_ring, &v_ring)?;
            // Sinks are rows as those of rings are, and any rows do.
            if ring.k > 0 {
                backend.repeat(&mut layer.k_sink, &k_ring)?;
                backend.repeat(&mut layer.v_sink, &v_ring)?;
            }
        }
        Ok(())
    }

    /// The first packed pages of `seq` in a layer, and its rings of keys and values.
    fn pattern(&self, backend: &B, index: usize, seq: &SeqCache) -> Result<[Vec<u32>; 3], B::Error> {
        let (layer, group) = (&self.layers[index], self.shape.of_layer[index]);
        let layout = &self.shape.groups[group].layout;
        let (heads, packed) = (self.shape.n_kv_heads, layout.config().packed(seq.len));
        // Whole pages, unless there is none: a part of one is as good.
        let whole = packed.k.min(packed.v) / layout.config().page_tokens();
        let owned = seq.pages[group].owned();
        let words = layout.page_words() * heads;
        let mut pages = vec![0; owned.len().min(whole.clamp(1, PAGES)) * words];
        for (page, out) in owned.iter().zip(pages.chunks_exact_mut(words)) {
            backend.read(&layer.pool, *page as usize * words, out)?;
        }
        let ring = layout.config().ring_rows();
        let slot = |ring: &B::Buffer<u32>, rows: usize| -> Result<Vec<u32>, B::Error> {
            let mut words = vec![0; rows * heads * layout.row_words()];
            if rows > 0 {
                backend.read(ring, seq.slot * words.len(), &mut words)?;
            }
            Ok(words)
        };
        Ok([pages, slot(&layer.k_ring, ring.k)?, slot(&layer.v_ring, ring.v)?])
    }

    /// A sequence of `len` tokens whose cache is whatever is in its pages and its slot; `None` if there is no room.
    pub(crate) fn open_at(&mut self, len: usize) -> Option<SeqCache> {
        let mut seq = self.open()?;
        for (pages, pool) in seq.pages.iter_mut().zip(&self.pools) {
            *pages = pool.restored(pool.left_at(len));
        }
        seq.len = len;
        if !self.reserve(&mut seq, len) {
            self.close(seq);
            return None;
        }
        for (pool, pages) in self.pools.iter_mut().zip(&seq.pages) {
            pool.written(pages);
        }
        Some(seq)
    }
}
