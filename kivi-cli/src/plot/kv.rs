//! Magnitudes of keys and values, from `inspect --kv`.

use anyhow::{Result, bail};
use serde::Deserialize;

use super::input::{self, Input};
use super::kld::file_name;
use super::surface::{Surface, Surfaces};
use crate::format::thousands;

/// What `inspect --kv` says, as far as it is drawn.
#[derive(Deserialize)]
struct Report {
    model: String,
    prompt: String,
    prompt_tokens: u64,
    head: usize,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    layer: usize,
    tokens: Vec<usize>,
    key: Side,
    value: Side,
}

#[derive(Deserialize)]
struct Side {
    magnitudes: Vec<Vec<f64>>,
}

/// The figure: keys and values of each layer.
///
/// # Errors
/// There are several results, or one lacks something.
pub fn figure(inputs: &[Input]) -> Result<Surfaces> {
    let report: Report = input::only(inputs)?.parse()?;
    let mut panels = Vec::new();
    for layer in &report.layers {
        let (Some(first), Some(last)) = (layer.tokens.first(), layer.tokens.last()) else {
            bail!("layer {}: has no tokens", layer.layer)
        };
        for (name, side) in [("keys", &layer.key), ("values", &layer.value)] {
            let channels = side.magnitudes.first().map_or(0, Vec::len);
            if side.magnitudes.len() != layer.tokens.len()
                || side.magnitudes.iter().any(|row| row.len() != channels)
            {
                bail!(
                    "layer {}: expected {name} of {} tokens, all of as many channels",
                    layer.layer,
                    layer.tokens.len()
                );
            }
            panels.push(Surface {
                title: format!("layer {}: {name}", layer.layer),
                tokens: (*first, *last),
                values: side.magnitudes.clone(),
            });
        }
    }
    Ok(Surfaces {
        title: format!("Magnitudes of keys and values, KV head {}", report.head),
        subtitle: format!("{}, {} tokens of {}", report.model, thousands(report.prompt_tokens), file_name(&report.prompt)),
        panels,
        note: "Keys are rotated (RoPE). A ridge is a channel; the lighter it is, the larger is its mean. Where there are more tokens \
               than points, neighbours are averaged; of more channels than ridges, the larger are shown."
            .into(),
    })
}
