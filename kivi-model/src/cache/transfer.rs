//! A sequence's part of the cache on the host: to compare it, to save it, to put it back.

use kivi_kernels::Backend;
use kivi_quant::Side;

use super::{GroupShape, KvCache, SeqCache, Snapshot};

/// What the cache holds of a sequence, wherever it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceState {
    /// Tokens in the cache.
    pub len: usize,
    /// One entry a layer.
    pub layers: Vec<LayerState>,
}

/// What the cache of one layer holds of a sequence, in 32-bit words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerState {
    /// Pages that left the layer's window and are not here.
    pub left: usize,
    /// The other pages in order `[n_pages][n_kv_heads][page_words]`. What is beyond the packed tokens in the last one has
    /// no meaning.
    pub pages: Vec<u32>,
    /// Keys and values that are not packed `[n_kv_heads][len - packed][row_words]`.
    pub rows: [Vec<u32>; 2],
    /// Keys and values of the sinks `[n_kv_heads][min(sink_tokens, len)][row_words]`; empty at 16 bits.
    pub sinks: [Vec<u32>; 2],
}

/// Both sides of a cache, in the order of [`LayerState`].
const SIDES: [Side; 2] = [Side::Key, Side::Value];

impl GroupShape {
    /// Tokens of a ring: the first and the end of those that are not packed, and the length of the ring.
    fn ring(&self, side: Side, len: usize) -> (usize, usize, usize) {
        let (config, packed) = (self.layout.config(), self.layout.config().packed(len));
        match side {
            Side::Key => (packed.k, len, config.ring_rows().k),
            Side::Value => (packed.v, len, config.ring_rows().v),
        }
    }

    /// Sinks of a side that are kept.
    fn sinks(&self, side: Side, len: usize) -> usize {
        if self.ring(side, len).2 == 0 { 0 } else { self.layout.config().sink_tokens().min(len) }
    }

    /// Words of each array of a [`LayerState`] of `len` tokens: pages, rows and sinks of keys and values.
    pub fn words(&self, n_kv_heads: usize, left: usize, len: usize) -> [usize; 5] {
        let row = self.layout.row_words();
        let rows = SIDES.map(|side| self.ring(side, len)).map(|(from, to, _)| (to - from) * row);
        let sinks = SIDES.map(|side| self.sinks(side, len) * row);
        let pages = self.layout.config().pages(len).saturating_sub(left) * self.layout.page_words();
        [pages, rows[0], rows[1], sinks[0], sinks[1]].map(|words| words.saturating_mul(n_kv_heads))
    }
}

