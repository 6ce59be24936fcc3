//! Time of a step against the tokens in the cache, with the depth from which fewer bits are faster.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::axis::Scale;
use super::input::{self, Input};
use super::lines::{Lines, Panel};
use super::rows::{self, Kept};
use crate::bench::conclusions::{BreakEven, break_even};
use crate::bench::results::Row;
use crate::format::thousands;

/// Whether a line would have several points.
pub fn has_several(rows: &[Row]) -> bool {
    rows::has_several(&with_steps(rows), &[Kept::Test, Kept::Batch], &|row| row.case.depth)
}

fn with_steps(rows: &[Row]) -> Vec<Row> {
    rows.iter().filter(|row| row.steps.is_some()).cloned().collect()
}

/// The figure, a panel a batch size.
///
/// # Errors
/// The results are not of one model, or no row has steps.
pub fn figure(inputs: &[Input]) -> Result<Lines> {
    let results = input::bench(inputs)?;
    let rows: Vec<Row> = with_steps(&results.rows);
    if rows.is_empty() {
        bail!("has no rows of generation; bench with --n-gen");
    }
    let even = break_even(&rows);
    let batches: BTreeSet<usize> = rows.iter().map(|row| row.case.batch_size).collect();
    let panel = |batch: &usize| {
        let own: Vec<Row> = rows.iter().filter(|row| row.case.batch_size == *batch).cloned().collect();
        panel(&own, *batch, batches.len() > 1, &even)
    };
    Ok(Lines {
        title: "Time of a step of generation against the tokens in the cache".into(),
        subtitle: rows::of(&results),
        panels: batches.iter().map(panel).collect(),
        note: note(&even, batches.len() > 1),
    })
}

fn panel(all: &[Row], batch: usize, titled: bool, even: &[BreakEven]) -> Panel {
    let (rows, _) = rows::longest(all, &[Kept::Test], &|row| row.case.depth);
    let median = |row: &Row| row.steps.map_or(0.0, |steps| steps.median_ms);
    let mut series = rows::series(&rows, &|row| (row.case.depth as f64, median(row)));
    for even in even.iter().filter(|even| even.batch_size == batch) {
        let cache = even.cache.to_string();
        let Some(depth) = even.from_depth else { continue };
        if let Some(line) = series.iter_mut().find(|line| line.name == cache) {
            line.ring = line.points.iter().find(|point| point.0 == depth as f64).copied();
        }
    }
    Panel {
        title: if titled { format!("batch {batch}") } else { String::new() },
        x: ("tokens in the cache of each sequence".into(), Scale::Doubling),
        y: ("median step (ms)".into(), Scale::Linear),
        series,
    }
}

/// The break-even points in words.
fn note(even: &[BreakEven], batches: bool) -> String {
    let text = |even: &BreakEven| {
        let batch = if batches { format!(" at batch {}", even.batch_size) } else { String::new() };
        let last = even.depths.last().copied().unwrap_or(0);
        match even.from_depth {
            Some(depth) => format!("{}{batch} from {} tokens on", even.cache, thousands(depth as u64)),
            None => format!("{}{batch} not up to {} tokens", even.cache, thousands(last as u64)),
        }
    };
    match even {
        [] => String::new(),
        _ => {
            let all: Vec<String> = even.iter().map(text).collect();
            format!("Faster than 16 bits (ringed): {}.", all.join("; "))
        }
    }
}
