//! The settings of `ablate` beside each other.

use anyhow::{Result, bail};
use serde::Deserialize;

use super::bars::{Bar, Bars};
use super::input::{self, Input};

/// What the bars show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Mean divergence from 16 bits.
    Kld,
    /// Perplexity over that of 16 bits.
    Perplexity,
}

/// What `ablate` says, as far as it is drawn.
#[derive(Deserialize)]
struct Report {
    model: Option<String>,
    settings: Vec<Setting>,
}

#[derive(Deserialize)]
struct Setting {
    name: String,
    perplexity: Option<f64>,
    perplexity_error: Option<f64>,
    mean_kld: Option<f64>,
    mean_kld_error: Option<f64>,
}

/// The figure: a bar a setting but the first, which the others are compared with.
///
/// # Errors
/// There are several results, or one lacks something.
pub fn figure(inputs: &[Input], measure: Measure) -> Result<Bars> {
    let report: Report = input::only(inputs)?.parse()?;
    let Some((first, others)) = report.settings.split_first().filter(|(_, others)| !others.is_empty()) else {
        bail!("expected at least 2 settings, found {}", report.settings.len())
    };
    let bars = others.iter().map(|setting| bar(setting, first, measure)).collect::<Result<_>>()?;
    let (title, axis) = match measure {
        Measure::Kld => ("Divergence by setting of the cache", "mean KL divergence (nats)"),
        Measure::Perplexity => {
            ("Perplexity by setting of the cache", "perplexity over that of the first setting (%)")
        }
    };
    Ok(Bars {
        title: title.into(),
        subtitle: report.model.unwrap_or_default(),
        axis: axis.into(),
        bars,
        note: format!("Compared with: {}. Whiskers are standard errors.", first.name),
    })
}

fn bar(setting: &Setting, first: &Setting, measure: Measure) -> Result<Bar> {
    let name = setting.name.clone();
    let (value, error, text) = match measure {
        Measure::Kld => {
            let Some(value) = setting.mean_kld else { bail!("{name}: has no `mean_kld`") };
            (value, setting.mean_kld_error.unwrap_or(0.0), format!("{value:.4}"))
        }
        Measure::Perplexity => {
            let (Some(own), Some(base)) = (setting.perplexity, first.perplexity) else {
                bail!("{name}: has no `perplexity`, or the first setting has none")
            };
            let value = 100.0 * (own / base - 1.0);
            (value, 100.0 * setting.perplexity_error.unwrap_or(0.0) / base, format!("{value:+.1} %"))
        }
    };
    Ok(Bar { name, value, error: error.abs(), text })
}