impl<B: Backend> KvCache<B> {
    /// What the cache holds of `seq`. Waits for the queue.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn state(&self, backend: &B, seq: &SeqCache) -> Result<SequenceState, B::Error> {
        let layers = (0..self.layers.len()).map(|layer| self.layer_state(backend, layer, seq));
        Ok(SequenceState { len: seq.len, layers: layers.collect::<Result<_, _>>()? })
    }

    fn layer_state(&self, backend: &B, index: usize, seq: &SeqCache) -> Result<LayerState, B::Error> {
        let (layer, group) = (&self.layers[index], self.shape.of_layer[index]);
        let (shape, table) = (&self.shape.groups[group], &seq.pages[group]);
        let end = shape.layout.config().pages(seq.len);
        let words = shape.layout.page_words() * self.shape.n_kv_heads;
        let mut pages = vec![0; end.saturating_sub(table.left()) * words];
        for (page, out) in table.owned().iter().zip(pages.chunks_exact_mut(words)) {
            backend.read(&layer.pool, *page as usize * words, out)?;
        }
        let (sinks, row) = (shape.layout.config().sink_tokens(), shape.layout.row_words());
        let kept = |side, from| -> Result<Vec<u32>, B::Error> {
            let words = if shape.sinks(side, seq.len) == 0 { 0 } else { sinks * self.shape.n_kv_heads * row };
            Ok(take(&read(backend, from, seq.slot, words)?, sinks, row, 0..shape.sinks(side, seq.len)))
        };
        Ok(LayerState {
            left: table.left(),
            pages,
            rows: self.rows(backend, index, seq)?,
            sinks: [kept(Side::Key, &layer.k_sink)?, kept(Side::Value, &layer.v_sink)?],
        })
    }

    /// The rows of a layer that are not packed.
    pub(super) fn rows(&self, backend: &B, index: usize, seq: &SeqCache) -> Result<[Vec<u32>; 2], B::Error> {
        let (layer, shape) = (&self.layers[index], &self.shape.groups[self.shape.of_layer[index]]);
        let row = shape.layout.row_words();
        let of_side = |side, ring| -> Result<Vec<u32>, B::Error> {
            let (from, to, rows) = shape.ring(side, seq.len);
            let ring = read(backend, ring, seq.slot, rows * self.shape.n_kv_heads * row)?;
            Ok(take(&ring, rows, row, (from..to).map(|token| token % rows)))
        };
        Ok([of_side(Side::Key, &layer.k_ring)?, of_side(Side::Value, &layer.v_ring)?])
    }

    /// Writes the rows that are not packed of `len` tokens.
    pub(super) fn write_rows(
        &mut self,
        backend: &B,
        index: usize,
        slot: usize,
        (len, [k_rows, v_rows]): (usize, &[Vec<u32>; 2]),
    ) -> Result<(), B::Error> {
        let (layer, shape) = (&mut self.layers[index], &self.shape.groups[self.shape.of_layer[index]]);
        let row = shape.layout.row_words();
        let sides = [(Side::Key, &mut layer.k_ring, k_rows), (Side::Value, &mut layer.v_ring, v_rows)];
        for (side, ring, from) in sides {
            let (start, end, rows) = shape.ring(side, len);
            let mut words = vec![0; rows * self.shape.n_kv_heads * row];
            put(&mut words, rows, row, (start..end).map(|token| token % rows), from);
            backend.write(ring, slot * words.len(), &words)?;
        }
        Ok(())
    }

    /// A sequence with what `state` holds, or `None` if there is no slot or too few pages.
    ///
    /// # Errors
    /// A failure of the device.
    ///
    /// # Panics
    /// If the arrays of `state` do not have the lengths of this cache; [`KvCache::fits`] tells.
    pub(crate) fn restore(
        &mut self,
        backend: &B,
        state: &SequenceState,
    ) -> Result<Option<SeqCache>, B::Error> {
        let Some(mut seq) = self.open() else { return Ok(None) };
        for (pages, (pool, &g)) in
            seq.pages.iter_mut().zip(self.pools.iter().zip(&first_of(&self.shape.of_layer)))
        {
            *pages = pool.restored(state.layers[g].left);
        }
        // Its pages are there already, as it were: what counts is the length that they reach.
        seq.len = state.len;
        if !self.reserve(&mut seq, state.len) {
            self.close(seq);
            return Ok(None);
        }
        for (pool, pages) in self.pools.iter_mut().zip(&seq.pages) {
            pool.written(pages);
        }
        for (index, layer) in state.layers.iter().enumerate() {
            self.write_layer(backend, index, &seq, layer)?;
        }
        Ok(Some(seq))
    }

    fn write_layer(
        &mut self,
        backend: &B,
        index: usize,
        seq: &SeqCache,
        state: &LayerState,
    ) -> Result<(), B::Error> {
        let group = self.shape.of_layer[index];
        let shape = self.shape.groups[group];
        let words = shape.layout.page_words() * self.shape.n_kv_heads;
        for (page, from) in seq.pages[group].owned().iter().zip(state.pages.chunks_exact(words)) {
            backend.write(&mut self.layers[index].pool, *page as usize * words, from)?;
        }
        self.write_rows(backend, index, seq.slot, (seq.len, &state.rows))?;
        let layer = &mut self.layers[index];
        let (sinks, row) = (shape.layout.config().sink_tokens(), shape.layout.row_words());
        let sides = [(Side::Key, &mut layer.k_sink), (Side::Value, &mut layer.v_sink)];
        for ((side, sink), from) in sides.into_iter().zip(&state.sinks) {
            let kept = shape.sinks(side, seq.len);
            let mut words = vec![0; if kept == 0 { 0 } else { sinks * self.shape.n_kv_heads * row }];
            put(&mut words, sinks, row, 0..kept, from);
            backend.write(sink, seq.slot * words.len(), &words)?;
        }
        Ok(())
    }

    /// Whether a snapshot is one of this cache.
    pub(crate) fn fits_snapshot(&self, snapshot: &Snapshot, len: usize) -> bool {
        let fits = |(rows, &group): (&[Vec<u32>; 2], &usize)| {
            let words = self.shape.groups[group].words(self.shape.n_kv_heads, 0, snapshot.len);
            [rows[0].len(), rows[1].len()] == words[1..3]
        };
        let layers = snapshot.rows.iter().zip(&self.shape.of_layer);
        snapshot.len <= len && snapshot.rows.len() == self.layers.len() && layers.into_iter().all(fits)
    }

    /// Whether the arrays of `state` have the lengths that this cache gives a sequence of so many tokens.
    pub(crate) fn fits(&self, state: &SequenceState) -> bool {
        let fits = |(layer, &group): (&LayerState, &usize)| {
            let shape = &self.shape.groups[group];
            let [k, v, ks, vs] =
                [&layer.rows[0], &layer.rows[1], &layer.sinks[0], &layer.sinks[1]].map(Vec::len);
            let pages = shape.layout.config().pages(state.len);
            // Layers of a group share a page table; what left a window is what this cache would have freed, too.
            let first = first_of(&self.shape.of_layer)[group];
            let left = self.pools[group].left_at(state.len);
            layer.left <= pages
                && layer.left <= left
                && layer.left == state.layers[first].left
                && [layer.pages.len(), k, v, ks, vs]
                    == shape.words(self.shape.n_kv_heads, layer.left, state.len)
        };
        state.layers.len() == self.layers.len() && state.layers.iter().zip(&self.shape.of_layer).all(fits)
    }
}

