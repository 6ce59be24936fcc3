//! Reading a sequence's part of the cache.

use kivi_kernels::{Backend, Buffer, KvLayer};

use super::{KvCache, SeqCache};

impl<B: Backend> KvCache<B> {
    /// What the cache holds of `seq`, wherever it lies: for each layer and KV head the pages in order, then keys
    /// and then values outside pages (rings by token, then sinks). Waits for the queue.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn contents(&self, backend: &B, seq: &SeqCache) -> Result<Vec<u32>, B::Error> {
        let mut words = Vec::new();
        for (layer, &group) in self.layers.iter().zip(&self.group_of_layer) {
            for head in 0..self.n_kv_heads {
                let reader = Reader { backend, layer, head, seq };
                reader.pages(&seq.pages[group], &mut words)?;
                reader.outside_pages(&mut words)?;
            }
        }
        Ok(words)
    }
}

/// One KV head of one layer of a sequence.
struct Reader<'a, B: Backend> {
    backend: &'a B,
    layer: &'a KvLayer<B>,
    head: usize,
    seq: &'a SeqCache,
}

impl<B: Backend> Reader<'_, B> {
    /// The pages that hold something; further ones may be reserved.
    fn pages(&self, pages: &[u32], out: &mut Vec<u32>) -> Result<(), B::Error> {
        let layout = self.layer.layout();
        for &page in &pages[..layout.config().pages(self.seq.len)] {
            let record = page as usize * self.layer.n_kv_heads() + self.head;
            self.read(&self.layer.pool, record * layout.page_words(), layout.page_words(), out)?;
        }
        Ok(())
    }

    /// The rows of rings that are in use, and of sinks.
    fn outside_pages(&self, out: &mut Vec<u32>) -> Result<(), B::Error> {
        let (layout, config, len) = (self.layer.layout(), self.layer.layout().config(), self.seq.len);
        let (packed, words) = (config.packed(len), layout.row_words());
        let (residual, sinks) = (config.residual_length(), config.sink_tokens());
        let slot = self.seq.slot * self.layer.n_kv_heads() + self.head;
        let sides = [
            (&self.layer.k_ring, &self.layer.k_sink, packed.k),
            (&self.layer.v_ring, &self.layer.v_sink, packed.v),
        ];
        for (ring, sink, packed) in sides {
            for token in packed..len {
                self.read(ring, (slot * residual + token % residual) * words, words, out)?;
            }
            let kept = if sink.is_empty() { 0 } else { sinks.min(len) };
            self.read(sink, slot * sinks * words, kept * words, out)?;
        }
        Ok(())
    }

    fn read(
        &self,
        from: &B::Buffer<u32>,
        start: usize,
        n: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), B::Error> {
        let end = out.len();
        out.resize(end + n, 0);
        if n == 0 { Ok(()) } else { self.backend.read(from, start, &mut out[end..]) }
    }
}
