//! What is measured: one row of the table.

use std::fmt;

use kivi_kernels::Element;
use kivi_model::config::ModelConfig;
use kivi_model::engine::{EngineBytes, EngineConfig};
use kivi_quant::{Bits, ConfigError, GroupSize, KiviConfig};
use serde::{Deserialize, Serialize};

/// One row: what each sequence of a batch does, over which cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Prompt tokens that are read; with 0 the first step takes one token and is a step of generation as the others.
    pub n_prompt: usize,
    /// Tokens that are generated; with 0 the row ends with the first token.
    pub n_gen: usize,
    /// Sequences at a time.
    pub batch_size: usize,
    /// Tokens in each cache before.
    pub depth: usize,
    /// Settings of the cache.
    pub cache: Cache,
}

/// Settings of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Bits of keys.
    pub k_bits: u32,
    /// Bits of values.
    pub v_bits: u32,
    /// Elements that share a scale.
    pub group_size: usize,
    /// Recent tokens in full precision.
    pub residual_length: usize,
    /// Type of what is in full precision.
    pub kv_dtype: String,
    /// Tokens of a page.
    pub page_tokens: usize,
}

impl Cache {
    /// Whether nothing is quantized.
    pub fn is_full(&self) -> bool {
        (self.k_bits, self.v_bits) == (16, 16)
    }
}

impl From<&KiviConfig> for Cache {
    fn from(config: &KiviConfig) -> Self {
        Self {
            k_bits: config.k_bits().get(),
            v_bits: config.v_bits().get(),
            group_size: config.group_size(),
            residual_length: config.residual_length(),
            kv_dtype: config.kv_dtype().to_string(),
            page_tokens: config.page_tokens(),
        }
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { k_bits, v_bits, group_size, residual_length, .. } = self;
        match self.is_full() {
            true => write!(f, "16 bits"),
            false => write!(f, "K{k_bits} V{v_bits} g{group_size} R{residual_length}"),
        }
    }
}

/// Settings of the cache for every combination of these; 16 bits have neither groups nor a residual window, and come once.
///
/// # Errors
/// A residual length that does not fit a group.
pub fn caches(
    bits: &[(Bits, Bits)],
    groups: &[GroupSize],
    residuals: &[usize],
) -> Result<Vec<KiviConfig>, ConfigError> {
    let mut out: Vec<KiviConfig> = Vec::new();
    for &(k, v) in bits {
        for &group in groups {
            for &residual in residuals {
                let config = KiviConfig::new(k, v, group, residual)?;
                let again = |old: &KiviConfig| Cache::from(old).is_full() && Cache::from(&config).is_full();
                if !out.iter().any(|old| *old == config || again(old)) {
                    out.push(config);
                }
            }
        }
    }
    Ok(out)
}

impl Case {
    /// What the row does, as llama-bench calls it: `pp512`, `tg128 @ d4096`, `pp160+tg338`.
    pub fn name(&self) -> String {
        let parts = [("pp", self.n_prompt), ("tg", self.n_gen)];
        let parts: Vec<String> =
            parts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{what}{n}")).collect();
        let depth = if self.depth > 0 { format!(" @ d{}", self.depth) } else { String::new() };
        parts.join("+") + &depth
    }

    /// The tokens of a sequence before anything is generated.
    pub fn prompt_len(&self) -> usize {
        self.depth + self.n_prompt.max(1)
    }

    /// The tokens of a sequence at the end.
    pub fn total_len(&self) -> usize {
        self.prompt_len() + self.n_gen.max(1)
    }

    /// An engine that just holds it, and takes prompts in steps of at most `budget` tokens.
    pub fn engine(&self, cache: KiviConfig, budget: usize) -> EngineConfig {
        let pages = cache.pages(self.total_len()).max(1) * self.batch_size;
        EngineConfig {
            pool_tokens: pages * cache.page_tokens(),
            cache: cache.into(),
            max_context: self.total_len(),
            max_seqs: self.batch_size,
            max_batched_tokens: (self.batch_size * self.prompt_len()).min(budget).max(self.batch_size),
        }
    }

    /// What that engine takes, with activations of type `A`.
    ///
    /// # Errors
    /// A cache that does not fit the model.
    pub fn bytes<A: Element>(
        &self,
        cache: KiviConfig,
        budget: usize,
        model: &ModelConfig,
    ) -> Result<EngineBytes, ConfigError> {
        self.engine(cache, budget).bytes::<A>(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_names_of_llama_bench() {
        let full = Cache::from(&KiviConfig::new(Bits::B16, Bits::B16, GroupSize::G32, 128).unwrap());
        let name = |n_prompt, n_gen, depth| {
            Case { n_prompt, n_gen, batch_size: 1, depth, cache: full.clone() }.name()
        };
        assert_eq!(name(512, 0, 0), "pp512");
        assert_eq!(name(0, 128, 4096), "tg128 @ d4096");
        assert_eq!(name(160, 338, 0), "pp160+tg338");
    }

    #[test]
    fn full_precision_comes_once() {
        let bits = [(Bits::B16, Bits::B16), (Bits::B2, Bits::B2)];
        let caches = caches(&bits, &[GroupSize::G32], &[32, 128]).unwrap();
        let names: Vec<String> = caches.iter().map(|config| Cache::from(config).to_string()).collect();
        assert_eq!(names, ["16 bits", "K2 V2 g32 R32", "K2 V2 g32 R128"]);
    }
}
