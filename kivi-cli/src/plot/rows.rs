//! Rows of `bench` as lines.

use std::collections::BTreeSet;

use super::lines::Series;
use crate::bench::case::Case;
use crate::bench::results::{Results, Row};

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
            Self::Depth => format!("d{}", row.case.depth),
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

/// The rows as lines of those that have the cache and all these in common, named by the cache and by what differs.
pub fn series(rows: &[Row], kept: &[Kept], point: &dyn Fn(&Row) -> (f64, f64)) -> Vec<Series> {
    let differs = |kept: &&Kept| rows.iter().map(|row| kept.of(row)).collect::<BTreeSet<_>>().len() > 1;
    let named: Vec<&Kept> = kept.iter().filter(differs).collect();
    let mut out: Vec<Series> = Vec::new();
    for row in rows {
        let parts = named.iter().map(|kept| kept.of(row));
        let name = std::iter::once(row.case.cache.to_string()).chain(parts).collect::<Vec<_>>().join(", ");
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
