//! Pictures of results: from JSON to a figure, a file a kind; from a figure to shapes, a file a form; from shapes to SVG or PNG.

mod ablate;
mod axis;
mod bars;
pub mod drawing;
mod frame;
mod grid;
mod heat;
pub mod input;
mod kld;
mod kv;
mod lines;
mod memory;
mod rows;
mod step_time;
mod style;
mod surface;
#[cfg(test)]
mod tests;
mod throughput;

use anyhow::{Context, Result, bail};

use crate::args::PlotKind;
use crate::failure::Usage;
use drawing::Drawing;
use input::Input;

/// The kinds that results of a command can be drawn as.
fn kinds(command: &str) -> &'static [PlotKind] {
    match command {
        "bench" => {
            &[PlotKind::MemoryContext, PlotKind::MemoryBatch, PlotKind::ThroughputBatch, PlotKind::StepTime]
        }
        "inspect" => &[PlotKind::MemoryContext],
        "perplexity" => &[PlotKind::KldPosition],
        "eval" => &[PlotKind::Heat],
        "ablate" => &[PlotKind::AblateKld, PlotKind::AblatePerplexity],
        "inspect --kv" => &[PlotKind::KvMagnitudes],
        _ => &[],
    }
}

/// The kinds that show something of these results: all that their command has, less those whose axis has one point.
///
/// # Errors
/// The results are of several commands, or of one that is not drawn.
pub fn applicable(inputs: &[Input]) -> Result<Vec<PlotKind>> {
    let Some(first) = inputs.first() else { bail!("no results were given") };
    if let Some(other) = inputs.iter().find(|input| input.command != first.command) {
        bail!(
            "{}: is of `{}`, expected one of `{}` as {}; plot them one after the other",
            other.name,
            other.command,
            first.command,
            first.name
        );
    }
    let all = kinds(&first.command);
    if all.is_empty() {
        bail!(
            "{}: is of `{}`, expected a result of bench, inspect, perplexity, eval or ablate",
            first.name,
            first.command
        );
    }
    if first.command != "bench" {
        return Ok(all.to_vec());
    }
    let rows = input::bench(inputs)?.rows;
    let shows = |kind: &&PlotKind| match kind {
        PlotKind::MemoryContext => memory::has_several(&rows, memory::Against::Context),
        PlotKind::MemoryBatch => memory::has_several(&rows, memory::Against::Batch),
        PlotKind::ThroughputBatch => throughput::has_several(&rows),
        PlotKind::StepTime => step_time::has_several(&rows),
        _ => true,
    };
    let several: Vec<PlotKind> = all.iter().filter(shows).copied().collect();
    Ok(if several.is_empty() { all.to_vec() } else { several })
}

/// The one kind to draw: that which is asked for, or the only one.
///
/// # Errors
/// The results have no such kind, or several and none is asked for.
pub fn choose(inputs: &[Input], asked: Option<PlotKind>) -> Result<PlotKind> {
    let applicable = applicable(inputs)?;
    let list = |kinds: &[PlotKind]| kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let first = &inputs[0];
    match (asked, &applicable[..]) {
        (Some(kind), _) if kinds(&first.command).contains(&kind) => Ok(kind),
        (Some(kind), _) => {
            let expected = list(kinds(&first.command));
            Err(Usage(format!("--kind: expected {expected} for {}, found {kind}", first.name)).into())
        }
        (None, [only]) => Ok(*only),
        (None, several) => {
            let found = list(several);
            Err(Usage(format!(
                "--kind: expected one of {found} for {}; or give a directory to -o",
                first.name
            ))
            .into())
        }
    }
}

/// The picture of some results.
///
/// # Errors
/// They lack what the kind shows, or it cannot be drawn.
pub fn draw(kind: PlotKind, inputs: &[Input]) -> Result<Drawing> {
    style::load_font()?;
    let drawn = match kind {
        PlotKind::MemoryContext => memory::against(inputs, memory::Against::Context).and_then(|f| f.draw()),
        PlotKind::MemoryBatch => memory::against(inputs, memory::Against::Batch).and_then(|f| f.draw()),
        PlotKind::ThroughputBatch => throughput::figure(inputs).and_then(|f| f.draw()),
        PlotKind::StepTime => step_time::figure(inputs).and_then(|f| f.draw()),
        PlotKind::Heat => grid::figure(inputs).and_then(|f| f.draw()),
        PlotKind::KldPosition => kld::figure(inputs).and_then(|f| f.draw()),
        PlotKind::AblateKld => ablate::figure(inputs, ablate::Measure::Kld).and_then(|f| f.draw()),
        PlotKind::AblatePerplexity => {
            ablate::figure(inputs, ablate::Measure::Perplexity).and_then(|f| f.draw())
        }
        PlotKind::KvMagnitudes => kv::figure(inputs).and_then(|f| f.draw()),
    };
    drawn.with_context(|| input::names(inputs))
}
