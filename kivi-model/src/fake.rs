//! Fake quantization: what quantizing a cache along any axis would do, on a cache that is not quantized.
//!
//! The engine keeps all rows as they are, at 16 bits. After each step, rows that a quantized cache would have packed by then are
//! replaced by what they would be read back as, `code * scale + zero`, rounded to the type of rows. So every axis can be tried
//! without a kernel for it, with the arithmetic of [`kivi_quant::group`]; memory is not saved.
//!
//! # What is quantized when
//! With `len` tokens in the cache: keys `R * floor(len / R)`, values `max(0, len - R)`, `R` the residual length, as
//! [`packed`](kivi_quant::KiviConfig::packed) says, whatever the axis; of values per channel only whole groups of those. Groups lie at
//! multiples of the group size in the text, or in the head; what is left of a head is a shorter group. Sinks stay as they are
//! and do not count for scales.

use std::collections::BTreeMap;
use std::fmt;

use kivi_kernels::Backend;
use kivi_quant::{Bits, Side, group};

use crate::engine::{Engine, SeqId};
use crate::policy::CachePolicy;

/// What the elements of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// The channel: a group is of consecutive tokens, as KIVI has keys.
    Channel,
    /// The token: a group is of consecutive channels, as KIVI has values.
    Token,
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Channel => "channel",
            Self::Token => "token",
        })
    }
}

/// A cache that is only read back as if it were quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeCache {
    /// Widths, groups, residual window and sinks of each layer; 16 bits leave a side as it is.
    pub policy: CachePolicy,
    /// The axis of keys.
    pub k_axis: Axis,
    /// The axis of values.
    pub v_axis: Axis,
}

impl FakeCache {
    /// The cache that the engine has for it: rows of the same type, at 16 bits.
    pub fn engine_cache(&self) -> CachePolicy {
        self.policy.base().with_bits(Bits::B16, Bits::B16).into()
    }

    /// How many tokens of a side of a layer are quantized when the cache holds `len`; sinks count, though they stay as they are.
    pub fn quantized(&self, layer: usize, side: Side, len: usize) -> usize {
        let config = self.policy.layer(layer);
        let (bits, packed, axis) = match side {
            Side::Key => (config.k_bits(), config.packed(len).k, self.k_axis),
            Side::Value => (config.v_bits(), config.packed(len).v, self.v_axis),
        };
        match axis {
            _ if !bits.is_quantized() => 0,
            Axis::Channel => packed - packed % config.group_size(),
            Axis::Token => packed,
        }
    }

    /// Quantizes and dequantizes `rows` `[n][head_dim]` of a side of one head, tokens `first` and following.
    pub fn apply(&self, layer: usize, side: Side, first: usize, rows: &mut [f32], head_dim: usize) {
        let config = self.policy.layer(layer);
        let (bits, axis) = match side {
            Side::Key => (config.k_bits(), self.k_axis),
            Side::Value => (config.v_bits(), self.v_axis),
        };
        let size = config.group_size();
        match axis {
            Axis::Token => {
                let groups = rows.chunks_mut(head_dim).flat_map(|row| row.chunks_mut(size));
                groups.for_each(|values| fake(values, 1, bits));
            }
            Axis::Channel => {
                // The first group may have begun with sinks, which are not here.
                let begun = (size - first % size) % size * head_dim;
                let (head, rest) = rows.split_at_mut(begun.min(rows.len()));
                for tokens in std::iter::once(head).chain(rest.chunks_mut(size * head_dim)) {
                    (0..head_dim.min(tokens.len())).for_each(|c| fake(&mut tokens[c..], head_dim, bits));
                }
            }
        }
    }
}

/// Quantizes and dequantizes the group of every `step`th of `values`.
fn fake(values: &mut [f32], step: usize, bits: Bits) {
    let params = group::params(values.iter().copied().step_by(step), bits);
    for x in values.iter_mut().step_by(step) {
        *x = params.dequantize(params.quantize(*x, bits));
    }
}

impl From<CachePolicy> for FakeCache {
    /// The axes of KIVI.
    fn from(policy: CachePolicy) -> Self {
        Self { policy, k_axis: Axis::Channel, v_axis: Axis::Token }
    }
}

/// Brings the caches of an engine's texts to what a [`FakeCache`] would be read back as, step by step.
pub struct FakeQuantizer {
    cache: FakeCache,
    /// Tokens that each text had in its cache after the step before.
    lens: BTreeMap<SeqId, usize>,
}

impl FakeQuantizer {
    /// A quantizer of texts that have not begun.
    pub fn new(cache: FakeCache) -> Self {
        Self { cache, lens: BTreeMap::new() }
    }

    /// To be called after each step of `engine`, which must not run ahead ([`Engine::set_run_ahead`]): quantizes what has become
    /// due of the running texts `ids`, each time the same ones but for those that ended or are new.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn update<B: Backend>(&mut self, engine: &mut Engine<'_, B>, ids: &[SeqId]) -> Result<(), B::Error> {
        let (n_layers, head_dim) = (engine.model_config().n_layers, engine.model_config().head_dim);
        let lens = ids.iter().filter_map(|id| Some((*id, engine.cached_tokens(*id)?)));
        let lens: BTreeMap<_, _> = lens.collect();
        for (&id, &len) in &lens {
            let before = self.lens.get(&id).copied().unwrap_or(0);
            for (layer, side) in (0..n_layers).flat_map(|layer| [(layer, Side::Key), (layer, Side::Value)]) {
                let sinks = self.cache.policy.layer(layer).sink_tokens();
                let [from, to] = [before, len].map(|len| self.cache.quantized(layer, side, len));
                let from = from.max(sinks);
                engine.rewrite(id, (layer, side), from..to, &mut |first, rows| {
                    self.cache.apply(layer, side, first, rows, head_dim);
                })?;
            }
        }
        self.lens = lens;
        Ok(())
    }
}
