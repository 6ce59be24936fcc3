//! The policy of the KIVI cache: which layers share page tables, who owns which page, what is packed when.

mod contents;

use kivi_kernels::{Backend, GroupStep, KvLayer, StepError, ops};
use kivi_quant::{CacheBytes, ConfigError, KiviConfig, PageLayout};

use crate::config::ModelConfig;

/// Layers of equal settings: one pool geometry, one page table a sequence.
struct Group {
    layout: PageLayout,
    n_layers: usize,
    free: Vec<u32>,
    /// Pages that had an owner before: they are zeroed when they are handed out again.
    used: Vec<bool>,
    to_clear: Vec<u32>,
}

/// The cache of a model, for several sequences at a time.
pub struct KvCache<B: Backend> {
    groups: Vec<Group>,
    layers: Vec<KvLayer<B>>,
    group_of_layer: Vec<usize>,
    n_kv_heads: usize,
    free_slots: Vec<usize>,
}

/// A sequence's part of the cache.
#[derive(Debug)]
pub struct SeqCache {
    slot: usize,
    /// Tokens in the cache.
    pub len: usize,
    /// Pages, for each cache group.
    pages: Vec<Vec<u32>>,
}

/// Page layouts of the cache groups, and the group of each layer.
pub(crate) fn cache_groups(
    model: &ModelConfig,
    layers: &[KiviConfig],
) -> Result<(Vec<PageLayout>, Vec<usize>), ConfigError> {
    let mut layouts: Vec<PageLayout> = Vec::new();
    let mut group_of_layer = Vec::with_capacity(layers.len());
    for &config in layers {
        let layout = PageLayout::new(config, model.head_dim)?;
        let group = layouts.iter().position(|&l| l == layout).unwrap_or(layouts.len());
        if group == layouts.len() {
            layouts.push(layout);
        }
        group_of_layer.push(group);
    }
    Ok((layouts, group_of_layer))
}

impl<B: Backend> KvCache<B> {
    /// Allocates pools for `pool_tokens` packed tokens and rings for `n_slots` sequences; `layouts` and
    /// `group_of_layer` come from [`cache_groups`].
    pub(crate) fn new(
        backend: &B,
        n_kv_heads: usize,
        (layouts, group_of_layer): (Vec<PageLayout>, Vec<usize>),
        pool_tokens: usize,
        n_slots: usize,
    ) -> Result<Self, B::Error> {
        let pages = |layout: &PageLayout| pool_tokens.div_ceil(layout.config().page_tokens());
        let layers = group_of_layer.iter().map(|&g| {
            let layout = layouts[g];
            KvLayer::new(backend, layout, n_kv_heads, pages(&layout), n_slots)
        });
        let layers = layers.collect::<Result<_, _>>()?;
        let groups = layouts.iter().enumerate().map(|(g, layout)| Group {
            layout: *layout,
            n_layers: group_of_layer.iter().filter(|&&group| group == g).count(),
            free: (0..pages(layout) as u32).rev().collect(),
            used: vec![false; pages(layout)],
            to_clear: Vec::new(),
        });
        let groups = groups.collect();
        Ok(Self { groups, layers, group_of_layer, n_kv_heads, free_slots: (0..n_slots).rev().collect() })
    }

    /// The cache of layer `index`, and the group it belongs to.
    pub(crate) fn layer(&mut self, index: usize) -> (&mut KvLayer<B>, usize) {
        (&mut self.layers[index], self.group_of_layer[index])
    }

    /// Settings of each group.
    pub(crate) fn configs(&self) -> Vec<KiviConfig> {
        self.groups.iter().map(|group| *group.layout.config()).collect()
    }

    /// A new, empty sequence, if there is a slot.
    pub fn open(&mut self) -> Option<SeqCache> {
        let slot = self.free_slots.pop()?;
        Some(SeqCache { slot, len: 0, pages: vec![Vec::new(); self.groups.len()] })
    }

    /// Whether the pool is free enough for an empty sequence to grow to `len` tokens.
    pub fn has_room(&self, len: usize) -> bool {
        self.groups.iter().all(|group| group.layout.config().pages(len) <= group.free.len())
    }

    /// Whether a sequence of `len` tokens fits the pool at all.
    pub fn can_hold(&self, len: usize) -> bool {
        self.groups.iter().all(|group| group.layout.config().pages(len) <= group.used.len())
    }

    /// Hands out the pages that `seq` needs to hold `len` tokens; false, and nothing changed, if there are too
    /// few.
    pub fn reserve(&mut self, seq: &mut SeqCache, len: usize) -> bool {
        let missing =
            |group: &Group, pages: &Vec<u32>| group.layout.config().pages(len).saturating_sub(pages.len());
        if self.groups.iter().zip(&seq.pages).any(|(group, pages)| missing(group, pages) > group.free.len()) {
            return false;
        }
        for (group, pages) in self.groups.iter_mut().zip(&mut seq.pages) {
            for _ in 0..missing(group, pages) {
                let page = group.free.pop().expect("counted above");
                if std::mem::replace(&mut group.used[page as usize], true) {
                    group.to_clear.push(page);
                }
                pages.push(page);
            }
        }
        true
    }

    /// Zeroes the pages that changed hands since the last call.
    pub(crate) fn clear_pages(&mut self, backend: &B) -> Result<(), StepError<B::Error>> {
        for (g, group) in self.groups.iter_mut().enumerate() {
            let pages = std::mem::take(&mut group.to_clear);
            if pages.is_empty() {
                continue;
            }
            let list = backend.upload(&pages)?;
            let layers = self.layers.iter_mut().zip(&self.group_of_layer).filter(|(_, of)| **of == g);
            for (layer, _) in layers {
                backend.clear_pages(ops::ClearPages::new(layer, &list, pages.len())?)?;
            }
        }
        Ok(())
    }

    /// Gives the pages and the slot of a sequence back.
    pub fn close(&mut self, seq: SeqCache) {
        self.free_slots.push(seq.slot);
        for (group, pages) in self.groups.iter_mut().zip(seq.pages) {
            group.free.extend(pages.into_iter().rev());
        }
    }

    /// What a step of `n_new` tokens does to `seq` in each group.
    pub(crate) fn plan<'a>(&self, seq: &'a SeqCache, n_new: usize) -> Vec<GroupStep<'a>> {
        let groups = self.groups.iter().zip(&seq.pages);
        let step = |(group, pages): (&Group, &'a Vec<u32>)| GroupStep {
            slot: seq.slot,
            pages: pages.as_slice(),
            packed: group.layout.config().packed(seq.len),
            packed_next: group.layout.config().packed(seq.len + n_new),
        };
        groups.map(step).collect()
    }

    /// Bytes that `seq` uses.
    pub fn bytes(&self, seq: &SeqCache) -> CacheBytes {
        let of_group = |group: &Group| {
            CacheBytes::of_head(&group.layout, seq.len).times(self.n_kv_heads * group.n_layers)
        };
        self.groups.iter().map(of_group).fold(CacheBytes::default(), |a, b| a + b)
    }

    /// Bytes of the pages that `seq` owns, counted page by page, and of its rings and sinks.
    pub fn allocated(&self, seq: &SeqCache) -> usize {
        let of_group = |(group, pages): (&Group, &Vec<u32>)| {
            let head = pages.len() * group.layout.page_bytes() + CacheBytes::outside_pages(&group.layout);
            head * self.n_kv_heads * group.n_layers
        };
        self.groups.iter().zip(&seq.pages).map(of_group).sum()
    }
}
