//! What an engine will take of the device, before any of it is allocated.

use kivi_kernels::Element;
use kivi_quant::{CacheBytes, ConfigError};

use super::EngineConfig;
use crate::cache::{CacheShape, CacheSizes};
use crate::config::ModelConfig;

/// Bytes of an engine, besides the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineBytes {
    /// Activations of a step.
    pub activations: u64,
    /// Rings and sinks of all sequences.
    pub rings: u64,
    /// Pages.
    pub pages: u64,
}

impl EngineBytes {
    /// All together.
    pub fn total(&self) -> u64 {
        self.activations.saturating_add(self.rings).saturating_add(self.pages)
    }
}

impl EngineConfig {
    /// What an engine of this configuration allocates for `model`, with activations of type `A`; a few vectors of indices are not
    /// counted.
    ///
    /// # Errors
    /// Cache settings that do not fit the model.
    pub fn bytes<A: Element>(&self, model: &ModelConfig) -> Result<EngineBytes, ConfigError> {
        let shape = CacheShape::new(model, &self.cache)?;
        let sizes = CacheSizes {
            pool_tokens: self.pool_tokens,
            n_slots: self.max_seqs,
            step_tokens: self.max_batched_tokens,
        };
        let (mut rings, mut pages) = (0_u64, 0_u64);
        for &group in &shape.of_layer {
            let group = &shape.groups[group];
            let heads = shape.n_kv_heads as u64;
            let outside = CacheBytes::outside_pages(&group.layout) as u64;
            rings = rings.saturating_add(outside.saturating_mul(heads).saturating_mul(self.max_seqs as u64));
            let page = (group.layout.page_bytes() as u64).saturating_mul(heads);
            pages = pages.saturating_add(page.saturating_mul(sizes.pages(group) as u64));
        }
        let activations = activations(self, model).saturating_mul(size_of::<A>() as u64);
        Ok(EngineBytes { activations, rings, pages })
    }
}

/// Elements of [`crate::model::Workspace`].
fn activations(sizes: &EngineConfig, c: &ModelConfig) -> u64 {
    let gate_up = if c.mlp_gated { 2 * c.intermediate_size } else { c.intermediate_size };
    let normed_qk = if c.qk_norm { (c.n_heads + c.n_kv_heads) * c.head_dim } else { 0 };
    let row = 3 * c.hidden_size
        + c.qkv_width()
        + normed_qk
        + c.n_heads * c.head_dim
        + gate_up
        + c.intermediate_size;
    let of_rows = (row as u64).saturating_mul(sizes.max_batched_tokens as u64);
    let of_seqs = ((c.hidden_size + c.vocab_size) as u64).saturating_mul(sizes.max_seqs as u64);
    of_rows.saturating_add(of_seqs)
}
