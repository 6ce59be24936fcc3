//! How much of the device a run may take: the page pool gets what is left, and what does not fit is told before it is
//! allocated.

use anyhow::{Result, anyhow};
use kivi_kernels::{Backend, Memory};
use kivi_model::config::ModelConfig;
use kivi_model::engine::{EngineBytes, EngineConfig};
use kivi_model::policy::CachePolicy;
use kivi_quant::{Bits, GroupSize, KiviConfig};

use crate::args::MemoryArgs;
use crate::format::{size, thousands};
use crate::report;

/// Bytes that an engine may take, and those that it may take for its cache alone.
#[derive(Clone, Copy, Debug)]
struct Budget {
    all: u64,
    cache: u64,
}

impl Budget {
    /// What the flags leave when the weights are loaded; none if the device does not say and nothing was asked for.
    fn new(args: &MemoryArgs, memory: Option<Memory>) -> Option<Self> {
        let all = memory.map(|Memory { free, total }| {
            let reserved = (total as f64 * (1.0 - args.gpu_memory_utilization)).round() as u64;
            // What was asked for by its size may take what is there.
            let reserved = if args.kv_cache_memory.is_some() { 0 } else { reserved };
            (free as u64).saturating_sub(reserved)
        });
        if all.is_none() && args.kv_cache_memory.is_none() {
            return None;
        }
        Some(Self { all: all.unwrap_or(u64::MAX), cache: args.kv_cache_memory.unwrap_or(u64::MAX) })
    }

    /// In words.
    fn left(self) -> String {
        match (self.all, self.cache) {
            (u64::MAX, cache) => format!("--kv-cache-memory allows {}", size(cache)),
            (all, u64::MAX) => format!("{} is left", size(all)),
            (all, cache) => {
                format!("{} is left, of which --kv-cache-memory allows {}", size(all), size(cache))
            }
        }
    }

    fn fits<B: Backend>(self, sizes: &EngineConfig, model: &ModelConfig) -> bool {
        let bytes = sizes.bytes::<B::Act>(model);
        bytes.is_ok_and(|bytes| {
            bytes.total() <= self.all && bytes.rings.saturating_add(bytes.pages) <= self.cache
        })
    }

    /// Tokens of the largest pool that fits, up to `most`; none if no pool does.
    fn tokens<B: Backend>(self, sizes: &EngineConfig, model: &ModelConfig, most: usize) -> Option<usize> {
        let fits = |pool_tokens| self.fits::<B>(&EngineConfig { pool_tokens, ..sizes.clone() }, model);
        let page = sizes.cache.base().page_tokens();
        let (mut low, mut high) = (0, most.div_ceil(page) + 1);
        if !fits(0) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle * page) { low = middle } else { high = middle }
        }
        Some((low * page).min(most))
    }
}

/// More tokens than any device holds.
const MANY: usize = 1 << 40;

/// Cuts the pool to what fits, and says what the device holds. Sequences that have no pages wait for those that have.
///
/// # Errors
/// Not even one sequence fits: what it takes, what is left, and what would fit.
pub fn fit<B: Backend>(
    backend: &B,
    model: &ModelConfig,
    sizes: &mut EngineConfig,
    (args, show): (&MemoryArgs, bool),
) -> Result<()> {
    let memory = backend.memory()?;
    let Some(budget) = Budget::new(args, memory) else { return Ok(()) };
    if show && let Some(memory) = memory {
        eprintln!("{}", capacity::<B>(budget, model, sizes, memory));
    }
    let least = sizes.cache.base().pages(sizes.max_context).max(1) * sizes.cache.base().page_tokens();
    match budget.tokens::<B>(sizes, model, sizes.pool_tokens) {
        Some(tokens) if tokens >= least.min(sizes.pool_tokens) => sizes.pool_tokens = tokens,
        _ => return Err(does_not_fit::<B>(budget, model, sizes, least)),
    }
    Ok(())
}

/// The largest number of texts at a time, up to `asked`, for which the engines that `engines` gives fit beside each other.
///
/// # Errors
/// Not even one text at a time fits.
pub fn batch<B: Backend>(
    backend: &B,
    model: &ModelConfig,
    (args, asked): (&MemoryArgs, usize),
    engines: impl Fn(usize) -> Vec<EngineConfig>,
) -> Result<usize> {
    let Some(budget) = Budget::new(args, backend.memory()?) else { return Ok(asked) };
    let bytes = |batch: usize| -> (u64, u64) {
        let bytes = engines(batch).iter().map(|sizes| sizes.bytes::<B::Act>(model)).collect::<Vec<_>>();
        let sum = |part: &dyn Fn(EngineBytes) -> u64| {
            let parts = bytes.iter().flatten().map(|bytes| part(*bytes));
            parts.fold(0_u64, u64::saturating_add)
        };
        (sum(&|bytes| bytes.total()), sum(&|bytes| bytes.rings.saturating_add(bytes.pages)))
    };
    let fits = |batch: &usize| {
        let (all, cache) = bytes(*batch);
        all <= budget.all && cache <= budget.cache
    };
    (1..=asked).rev().find(fits).ok_or_else(|| {
        let (all, cache) = bytes(1);
        anyhow!(
            "one text at a time takes {}, {} of it for the caches of all settings; {}; give fewer --kv-bits at a time, or a smaller --ctx-size",
            size(all),
            size(cache),
            budget.left(),
        )
    })
}

