//! The rows as tables in markdown.

use std::fmt::Write;

use super::conclusions::{rate, times};
use super::host::Host;
use super::results::Row;
use crate::format::size;

/// What was measured, where, and the heads of the columns.
pub fn head(host: &Host) -> String {
    let Host { provenance, model, .. } = host;
    let weights = if host.random_weights { ", random weights" } else { "" };
    let driver = provenance.driver.as_ref().map(|driver| format!(", driver {driver}")).unwrap_or_default();
    let commit = provenance.commit.as_ref().map(|commit| format!(" ({commit})")).unwrap_or_default();
    let (device, date, version) = (provenance.device_and_dtype(), &provenance.date, &provenance.version);
    format!("{model}{weights} on {device}{driver}, {date}, kivi {version}{commit}\n\n{HEAD}")
}

const HEAD: &str = "\
| test | batch | cache | tokens/s | ± % | prompt tokens/s | decode tokens/s | ms a step | 90 % | x 16 bits | x baseline |
|---|---|---|---|---|---|---|---|---|---|---|
";

/// A line of the table.
pub fn row(row: &Row) -> String {
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.3}"));
    format!(
        "| {} | {} | {} | {} | {:.1} | {} | {} | {} | {} | {} | {} |\n",
        row.test,
        row.case.batch_size,
        row.case.cache,
        rate(Some(row.tokens_per_second)),
        row.spread_percent,
        rate(row.prompt_tokens_per_second),
        rate(row.decode_tokens_per_second),
        ms(row.steps.map(|steps| steps.median_ms)),
        ms(row.steps.map(|steps| steps.p90_ms)),
        times(row.over_16_bits),
        times(row.over_baseline),
    )
}

/// What the rows took.
pub fn memory(rows: &[Row]) -> String {
    let mut out = "\n| test | batch | cache | weights | pages | rings | workspace | other | sum | device | over sum |\n\
                   |---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for Row { test, case, memory: m, .. } in rows {
        let device = m.device.map_or_else(|| "-".into(), size);
        let over = m.device_over_sum_percent.map_or_else(|| "-".into(), |over| format!("{over:+.2} %"));
        let [weights, pages, rings, workspace, other, sum] =
            [m.weights, m.pages, m.rings, m.workspace, m.other, m.sum].map(size);
        let (batch, cache) = (case.batch_size, &case.cache);
        let _ = writeln!(
            out,
            "| {test} | {batch} | {cache} | {weights} | {pages} | {rings} | {workspace} | {other} | {sum} | {device} | {over} |"
        );
    }
    out
}
