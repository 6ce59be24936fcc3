//! The fields of `config.json` about the rotary embedding, in both spellings.

use super::{MAX_POSITIONS, unsupported};
use crate::error::{LoadError, clean};
use crate::json::Fields;
use crate::rope::{Llama3, RopeConfig, RopeScaling, Yarn};

/// Largest factor of any kind that is accepted.
const MAX_FACTOR: f64 = 1e6;

/// The rotary embedding, from `rope_theta` and `rope_scaling`, or from `rope_parameters`.
pub(super) fn rope(
    f: &Fields,
    max_position_embeddings: usize,
    head_dim: usize,
) -> Result<RopeConfig, LoadError> {
    let old = f.object("rope_scaling")?.filter(|scaling| scaling.iter().next().is_some());
    let parameters = match old {
        Some(scaling) => Some(scaling),
        None => f.object("rope_parameters")?,
    };
    // The series needs a base above 1: its logarithm is a divisor in YaRN.
    let theta_range = 1.0 + f64::from(f32::EPSILON)..=1e15;
    let outer = f.number("rope_theta", theta_range.clone())?;
    let Some(p) = parameters else {
        return Ok(RopeConfig { theta: outer.unwrap_or(10_000.0), scaling: RopeScaling::Default });
    };
    for (field, value) in p.iter() {
        match field {
            "partial_rotary_factor" if value.as_f64() != Some(1.0) => {
                return Err(unsupported(&p, field, value, "rotation of part of a head"));
            }
            "mrope_section" => return Err(unsupported(&p, field, value, "positions with several axes")),
            _ if value.is_object() => return Err(unsupported(&p, field, value, "rope by kind of layer")),
            _ => {}
        }
    }
    let theta = p.number("rope_theta", theta_range)?.or(outer).unwrap_or(10_000.0);
    let trained = trained_len(f, &p, max_position_embeddings)?;
    Ok(RopeConfig { theta, scaling: scaling(&p, max_position_embeddings, trained, head_dim)? })
}

/// `original_max_position_embeddings`; the outer field wins, as in transformers.
fn trained_len(f: &Fields, p: &Fields, max_position_embeddings: usize) -> Result<usize, LoadError> {
    const FIELD: &str = "original_max_position_embeddings";
    let outer = f.integer(FIELD, 1..=MAX_POSITIONS)?;
    Ok(outer.or(p.integer(FIELD, 1..=MAX_POSITIONS)?).unwrap_or(max_position_embeddings))
}

fn scaling(p: &Fields, max_len: usize, trained: usize, head_dim: usize) -> Result<RopeScaling, LoadError> {
    let field = if p.get("rope_type").is_some() { "rope_type" } else { "type" };
    let factor = || positive(p, "factor")?.ok_or_else(|| p.error("factor", "a number above 0"));
    Ok(match p.string(field)?.unwrap_or("default") {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" if head_dim < 4 => return Err(p.error(field, "another type where head_dim is 2")),
        "dynamic" => RopeScaling::Dynamic { factor: factor()?, max_position_embeddings: max_len },
        "yarn" => RopeScaling::Yarn(yarn(p, max_len, trained)?),
        "llama3" => RopeScaling::Llama3(llama3(p, factor()?, trained)?),
        other => {
            return Err(LoadError::UnknownRopeType {
                file: p.file().into(),
                field: p.name(field),
                found: clean(other),
                known: "default, linear, dynamic, yarn, llama3".into(),
            });
        }
    })
}

/// A finite number above zero, or nothing.
fn positive(p: &Fields, field: &str) -> Result<Option<f64>, LoadError> {
    p.number(field, 1e-6..=MAX_FACTOR)
}

fn yarn(p: &Fields, max_len: usize, trained: usize) -> Result<Yarn, LoadError> {
    let factor = positive(p, "factor")?.unwrap_or(max_len as f64 / trained as f64);
    let mscale = p.number("mscale", 0.0..=MAX_FACTOR)?;
    let mscale_all_dim = p.number("mscale_all_dim", 0.0..=MAX_FACTOR)?;
    let suggested = Yarn::default_attention_factor(factor, mscale, mscale_all_dim);
    // A beta of 0 means the default, as in transformers.
    let beta = |field, default| {
        Ok::<f64, LoadError>(p.number(field, 0.0..=MAX_FACTOR)?.filter(|b| *b != 0.0).unwrap_or(default))
    };
    Ok(Yarn {
        factor,
        original_max_position_embeddings: trained,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        attention_factor: p.number("attention_factor", 0.0..=MAX_FACTOR)?.unwrap_or(suggested),
        truncate: p.boolean("truncate")?.unwrap_or(true),
    })
}

fn llama3(p: &Fields, factor: f64, trained: usize) -> Result<Llama3, LoadError> {
    let required = |field| positive(p, field)?.ok_or_else(|| p.error(field, "a number above 0"));
    let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
    if high <= low {
        return Err(p.error("high_freq_factor", format!("a number above low_freq_factor ({low})")));
    }
    Ok(Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: trained,
    })
}
