//! Right answers of `eval passkey` and `eval needle` by length and depth.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use super::heat::{Grid, Heat};
use super::input::Input;
use crate::format::thousands;

/// What `eval` says, as far as it is drawn.
#[derive(Deserialize)]
struct Eval {
    task: Option<String>,
    model: String,
    cache: String,
    lengths: Option<Vec<Length>>,
}

/// The prompts of one length.
#[derive(Deserialize)]
struct Length {
    length: u64,
    /// By depth in thousandths: right answers, prompts.
    depths: BTreeMap<String, (f64, f64)>,
}

/// The figure, a panel a result.
///
/// # Errors
/// A result has no lengths.
pub fn figure(inputs: &[Input]) -> Result<Heat> {
    let evals = inputs.iter().map(Input::parse).collect::<Result<Vec<Eval>>>()?;
    let tasks: BTreeSet<&str> = evals.iter().map(|eval| eval.task.as_deref().unwrap_or("passkey")).collect();
    let models: BTreeSet<&str> = evals.iter().map(|eval| eval.model.as_str()).collect();
    let task = Vec::from_iter(tasks).join(", ");
    let panels = evals
        .iter()
        .zip(inputs)
        .map(|(eval, input)| grid(eval, models.len() > 1).with_context(|| input.name.clone()));
    Ok(Heat {
        title: format!("Right answers of {task} by length and depth"),
        subtitle: Vec::from_iter(models.iter().copied()).join(", "),
        x: "length of the prompt (tokens)".into(),
        y: "place in the text (%)".into(),
        panels: panels.collect::<Result<_>>()?,
    })
}

fn grid(eval: &Eval, name_model: bool) -> Result<Grid> {
    let Some(lengths) = &eval.lengths else {
        bail!("has no `lengths`, expected a result of passkey or needle")
    };
    let mut cells: BTreeMap<(u64, u64), (f64, f64)> = BTreeMap::new();
    for Length { length, depths } in lengths {
        for (depth, counts) in depths {
            let depth = depth.parse().ok().filter(|depth| *depth <= 1000);
            let depth = depth.ok_or_else(|| anyhow!("depths: expected thousandths up to 1000"))?;
            cells.insert((depth, *length), *counts);
        }
    }
    let depths: BTreeSet<u64> = cells.keys().map(|(depth, _)| *depth).collect();
    let lengths: BTreeSet<u64> = cells.keys().map(|(_, length)| *length).collect();
    let (right, of) = cells.values().fold((0.0, 0.0), |(right, of), cell| (right + cell.0, of + cell.1));
    let model = if name_model { format!("{}, ", eval.model) } else { String::new() };
    Ok(Grid {
        title: format!("{model}{}: {right} of {of}", eval.cache),
        columns: lengths.iter().map(|length| thousands(*length)).collect(),
        rows: depths.iter().map(|depth| format!("{}", *depth as f64 / 10.0)).collect(),
        cells: depths
            .iter()
            .flat_map(|depth| lengths.iter().map(|length| cells.get(&(*depth, *length)).copied()))
            .collect(),
    })
}
