//! Memory against context, and against the batch: what `bench` measured, or what the cache takes by its formula.

use anyhow::{Result, bail};
use serde::Deserialize;

use super::axis::Scale;
use super::input::{self, Input};
use super::lines::{Lines, Panel, Series};
use super::rows::{self, Kept};
use crate::bench::results::Row;

/// What memory is shown against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// Tokens of a sequence.
    Context,
    /// Sequences at a time.
    Batch,
}

impl Against {
    fn of(self, row: &Row) -> usize {
        match self {
            Self::Context => row.case.total_len(),
            Self::Batch => row.case.batch_size,
        }
    }

    fn kept(self) -> &'static [Kept] {
        match self {
            Self::Context => &[Kept::Test, Kept::Batch],
            Self::Batch => &[Kept::Test, Kept::Depth],
        }
    }

    fn label(self) -> (String, Scale) {
        let label = match self {
            Self::Context => "context (tokens)",
            Self::Batch => "batch (sequences)",
        };
        (label.into(), Scale::Doubling)
    }
}

/// Whether a line would have several points.
pub fn has_several(rows: &[Row], against: Against) -> bool {
    rows::has_several(rows, against.kept(), &|row| against.of(row))
}

/// The figure.
///
/// # Errors
/// The results are not of one model, or have no rows.
pub fn against(inputs: &[Input], against: Against) -> Result<Lines> {
    if inputs.iter().any(|input| input.command == "inspect") {
        return by_formula(input::only(inputs)?);
    }
    let results = input::bench(inputs)?;
    let (rows, common) = rows::longest(&results.rows, against.kept(), &|row| against.of(row));
    let panel = |title: &str, bytes: &dyn Fn(&Row) -> u64| {
        let points = |row: &Row| (against.of(row) as f64, bytes(row) as f64);
        in_bytes(title, against.label(), rows::series(&rows, &points))
    };
    Ok(Lines {
        title: match against {
            Against::Context => "Memory against context".into(),
            Against::Batch => "Memory against batch".into(),
        },
        subtitle: rows::of(&results) + &common,
        panels: vec![
            panel("KV cache", &|row| row.memory.pages.saturating_add(row.memory.rings)),
            panel("all: weights, KV cache, activations", &|row| row.memory.own()),
        ],
        note: String::new(),
    })
}

/// A panel of bytes, in the unit that suits the largest.
pub fn in_bytes(title: &str, x: (String, Scale), mut series: Vec<Series>) -> Panel {
    let most = series.iter().flat_map(|s| &s.points).map(|point| point.1).fold(0.0, f64::max);
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let (unit, power) =
        units.into_iter().find(|(_, power)| most >= 2_f64.powi(*power)).unwrap_or(("bytes", 0));
    series.iter_mut().flat_map(|s| &mut s.points).for_each(|point| point.1 /= 2_f64.powi(power));
    Panel { title: title.into(), x, y: (format!("memory ({unit})"), Scale::Linear), series }
}

/// What `inspect` says of a cache.
#[derive(Deserialize)]
struct Inspection {
    model: String,
    kv_cache: Cache,
}

#[derive(Deserialize)]
struct Cache {
    batch_size: usize,
    group_size: usize,
    residual_length: usize,
    by_tokens: Vec<Sizes>,
}

/// Bytes of a cache of so many tokens at each width.
#[derive(Deserialize)]
struct Sizes {
    tokens: usize,
    /// Bits, and bytes.
    used_bytes: Vec<(u32, u64)>,
}

fn by_formula(input: &Input) -> Result<Lines> {
    let Inspection { model, kv_cache: cache } = input.parse()?;
    if cache.by_tokens.is_empty() {
        bail!("has no `by_tokens`");
    }
    let mut series: Vec<Series> = Vec::new();
    for (sizes, (bits, bytes)) in
        cache.by_tokens.iter().flat_map(|s| s.used_bytes.iter().map(move |b| (s, b)))
    {
        let (name, point) = (format!("{bits} bits"), (sizes.tokens as f64, *bytes as f64));
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, points: vec![point], ring: None }),
        }
    }
    let Cache { batch_size, group_size, residual_length, .. } = cache;
    let sequences = if batch_size == 1 { "1 sequence".into() } else { format!("{batch_size} sequences") };
    Ok(Lines {
        title: "KV cache memory against context".into(),
        subtitle: format!(
            "{model}, {sequences}, groups of {group_size}, residual window of {residual_length} tokens"
        ),
        panels: vec![in_bytes("", Against::Context.label(), series)],
        note: "By the formula, which the cache follows exactly.".into(),
    })
}
