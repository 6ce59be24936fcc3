//! Divergence by the place in the window, from `perplexity`.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Deserialize;

use super::axis::Scale;
use super::input::Input;
use super::lines::{Lines, Panel, Series};
use crate::format::thousands;

/// What `perplexity` says, as far as it is drawn.
#[derive(Deserialize)]
struct Report {
    model: String,
    file: String,
    ctx_size: u64,
    windows: u64,
    settings: Vec<Setting>,
}

#[derive(Deserialize)]
struct Setting {
    cache: String,
    kld_by_position: Vec<(f64, f64)>,
}

/// The name of a file without its folders.
pub fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// The figure: a line a setting, less those that are the same as 16 bits everywhere, as 16 bits are.
///
/// # Errors
/// A result lacks something.
pub fn figure(inputs: &[Input]) -> Result<Lines> {
    let mut series = Vec::new();
    let mut of = BTreeSet::new();
    for input in inputs {
        let report: Report = input.parse()?;
        of.insert(format!(
            "{}, {}, {} windows of {} tokens",
            report.model,
            file_name(&report.file),
            report.windows,
            thousands(report.ctx_size)
        ));
        for Setting { cache, kld_by_position: points } in report.settings {
            let name = if inputs.len() > 1 { format!("{}: {cache}", input.stem()) } else { cache };
            if points.iter().any(|point| point.1 != 0.0) {
                series.push(Series { name, points, ring: None });
            }
        }
    }
    Ok(Lines {
        title: "Divergence from a 16-bit cache by place in the window".into(),
        subtitle: Vec::from_iter(of).join("; "),
        panels: vec![Panel {
            title: String::new(),
            x: ("place in the window (tokens)".into(), Scale::Places),
            y: ("mean KL divergence (nats)".into(), Scale::Decades),
            series,
        }],
        note: String::new(),
    })
}
