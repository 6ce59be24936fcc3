//! An earlier run to compare with.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use super::host::Host;
use super::results::{Results, Row};
use crate::format;

/// Reads what `--json` wrote.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read(path: &Path) -> Result<Results> {
    let name = format::path(path);
    let file = File::open(path).with_context(|| format!("--baseline {name}: cannot be opened"))?;
    serde_json::from_reader(std::io::BufReader::new(file))
        .map_err(|error| anyhow!("--baseline {name}: expected a file that bench --json wrote: {error}"))
}

/// Says so if the baseline is of another model or device.
pub fn warn_of_other(baseline: &Results, now: &Host) {
    let of = |host: &Host| format!("{} on {}", host.model, host.provenance.device_and_dtype());
    let (then, now) = (of(&baseline.host), of(now));
    if then != now {
        tracing::warn!("the baseline is of {then}, this is {now}");
    }
}

/// Tokens a second over those of the baseline's row of the same case.
pub fn ratio(baseline: &Results, row: &Row) -> Option<f64> {
    let same = baseline.rows.iter().find(|old| old.case == row.case)?;
    Some(row.tokens_per_second / same.tokens_per_second)
}
