//! What follows from the rows: from which context on fewer bits are faster, and what they give where memory is full.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::case::Cache;
use super::results::Row;
use crate::format::thousands;

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Conclusions {
    /// One entry a batch size and setting that has rows of generation at several depths, and 16-bit rows beside them.
    pub break_even: Vec<BreakEven>,
    /// One entry a setting of a sweep.
    pub sweep: Vec<Sweep>,
}

/// From which context on a setting is faster than 16 bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BreakEven {
    /// Sequences at a time.
    pub batch_size: usize,
    /// The setting.
    pub cache: Cache,
    /// The shortest depth that was measured from which on it is faster; `null` if it is not at the longest.
    pub from_depth: Option<usize>,
    /// The depths that were measured.
    pub depths: Vec<usize>,
}

/// What a setting gives in the memory that there is; ratios are to 16 bits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sweep {
    /// The setting.
    pub cache: Cache,
    /// The largest batch that fits, and over that of 16 bits.
    pub largest_batch: usize,
    /// See there.
    pub largest_batch_ratio: Option<f64>,
    /// Tokens a second at the largest batch.
    pub at_largest: Option<f64>,
    /// See there.
    pub at_largest_ratio: Option<f64>,
    /// Most tokens a second, and the batch that gives them.
    pub best: Option<f64>,
    /// See there.
    pub best_batch: Option<usize>,
    /// See there.
    pub best_ratio: Option<f64>,
    /// Bytes of 16 bits, weights included, over this setting's, at the largest batch that both were measured at.
    pub memory_ratio: Option<f64>,
    /// That batch.
    pub memory_batch: Option<usize>,
}

/// From which depths on settings are faster.
pub fn break_even(rows: &[Row]) -> Vec<BreakEven> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.case.n_prompt == 0).collect();
    let mut out: Vec<BreakEven> = Vec::new();
    for row in rows.iter().filter(|row| row.over_16_bits.is_some()) {
        let (case, cache) = (&row.case, &row.case.cache);
        let known = |old: &BreakEven| old.batch_size == case.batch_size && old.cache == *cache;
        if out.iter().any(known) {
            continue;
        }
        let like = |other: &&&Row| {
            (other.case.batch_size, other.case.n_gen) == (case.batch_size, case.n_gen)
                && other.case.cache == *cache
        };
        let of = |row: &&Row| Some((row.case.depth, row.over_16_bits?));
        let mut ratios: Vec<(usize, f64)> = rows.iter().filter(like).filter_map(of).collect();
        ratios.sort_unstable_by_key(|(depth, _)| *depth);
        let faster = ratios.iter().rev().take_while(|(_, ratio)| *ratio > 1.0);
        if ratios.len() > 1 {
            out.push(BreakEven {
                batch_size: case.batch_size,
                cache: cache.clone(),
                from_depth: faster.last().map(|(depth, _)| *depth),
                depths: ratios.iter().map(|(depth, _)| *depth).collect(),
            });
        }
    }
    out
}

/// What the settings give, with the largest batch of each.
pub fn sweep(rows: &[Row], largest: &[(Cache, usize)]) -> Vec<Sweep> {
    let full =
        largest.iter().find(|(cache, _)| cache.is_full()).map(|(cache, n)| Sweep::new(rows, cache, *n));
    let mut out: Vec<Sweep> = largest.iter().map(|(cache, n)| Sweep::new(rows, cache, *n)).collect();
    if let Some(full) = full {
        out.iter_mut().for_each(|sweep| sweep.compare(rows, &full));
    }
    out
}

impl Sweep {
    fn new(rows: &[Row], cache: &Cache, largest_batch: usize) -> Self {
        let own = || rows.iter().filter(|row| row.case.cache == *cache);
        let rate = |row: &Row| row.tokens_per_second;
        let best = own().max_by(|a, b| rate(a).total_cmp(&rate(b)));
        Self {
            cache: cache.clone(),
            largest_batch,
            largest_batch_ratio: None,
            at_largest: own().find(|row| row.case.batch_size == largest_batch).map(rate),
            at_largest_ratio: None,
            best: best.map(rate),
            best_batch: best.map(|row| row.case.batch_size),
            best_ratio: None,
            memory_ratio: None,
            memory_batch: None,
        }
    }

    fn compare(&mut self, rows: &[Row], full: &Sweep) {
        let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
        self.largest_batch_ratio =
            (full.largest_batch > 0).then(|| self.largest_batch as f64 / full.largest_batch as f64);
        self.at_largest_ratio = ratio(self.at_largest, full.at_largest);
        self.best_ratio = ratio(self.best, full.best);
        let of = |cache: &Cache| rows.iter().filter(|row| row.case.cache == *cache).collect::<Vec<_>>();
        let (own, other) = (of(&self.cache), of(&full.cache));
        let pairs = own.iter().filter_map(|a| Some((*a, *other.iter().find(|b| b.is_like(a))?)));
        if let Some((a, b)) = pairs.max_by_key(|(a, _)| a.case.batch_size) {
            self.memory_ratio = Some(b.memory.own() as f64 / a.memory.own() as f64);
            self.memory_batch = Some(a.case.batch_size);
        }
    }
}

impl Conclusions {
    /// In lines for people; nothing if there are none.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if !self.break_even.is_empty() {
            out += "\n| batch | cache | faster than 16 bits from |\n|---|---|---|\n";
        }
        for entry in &self.break_even {
            let depth = |n: usize| thousands(n as u64);
            let last = entry.depths.last().copied().unwrap_or(0);
            let from = entry.from_depth.map_or_else(
                || format!("not up to {} tokens", depth(last)),
                |from| format!("{} tokens", depth(from)),
            );
            let _ = writeln!(out, "| {} | {} | {from} |", entry.batch_size, entry.cache);
        }
        if !self.sweep.is_empty() {
            out += "\n| cache | largest batch | x 16 bits | tokens/s there | x 16 bits | most tokens/s | at batch | x 16 bits | memory, 16 bits over this | at batch |\n";
            out += "|---|---|---|---|---|---|---|---|---|---|\n";
        }
        for entry in &self.sweep {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                entry.cache,
                entry.largest_batch,
                times(entry.largest_batch_ratio),
                rate(entry.at_largest),
                times(entry.at_largest_ratio),
                rate(entry.best),
                number(entry.best_batch),
                times(entry.best_ratio),
                times(entry.memory_ratio),
                number(entry.memory_batch),
            );
        }
        out
    }
}

/// A ratio, if there is one.
pub fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"))
}

/// Tokens a second, if there are any.
pub fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".into(),
        Some(rate) if rate < 1000.0 => format!("{rate:.1}"),
        Some(rate) => thousands(rate.round() as u64),
    }
}

fn number(number: Option<usize>) -> String {
    number.map_or_else(|| "-".into(), |number| number.to_string())
}
