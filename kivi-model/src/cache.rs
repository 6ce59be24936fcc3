//! The policy of the KIVI cache: which layers share page tables, who owns which page, what is packed when.

mod fill;
mod pages;
mod rewind;
mod rewrite;
mod transfer;

use kivi_kernels::{Backend, GroupStep, KvLayer, StepError, ops};
use kivi_quant::{CacheBytes, ConfigError, KiviConfig, PageLayout};

use crate::config::ModelConfig;
use crate::engine::PageUse;
use crate::policy::CachePolicy;
use crate::rope::RopeScaling;
use pages::{Pool, SeqPages};

pub(crate) use rewind::Snapshot;
pub use transfer::{LayerState, SequenceState};

/// Layers of equal settings and window: one pool geometry, one page table a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GroupShape {
    pub layout: PageLayout,
    /// Tokens that a new token sees, itself included; all if there is no window.
    pub window: Option<usize>,
}

/// The cache groups of a model, and the group of each layer.
#[derive(Clone, Debug)]
pub(crate) struct CacheShape {
    pub groups: Vec<GroupShape>,
    pub of_layer: Vec<usize>,
    pub n_kv_heads: usize,
    /// Texts up to this length have keys that are rotated alike; those of a longer one depend on its length in the step that
    /// computed them.
    pub rotated_alike: usize,
}

impl CacheShape {
    /// The groups of `model` under `policy`.
    pub fn new(model: &ModelConfig, policy: &CachePolicy) -> Result<Self, ConfigError> {
        let mut groups: Vec<GroupShape> = Vec::new();
        let mut of_layer = Vec::with_capacity(model.n_layers);
        for layer in 0..model.n_layers {
            let layout = PageLayout::new(*policy.layer(layer), model.head_dim)?;
            let shape = GroupShape { layout, window: model.windows[layer] };
            let group = groups.iter().position(|&g| g == shape).unwrap_or(groups.len());
            if group == groups.len() {
                groups.push(shape);
            }
            of_layer.push(group);
        }
        let rotated_alike = match model.rope.scaling {
            RopeScaling::Dynamic { max_position_embeddings, .. } => max_position_embeddings,
            _ => usize::MAX,
        };
        Ok(Self { groups, of_layer, n_kv_heads: model.n_kv_heads, rotated_alike })
    }

    /// Settings of each group.
    pub fn configs(&self) -> Vec<KiviConfig> {
        self.groups.iter().map(|group| *group.layout.config()).collect()
    }
}

/// How much a cache holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheSizes {
    /// Packed tokens of all sequences, for each group.
    pub pool_tokens: usize,
    /// Sequences at a time.
    pub n_slots: usize,
    /// New tokens of a step.
    pub step_tokens: usize,
}

/// The cache of a model, for several sequences at a time.
pub struct KvCache<B: Backend> {
    shape: CacheShape,
    pools: Vec<Pool>,
    layers: Vec<KvLayer<B>>,
    free_slots: Vec<usize>,
}

/// A sequence's part of the cache.
#[derive(Debug)]
pub struct SeqCache {
    slot: usize,
    /// Tokens in the cache.
    pub len: usize,
    /// Pages, for each cache group.
    pages: Vec<SeqPages>,
}

