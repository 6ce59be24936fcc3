//! An engine as large as a run needs, and not larger.

use kivi_model::engine::EngineConfig;
use kivi_model::policy::CachePolicy;
use kivi_quant::KiviConfig;

/// Prompts that run at a time; further ones wait for a free place.
pub const MAX_SEQS: usize = 256;

/// Sizes an engine for prompts of these lengths. The pool holds every sequence that can run at a time to its end,
/// so none fails for want of pages.
pub fn engine(
    cache: CachePolicy,
    n_layers: usize,
    prompt_lens: &[usize],
    max_tokens: usize,
    context: usize,
    max_batched_tokens: usize,
) -> EngineConfig {
    let total = |len: &usize| len.saturating_add(max_tokens).min(context);
    let max_seqs = prompt_lens.len().min(MAX_SEQS);
    let pool_tokens = |config: &KiviConfig| {
        let mut pages: Vec<usize> = prompt_lens.iter().map(|len| config.pages(total(len))).collect();
        pages.sort_unstable_by(|a, b| b.cmp(a));
        pages.iter().take(max_seqs).sum::<usize>().max(1) * config.page_tokens()
    };
    EngineConfig {
        pool_tokens: cache.layers(n_layers).iter().map(pool_tokens).max().unwrap_or(0),
        cache,
        max_context: prompt_lens.iter().map(total).max().unwrap_or(context),
        max_seqs,
        max_batched_tokens: prompt_lens.iter().sum::<usize>().min(max_batched_tokens),
    }
}

/// An engine for one conversation of up to `context` tokens.
pub fn chat(cache: CachePolicy, n_layers: usize, context: usize, max_batched_tokens: usize) -> EngineConfig {
    engine(cache, n_layers, &[context], 0, context, max_batched_tokens)
}

#[cfg(test)]
mod tests {
    use kivi_quant::{Bits, GroupSize};

    use super::*;

    fn config(bits: Bits) -> CachePolicy {
        KiviConfig::new(bits, bits, GroupSize::G32, 128).unwrap().into()
    }

    #[test]
    fn the_pool_holds_what_is_packed_at_the_end() {
        let sized = engine(config(Bits::B2), 2, &[100, 300], 100, 8192, 8192);
        // 200 tokens pack 128 keys, 400 pack 384.
        assert_eq!((sized.pool_tokens, sized.max_context, sized.max_seqs), (512, 400, 2));
        assert_eq!(sized.max_batched_tokens, 400);
        assert_eq!(engine(config(Bits::B16), 2, &[100, 300], 100, 8192, 64).pool_tokens, 768);
    }

    #[test]
    fn the_context_bounds_what_is_asked_for() {
        let sized = engine(config(Bits::B16), 2, &[10], usize::MAX, 1024, 64);
        assert_eq!((sized.pool_tokens, sized.max_context, sized.max_batched_tokens), (1024, 1024, 10));
    }

    #[test]
    fn many_prompts_wait_for_their_turn() {
        let sized = engine(config(Bits::B16), 2, &[1; 1000], 127, 1024, 8192);
        assert_eq!((sized.max_seqs, sized.pool_tokens), (MAX_SEQS, MAX_SEQS * 128));
    }
}
