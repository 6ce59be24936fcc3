//! The file that `--json` writes and `--baseline` reads.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::case::Case;
use super::conclusions::Conclusions;
use super::host::Host;
use super::measure::{Sample, Steps, quantile};
use super::memory::Parts;
use crate::format;

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where and when it ran, and what was asked for.
    #[serde(flatten)]
    pub host: Host,
    /// One entry a case.
    pub rows: Vec<Row>,
    /// What follows from the rows.
    #[serde(default)]
    pub conclusions: Conclusions,
}

/// What came of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub test: String,
    /// What was measured.
    #[serde(flatten)]
    pub case: Case,
    /// Each repetition.
    pub samples: Vec<Sample>,
    /// Tokens a second of all sequences: of those generated, or of the prompt if nothing was. The median of all samples, and half
    /// of the range in percent of it.
    pub tokens_per_second: f64,
    /// See there.
    pub spread_percent: f64,
    /// Prompt tokens a second until each sequence had its first token; `null` without prompts.
    pub prompt_tokens_per_second: Option<f64>,
    /// Steps of generation: medians of those of the samples.
    pub steps: Option<Steps>,
    /// Tokens a second in the median step.
    pub decode_tokens_per_second: Option<f64>,
    /// Memory by part.
    pub memory: Parts,
    /// Tokens a second over those of the 16-bit cache.
    pub over_16_bits: Option<f64>,
    /// Tokens a second over those of the baseline.
    pub over_baseline: Option<f64>,
}

impl Row {
    /// Of at least one sample.
    pub fn new(case: &Case, samples: Vec<Sample>, memory: Parts) -> Self {
        let batch = case.batch_size as f64;
        let tokens = batch * if case.n_gen > 0 { case.n_gen } else { case.n_prompt } as f64;
        let of = |f: &dyn Fn(&Sample) -> Option<f64>| {
            let mut values: Vec<f64> = samples.iter().filter_map(f).collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let rates = of(&|sample| Some(tokens / sample.seconds));
        let rate = quantile(&rates, 0.5);
        let prompts = of(&|sample| Some(batch * case.n_prompt as f64 / sample.first_token_seconds));
        let counted = samples.iter().filter_map(|sample| sample.steps).map(|steps| steps.count).sum();
        let steps = (counted > 0).then(|| Steps {
            count: counted,
            median_ms: quantile(&of(&|sample| Some(sample.steps?.median_ms)), 0.5),
            p90_ms: quantile(&of(&|sample| Some(sample.steps?.p90_ms)), 0.5),
        });
        Self {
            test: case.name(),
            case: case.clone(),
            tokens_per_second: rate,
            spread_percent: 50.0 * (quantile(&rates, 1.0) - quantile(&rates, 0.0)) / rate,
            prompt_tokens_per_second: (case.n_prompt > 0).then(|| quantile(&prompts, 0.5)),
            steps,
            decode_tokens_per_second: steps.map(|steps| batch * 1e3 / steps.median_ms),
            samples,
            memory,
            over_16_bits: None,
            over_baseline: None,
        }
    }

    /// Whether the other is the same case, but for the cache.
    pub fn is_like(&self, other: &Row) -> bool {
        let key = |case: &Case| (case.n_prompt, case.n_gen, case.batch_size, case.depth);
        key(&self.case) == key(&other.case)
    }
}

impl Results {
    /// Adds a row, with its ratio to the 16-bit row that is there already.
    pub fn push(&mut self, mut row: Row) {
        let full = self.rows.iter().find(|old| old.case.cache.is_full() && old.is_like(&row));
        row.over_16_bits = full.map(|full| row.tokens_per_second / full.tokens_per_second);
        if row.case.cache.is_full() {
            row.over_16_bits = None;
        }
        self.rows.push(row);
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let name = || format!("{}: cannot be written", format::path(path));
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(dir).with_context(name)?;
        std::fs::write(file.path(), serde_json::to_string_pretty(self)? + "\n").with_context(name)?;
        file.persist(path).with_context(name).map(drop)
    }
}
