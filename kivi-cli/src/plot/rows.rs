//! Rows of `bench` as lines: of all rows, those that differ in what is shown, and in the cache.

use std::collections::{BTreeMap, BTreeSet};

use super::lines::Series;
use crate::bench::case::Case;
use crate::bench::results::{Results, Row};
use crate::format::thousands;

/// What rows of a line have in common, beside the settings of their cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// What is read and generated.
    Test,
    /// Tokens in the cache before.
    Depth,
    /// Sequences at a time.
    Batch,
}

impl Kept {
    fn of(self, row: &Row) -> String {
        match self {
            Self::Test => Case { depth: 0, ..row.case.clone() }.name(),
            Self::Depth => format!("{} tokens in each cache before", thousands(row.case.depth as u64)),
            Self::Batch => format!("batch {}", row.case.batch_size),
        }
    }
}

/// Whether some rows that differ in `x` have all these in common.
pub fn has_several(rows: &[Row], kept: &[Kept], x: &dyn Fn(&Row) -> usize) -> bool {
    let of = |row: &Row| kept.iter().map(|kept| kept.of(row)).collect::<Vec<_>>();
    let all: BTreeSet<_> = rows.iter().map(|row| (of(row), x(row))).collect();
    let lines: BTreeSet<_> = rows.iter().map(of).collect();
    all.len() > lines.len()
}

/// The rows with most different `x` that have all these in common, of several such the last ones; and what they have in common, where
/// other rows differ.
pub fn longest(rows: &[Row], kept: &[Kept], x: &dyn Fn(&Row) -> usize) -> (Vec<Row>, String) {
    let mut groups: BTreeMap<Vec<String>, (usize, Vec<Row>)> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        let group = groups.entry(kept.iter().map(|kept| kept.of(row)).collect()).or_default();
        group.0 = i;
        group.1.push(row.clone());
    }
    let points =
        |(last, rows): &(usize, Vec<Row>)| (rows.iter().map(x).collect::<BTreeSet<_>>().len(), *last);
    let longest = groups.into_values().max_by_key(points).unwrap_or_default().1;
    let differs = |kept: &&Kept| rows.iter().any(|row| kept.of(row) != kept.of(&longest[0]));
    let common = kept.iter().filter(differs).map(|kept| format!(", {}", kept.of(&longest[0]))).collect();
    (longest, common)
}

/// The rows as a line for each setting of the cache.
pub fn series(rows: &[Row], point: &dyn Fn(&Row) -> (f64, f64)) -> Vec<Series> {
    let mut out: Vec<Series> = Vec::new();
    for row in rows {
        let name = row.case.cache.to_string();
        match out.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point(row)),
            None => out.push(Series { name, points: vec![point(row)], ring: None }),
        }
    }
    out
}

/// Model and device of a result.
pub fn of(results: &Results) -> String {
    let host = &results.host;
    let weights = if host.random_weights { " (random weights)" } else { "" };
    format!("{}{weights}, on {}", host.model, host.provenance.device_and_dtype())
}