/// The line that says how many tokens fit.
fn capacity<B: Backend>(budget: Budget, model: &ModelConfig, sizes: &EngineConfig, memory: Memory) -> String {
    let tokens = |cache| {
        let tokens = budget.tokens::<B>(&EngineConfig { cache, ..sizes.clone() }, model, MANY);
        thousands(tokens.unwrap_or(0) as u64)
    };
    format!(
        "capacity     {} tokens at {}, {} at fp16   in {} free of {}",
        tokens(sizes.cache.clone()),
        report::settings(&sizes.cache),
        tokens(with_bits(&sizes.cache, Bits::B16)),
        size(memory.free as u64),
        size(memory.total as u64),
    )
}

/// The same settings at another width, for all layers.
fn with_bits(cache: &CachePolicy, bits: Bits) -> CachePolicy {
    let base = cache.base();
    let group = GroupSize::try_from(base.group_size());
    let config = group.and_then(|group| KiviConfig::new(bits, bits, group, base.residual_length()));
    config.map_or(*base, |config| config.with_kv_dtype(base.kv_dtype())).into()
}

fn does_not_fit<B: Backend>(
    budget: Budget,
    model: &ModelConfig,
    sizes: &EngineConfig,
    least: usize,
) -> anyhow::Error {
    let wanted = EngineConfig { pool_tokens: least.min(sizes.pool_tokens), ..sizes.clone() };
    let bytes = wanted.bytes::<B::Act>(model);
    let bytes = bytes.map(|b| (b.rings.saturating_add(b.pages), b.activations)).unwrap_or_default();
    let left = budget.left();
    anyhow!(
        "the cache of a text of {} tokens takes {}, and activations {}; {left}; {}",
        thousands(sizes.max_context as u64),
        size(bytes.0),
        size(bytes.1),
        smaller::<B>(budget, model, &wanted),
    )
}

/// The first smaller setting that fits.
fn smaller<B: Backend>(budget: Budget, model: &ModelConfig, wanted: &EngineConfig) -> String {
    let chunked = EngineConfig { max_batched_tokens: wanted.max_batched_tokens.min(512), ..wanted.clone() };
    if budget.fits::<B>(&chunked, model) {
        return format!("--max-num-batched-tokens {} fits", chunked.max_batched_tokens);
    }
    let packed = EngineConfig { cache: with_bits(&wanted.cache, Bits::B2), ..chunked.clone() };
    if budget.fits::<B>(&packed, model) {
        return format!("--kv-bits 2 --max-num-batched-tokens {} fits", chunked.max_batched_tokens);
    }
    let one = EngineConfig { max_seqs: 1, ..packed };
    match budget.tokens::<B>(&one, model, wanted.max_context) {
        Some(tokens) if tokens > 0 => {
            let rows = one.max_batched_tokens;
            format!("one text with --ctx-size {tokens} --kv-bits 2 --max-num-batched-tokens {rows} fits")
        }
        _ => "no setting of this model fits".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use kivi_kernels_ref::Cpu;

    use super::*;

    fn args(utilization: f64, cache: Option<u64>) -> MemoryArgs {
        MemoryArgs { gpu_memory_utilization: utilization, kv_cache_memory: cache }
    }

    fn tiny() -> (ModelConfig, EngineConfig) {
        let source = crate::model_source::EMBEDDED;
        let config = ModelConfig::load(&source).unwrap();
        let cache = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 128).unwrap();
        let sizes = crate::sizing::engine(cache.into(), config.n_layers, &[1000; 4], 1000, 8192, 512);
        (config, sizes)
    }

    #[test]
    fn the_pool_is_cut_to_what_is_allowed_and_not_below_one_text() {
        let (model, wanted) = tiny();
        let backend = Cpu::<f32>::new();
        let bytes = wanted.bytes::<f32>(&model).unwrap();
        let fit = |cache: u64| {
            let mut sizes = wanted.clone();
            fit(&backend, &model, &mut sizes, (&args(0.9, Some(cache)), false)).map(|()| sizes.pool_tokens)
        };
        assert_eq!(fit(bytes.rings + bytes.pages).unwrap(), wanted.pool_tokens);
        assert_eq!(fit(bytes.rings + bytes.pages / 2).unwrap(), wanted.pool_tokens / 2);
        let error = fit(bytes.rings + bytes.pages / 8).unwrap_err().to_string();
        assert!(error.contains("2,000 tokens") && error.contains("--ctx-size"), "{error}");
        assert!(fit(1).unwrap_err().to_string().contains("no setting"));
    }

    #[test]
    fn as_many_texts_run_at_a_time_as_fit() {
        let (model, wanted) = tiny();
        let engines =
            |n: usize| vec![EngineConfig { max_seqs: n, pool_tokens: n * 2048, ..wanted.clone() }; 2];
        let one = engines(1)[0].bytes::<f32>(&model).unwrap();
        let batch = |cache| batch(&Cpu::<f32>::new(), &model, (&args(0.9, Some(cache)), 8), engines);
        assert_eq!(batch(2 * 3 * (one.rings + one.pages)).unwrap(), 3);
        assert_eq!(batch(u64::MAX / 2).unwrap(), 8);
        assert!(batch(1).unwrap_err().to_string().contains("fewer --kv-bits"));
    }

    #[test]
    fn the_share_that_is_not_to_be_used_is_left() {
        let memory = Some(Memory { free: 500, total: 1000 });
        assert_eq!(Budget::new(&args(0.9, None), memory).unwrap().all, 400);
        assert_eq!(Budget::new(&args(0.4, None), memory).unwrap().all, 0);
        assert_eq!(Budget::new(&args(0.4, Some(7)), memory).unwrap().cache, 7);
        assert!(Budget::new(&args(0.9, None), None).is_none());
    }
}