/// The first layer of each group.
fn first_of(of_layer: &[usize]) -> Vec<usize> {
    let groups = of_layer.iter().max().map_or(0, |last| last + 1);
    (0..groups).filter_map(|g| of_layer.iter().position(|of| *of == g)).collect()
}

/// Part `slot` of an array of parts of `words`.
fn read<B: Backend>(
    backend: &B,
    from: &B::Buffer<u32>,
    slot: usize,
    words: usize,
) -> Result<Vec<u32>, B::Error> {
    let mut out = vec![0; words];
    if words > 0 {
        backend.read(from, slot * words, &mut out)?;
    }
    Ok(out)
}

/// The rows `picked` of each head of `[heads][rows][row]`.
fn take(from: &[u32], rows: usize, row: usize, picked: impl Iterator<Item = usize> + Clone) -> Vec<u32> {
    let heads = from.chunks_exact((rows * row).max(1));
    heads.flat_map(|head| picked.clone().flat_map(|i| &head[i * row..(i + 1) * row])).copied().collect()
}

/// Puts rows that [`take`] took back in their places.
fn put(to: &mut [u32], rows: usize, row: usize, picked: impl Iterator<Item = usize> + Clone, from: &[u32]) {
    let mut from = from.chunks_exact(row);
    for head in to.chunks_exact_mut((rows * row).max(1)) {
        for (i, from) in picked.clone().zip(&mut from) {
            head[i * row..(i + 1) * row].copy_from_slice(from);
        }
    }
}
