//! Throughput against the batch beside the memory that it takes: Figure 5 of the paper.

use anyhow::Result;

use super::axis::Scale;
use super::input::{self, Input};
use super::lines::{Lines, Panel};
use super::memory::in_bytes;
use super::rows::{self, Kept};
use crate::bench::results::Row;

/// What the rows of a line have in common.
const KEPT: [Kept; 2] = [Kept::Test, Kept::Depth];

/// Whether a line would have several points.
pub fn has_several(rows: &[Row]) -> bool {
    rows::has_several(rows, &KEPT, &|row| row.case.batch_size)
}

/// The figure.
///
/// # Errors
/// The results are not of one model, or have no rows.
pub fn figure(inputs: &[Input]) -> Result<Lines> {
    let results = input::bench(inputs)?;
    let (rows, _) = rows::longest(&results.rows, &KEPT, &|row| row.case.batch_size);
    let batch = |row: &Row| row.case.batch_size as f64;
    let x = || ("batch (sequences)".to_owned(), Scale::Doubling);
    let speed = Panel {
        title: "throughput".into(),
        x: x(),
        y: ("tokens a second, all sequences".into(), Scale::Linear),
        series: rows::series(&rows, &|row| (batch(row), row.tokens_per_second)),
    };
    let memory = rows::series(&rows, &|row| (batch(row), row.memory.own() as f64));
    Ok(Lines {
        title: "Throughput and memory against batch".into(),
        subtitle: format!("{}, {}", rows::of(&results), rows[0].test),
        panels: vec![speed, in_bytes("peak memory: weights, KV cache, activations", x(), memory)],
        note: String::new(),
    })
}
