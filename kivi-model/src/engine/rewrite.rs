//! The rows of running texts, changed between steps: for studies of what quantization does.

use std::ops::Range;

use kivi_kernels::Backend;
use kivi_quant::Side;

use super::{Engine, SeqId};
use crate::config::ModelConfig;

impl<B: Backend> Engine<'_, B> {
    /// The model's shape.
    pub fn model_config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Tokens that a running text has in its cache; `None` if it does not run.
    pub fn cached_tokens(&self, id: SeqId) -> Option<usize> {
        self.running.iter().find(|seq| seq.id == id).map(|seq| seq.cache.len)
    }

    /// Lets `change` change the rows of `tokens` of a side of a layer of a running text, in a cache of 16 bits: once for each page and
    /// KV head, with the first token and the rows `[n][head_dim]`. Tokens that left the layer's window are passed over. False, and
    /// nothing was done, if the text does not run.
    ///
    /// # Errors
    /// A failure of the device.
    ///
    /// # Panics
    /// If the side is quantized, the cache has fewer tokens, or a step is in flight ([`Engine::set_run_ahead`]).
    pub fn rewrite(
        &mut self,
        id: SeqId,
        (layer, side): (usize, Side),
        tokens: Range<usize>,
        change: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<bool, B::Error> {
        assert!(self.flight.is_none(), "rows change between steps");
        let Some(seq) = self.running.iter().find(|seq| seq.id == id) else { return Ok(false) };
        self.cache.rewrite(self.backend, &seq.cache, (layer, side), tokens, change)?;
        Ok(true)
    }
}
