//! Rows of 16-bit pages, changed where they lie.

use std::ops::Range;

use kivi_kernels::Backend;
use kivi_quant::{PageLayout, Side, page};

use super::{KvCache, SeqCache};

impl<B: Backend> KvCache<B> {
    /// Lets `change` change the rows of `tokens` of a side of a layer, at 16 bits: once for each page and head, with the first
    /// token and the rows `[n][head_dim]`. Tokens whose pages left the layer's window are passed over. Waits for the queue.
    ///
    /// # Panics
    /// If the side is quantized, or the sequence has fewer tokens.
    pub(crate) fn rewrite(
        &mut self,
        backend: &B,
        seq: &SeqCache,
        (index, side): (usize, Side),
        tokens: Range<usize>,
        change: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<(), B::Error> {
        let group = self.shape.of_layer[index];
        let (layout, pages) = (&self.shape.groups[group].layout, &seq.pages[group]);
        assert!(tokens.is_empty() || !layout.bits(side).is_quantized() && tokens.end <= seq.len);
        let page_tokens = layout.config().page_tokens();
        let (mut from, pool) = (tokens.start.max(pages.first_token(layout)), &mut self.layers[index].pool);
        while from < tokens.end {
            let (page, row) = (pages.table()[from / page_tokens] as usize, from % page_tokens);
            let to = tokens.end.min(from - row + page_tokens);
            for head in 0..self.shape.n_kv_heads {
                let record = (page * self.shape.n_kv_heads + head) * layout.page_words();
                let start = record + layout.row_start(side, row);
                let mut words = vec![0; (to - from) * layout.row_words()];
                backend.read(pool, start, &mut words)?;
                change_rows(layout, &mut words, &mut |rows| change(from, rows));
                backend.write(pool, start, &words)?;
            }
            from = to;
        }
        Ok(())
    }
}

/// Lets `change` change the values of stored rows.
fn change_rows(layout: &PageLayout, words: &mut [u32], change: &mut dyn FnMut(&mut [f32])) {
    let (dtype, head_dim, row) = (layout.kv_dtype(), layout.head_dim(), layout.row_words());
    let mut values = vec![0.0; words.len() / row * head_dim];
    let rows = words.chunks_exact(row).zip(values.chunks_exact_mut(head_dim));
    rows.for_each(|(words, row)| page::load_row(dtype, words, row));
    change(&mut values);
    let rows = words.chunks_exact_mut(row).zip(values.chunks_exact(head_dim));
    rows.for_each(|(words, row)| page::store_row(dtype, row, words));
}