impl<B: Backend> KvCache<B> {
    /// Allocates pools and rings.
    pub(crate) fn new(backend: &B, shape: CacheShape, sizes: CacheSizes) -> Result<Self, B::Error> {
        let pools: Vec<Pool> = shape.groups.iter().map(|group| Pool::new(*group, sizes)).collect();
        let layers = shape.of_layer.iter().map(|&g| {
            let layout = shape.groups[g].layout;
            KvLayer::new(backend, layout, shape.n_kv_heads, pools[g].n_pages(), sizes.n_slots)
        });
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { shape, pools, layers, free_slots: (0..sizes.n_slots).rev().collect() })
    }

    /// The cache of layer `index`, and the group it belongs to.
    pub(crate) fn layer(&mut self, index: usize) -> (&mut KvLayer<B>, usize) {
        (&mut self.layers[index], self.shape.of_layer[index])
    }

    /// Pages of each group.
    pub(crate) fn n_pages(&self) -> Vec<usize> {
        self.pools.iter().map(Pool::n_pages).collect()
    }

    /// Settings and window of each layer.
    pub fn layer_settings(&self) -> Vec<(KiviConfig, Option<usize>)> {
        let groups = self.shape.of_layer.iter().map(|&g| &self.shape.groups[g]);
        groups.map(|group| (*group.layout.config(), group.window)).collect()
    }

    /// A new, empty sequence, if there is a slot.
    pub fn open(&mut self) -> Option<SeqCache> {
        let slot = self.free_slots.pop()?;
        Some(SeqCache { slot, len: 0, pages: vec![SeqPages::default(); self.pools.len()] })
    }

    /// Whether there is a slot for a new sequence, and pages for it to grow to `len` tokens.
    pub fn has_room(&self, len: usize) -> bool {
        let pages = SeqPages::default();
        !self.free_slots.is_empty() && self.pools.iter().all(|pool| pool.has_room_from(&pages, 0, len))
    }

    /// Whether there are pages for `seq` to go back to `from` tokens and to grow to `len`.
    pub fn has_room_from(&self, seq: &SeqCache, from: usize, len: usize) -> bool {
        let mut pools = self.pools.iter().zip(&seq.pages);
        pools.all(|(pool, pages)| pool.has_room_from(pages, from, len))
    }

    /// Whether a sequence of `len` tokens fits the pools at all.
    pub fn can_hold(&self, len: usize) -> bool {
        self.pools.iter().all(|pool| pool.can_hold(len))
    }

    /// Hands out the pages that `seq` needs to hold `len` tokens, or, where a window frees pages as it moves, those of the
    /// next step; false, and nothing changed, if there are too few.
    pub fn reserve(&mut self, seq: &mut SeqCache, len: usize) -> bool {
        let mut pools = self.pools.iter().zip(&seq.pages);
        if !pools.all(|(pool, pages)| pool.missing(pages, seq.len, len) <= pool.n_free()) {
            return false;
        }
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.reserve(pages, seq.len, len);
        }
        true
    }

    /// Zeroes the pages that changed hands since the last call.
    pub(crate) fn clear_pages(&mut self, backend: &B) -> Result<(), StepError<B::Error>> {
        for (g, pool) in self.pools.iter_mut().enumerate() {
            let pages = pool.take_dirty();
            if pages.is_empty() {
                continue;
            }
            let list = backend.upload(&pages)?;
            let layers = self.layers.iter_mut().zip(&self.shape.of_layer).filter(|(_, of)| **of == g);
            for (layer, _) in layers {
                backend.clear_pages(ops::ClearPages::new(layer, &list, pages.len())?)?;
            }
        }
        Ok(())
    }

    /// Gives the pages and the slot of a sequence back.
    pub fn close(&mut self, seq: SeqCache) {
        self.free_slots.push(seq.slot);
        for (pool, pages) in self.pools.iter_mut().zip(seq.pages) {
            pool.release(pages);
        }
    }

    /// The sequence has `n_new` tokens more; pages that left their window are free.
    pub(crate) fn advance(&mut self, seq: &mut SeqCache, n_new: usize) {
        seq.len += n_new;
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.leave_window(pages, seq.len);
        }
    }

    /// The last `n` tokens of `seq` do not count. Its rings have lost what they replaced, so it cannot go on: for a sequence that
    /// is to be closed.
    pub(crate) fn take_back(&mut self, seq: &mut SeqCache, n: usize) {
        if n == 0 {
            return;
        }
        seq.len -= n;
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.shrink(pages, seq.len);
        }
    }

    /// What a step of `n_new` tokens does to `seq` in each group.
    pub(crate) fn plan<'a>(&self, seq: &'a SeqCache, n_new: usize) -> Vec<GroupStep<'a>> {
        let groups = self.shape.groups.iter().zip(&seq.pages);
        let step = |(group, pages): (&GroupShape, &'a SeqPages)| GroupStep {
            slot: seq.slot,
            pages: pages.table(),
            packed: group.layout.config().packed(seq.len),
            packed_next: group.layout.config().packed(seq.len + n_new),
        };
        groups.map(step).collect()
    }

    /// The pages of each group, where `seqs` are all sequences that there are.
    pub(crate) fn page_use<'a>(&self, seqs: impl Iterator<Item = &'a SeqCache> + Clone) -> Vec<PageUse> {
        let owned = |g: usize| seqs.clone().map(|seq| seq.pages[g].n_owned()).sum();
        let pools = self.pools.iter().enumerate();
        pools.map(|(g, pool)| PageUse { free: pool.n_free(), owned: owned(g), all: pool.n_pages() }).collect()
    }

    /// Bytes that `seq` uses.
    pub fn bytes(&self, seq: &SeqCache) -> CacheBytes {
        let of_group = |(group, pages): (&GroupShape, &SeqPages)| {
            CacheBytes::of_head_from(&group.layout, pages.first_token(&group.layout), seq.len)
        };
        self.sum(seq, of_group)
    }

    /// Bytes of the pages that `seq` owns, counted page by page, and of its rings and sinks.
    pub fn allocated(&self, seq: &SeqCache) -> usize {
        let of_group = |(group, pages): (&GroupShape, &SeqPages)| CacheBytes {
            residual: pages.n_owned() * group.layout.page_bytes() + CacheBytes::outside_pages(&group.layout),
            ..CacheBytes::default()
        };
        self.sum(seq, of_group).residual
    }

    /// The sum over all layers and KV heads of what `of_group` says of one.
    fn sum(&self, seq: &SeqCache, of_group: impl Fn((&GroupShape, &SeqPages)) -> CacheBytes) -> CacheBytes {
        let heads =
            |g: usize| self.shape.n_kv_heads * self.shape.of_layer.iter().filter(|of| **of == g).count();
        let groups = self.shape.groups.iter().zip(&seq.pages).enumerate();
        groups.map(|(g, group)| of_group(group).times(heads(g))).fold(CacheBytes::default(), |a, b| a + b)
    }
}
