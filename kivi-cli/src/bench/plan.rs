//! What the flags of `bench` ask for.

use anyhow::Result;
use kivi_kernels::DType;
use kivi_model::config::ModelConfig;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};

use super::case::caches;
use crate::args::{BenchArgs, Preset};
use crate::failure::Usage;

/// What the flags ask for.
pub struct Plan {
    /// Settings of the cache.
    pub caches: Vec<KiviConfig>,
    /// Prompt and generated tokens of each row.
    pub tests: Vec<(usize, usize)>,
    /// Tokens in the caches before.
    pub depths: Vec<usize>,
    /// Times that each row is measured.
    pub repetitions: usize,
    /// Prompt tokens of a step.
    pub budget: usize,
}

/// The list that was given, or its default.
pub fn or<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}

impl Plan {
    /// Defaults, those of a preset, and what the flags say instead; rows are kept for activations of type `act`.
    ///
    /// # Errors
    /// Flags that ask for nothing, or for a cache that does not exist.
    pub fn new(args: &BenchArgs, act: DType) -> Result<Self> {
        let paper = args.preset == Some(Preset::Paper);
        let bits: Vec<(Bits, Bits)> = args.kv_bits.iter().map(|bits| (bits.k, bits.v)).collect();
        let bits = or(&bits, &[(Bits::B16, Bits::B16), (Bits::B2, Bits::B2)]);
        let residuals = or(&args.kv_residual, if paper { &[32, 128] } else { &[128] });
        let caches = caches(&bits, &or(&args.kv_group_size, &[GroupSize::G32]), &residuals);
        let caches = caches.map_err(|error| Usage(format!("--kv-residual: {error}")))?;
        let rows = args.kv_dtype.unwrap_or(if act == DType::Bf16 { KvDtype::Bf16 } else { KvDtype::F16 });
        let prompts = or(&args.n_prompt, &[if paper { 160 } else { 512 }]);
        let gens = or(&args.n_gen, &[if paper { 338 } else { 128 }]);
        let tests = tests(&prompts, &gens, paper || args.together);
        if tests.is_empty() {
            return Err(Usage("--n-prompt, --n-gen: expected one above 0, found none".into()).into());
        }
        let page = |cache: KiviConfig| {
            let cache = cache.with_kv_dtype(rows).with_page_tokens(args.kv_page_tokens);
            cache.map_err(|error| Usage(format!("--kv-page-tokens: {error}")).into())
        };
        Ok(Self {
            caches: caches.into_iter().map(page).collect::<Result<_>>()?,
            tests,
            depths: or(&args.depth, &[0]),
            repetitions: args.repetitions.unwrap_or(if paper { 1 } else { 3 }),
            budget: args.max_num_batched_tokens.unwrap_or(if paper { 2048 } else { 8192 }),
        })
    }

    /// Says so if rows are longer than what the model was made for.
    pub fn warn_of_length(&self, model: &ModelConfig) {
        let longest = self.tests.iter().map(|(p, n)| p + n).max().unwrap_or(0);
        let longest = longest + self.depths.iter().max().unwrap_or(&0);
        let made_for = model.max_position_embeddings;
        if longest > made_for {
            tracing::warn!(
                "the model was made for {made_for} tokens, not {longest}: it takes as long, but texts would be bad"
            );
        }
    }
}

/// Prompt and generated tokens of each row: one each, or each prompt with each length of generation.
fn tests(prompts: &[usize], gens: &[usize], together: bool) -> Vec<(usize, usize)> {
    let both = prompts.iter().flat_map(|p| gens.iter().map(|n| (*p, *n)));
    let alone = prompts.iter().map(|p| (*p, 0)).chain(gens.iter().map(|n| (0, *n)));
    let all: Vec<_> = if together { both.collect() } else { alone.collect() };
    all.into_iter().filter(|(p, n)| p + n > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_and_generation_are_rows_of_their_own_unless_together() {
        assert_eq!(tests(&[512, 0], &[128], false), [(512, 0), (0, 128)]);
        assert_eq!(tests(&[160, 320], &[338], true), [(160, 338), (320, 338)]);
        assert!(tests(&[0], &[0], true).is_empty());
    }
}
