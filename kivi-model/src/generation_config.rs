//! `generation_config.json`: where a text begins and ends, and how its author would sample.

use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::json::Fields;
use crate::sampler::SamplingParams;
use crate::source::Source;

/// Largest `generation_config.json` that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What a checkpoint recommends for generation. The file is optional; token ids fall back to those of
/// `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// The token that a text starts with, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Whether to sample; otherwise the likeliest token is taken.
    pub do_sample: bool,
    /// Recommended temperature, if any.
    pub temperature: Option<f32>,
    /// Recommended top-k, if any; 0 means all tokens.
    pub top_k: Option<usize>,
    /// Recommended top-p, if any.
    pub top_p: Option<f32>,
    /// Recommended min-p, if any.
    pub min_p: Option<f32>,
    /// Recommended repetition penalty, if any.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`, or takes what `config` says if there is none.
    ///
    /// # Errors
    /// The file is unreadable or invalid, or a value is out of its range.
    pub fn load(source: &Source, config: &ModelConfig) -> Result<GenerationConfig, LoadError> {
        const NAME: &str = "generation_config.json";
        let bytes = source.read(NAME, MAX_BYTES)?;
        let f = Fields::parse(source.place(NAME), bytes.as_deref().unwrap_or(b"{}"))?;
        let number = |field, range| Ok::<_, LoadError>(f.number(field, range)?.map(|x| x as f32));
        let bos = f.token_ids("bos_token_id")?;
        Ok(GenerationConfig {
            bos_token_id: bos.map_or(config.bos_token_id, |ids| ids.first().copied()),
            eos_token_ids: f.token_ids("eos_token_id")?.unwrap_or_else(|| config.eos_token_ids.clone()),
            do_sample: f.boolean("do_sample")?.unwrap_or(false),
            temperature: number("temperature", 0.0..=100.0)?,
            top_k: f.integer("top_k", 0..=u32::MAX as usize)?,
            top_p: number("top_p", 0.0..=1.0)?,
            min_p: number("min_p", 0.0..=1.0)?,
            repetition_penalty: number("repetition_penalty", 0.01..=100.0)?,
        })
    }

    /// The recommended way to sample: greedy unless `do_sample`, else the recommended values.
    ///
    /// What the file leaves open is neutral, not transformers' default (top-k 50 there).
    pub fn sampling(&self, seed: u64) -> SamplingParams {
        let neutral = SamplingParams { seed, ..SamplingParams::default() };
        let repetition_penalty = self.repetition_penalty.unwrap_or(neutral.repetition_penalty);
        if !self.do_sample {
            return SamplingParams { temperature: 0.0, repetition_penalty, ..neutral };
        }
        SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(neutral.top_k),
            top_p: self.top_p.unwrap_or(neutral.top_p),
            min_p: self.min_p.unwrap_or(neutral.min_p),
            repetition_penalty,
            seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &[u8] = br#"{"model_type": "llama", "bos_token_id": 7, "eos_token_id": [8, 9]}"#;

    fn load(files: &'static [(&'static str, &'static [u8])]) -> Result<GenerationConfig, LoadError> {
        let source = Source::Embedded { name: "m", files };
        GenerationConfig::load(&source, &ModelConfig::load(&source)?)
    }

    #[test]
    fn without_the_file_token_ids_are_those_of_the_model() {
        let g = load(&[("config.json", CONFIG)]).unwrap();
        assert_eq!((g.bos_token_id, &g.eos_token_ids[..]), (Some(7), &[8, 9][..]));
        assert_eq!(g.sampling(3), SamplingParams { seed: 3, ..SamplingParams::default() });
    }

    #[test]
    fn the_file_wins() {
        const FILE: &[u8] = br#"{"eos_token_id": 1, "do_sample": true, "top_k": 40, "top_p": 0.9}"#;
        let g = load(&[("config.json", CONFIG), ("generation_config.json", FILE)]).unwrap();
        assert_eq!((g.bos_token_id, &g.eos_token_ids[..]), (Some(7), &[1][..]));
        let s = g.sampling(0);
        assert_eq!((s.temperature, s.top_k, s.top_p, s.min_p), (1.0, 40, 0.9, 0.0));
    }

    #[test]
    fn a_value_out_of_range_is_named() {
        const FILE: &[u8] = br#"{"top_p": 2}"#;
        let message =
            load(&[("config.json", CONFIG), ("generation_config.json", FILE)]).unwrap_err().to_string();
        assert_eq!(message, "m/generation_config.json: top_p: expected a number from 0 to 1, found 2");
    }
}
