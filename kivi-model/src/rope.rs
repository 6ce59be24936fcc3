//! Frequencies of the rotary position embedding, with every scaling that Llama checkpoints use.
//!
//! The order of rounding is that of Hugging Face transformers (`modeling_rope_utils.py`, 5.x), which
//! computes in f32 on tensors and in f64 on scalars: long contexts multiply an error of a frequency
//! by the position, so "close" would not give the same text.

use std::f64::consts::PI;

/// The rotary embedding of a model: base, and how it is stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the geometric series of wavelengths.
    pub theta: f64,
    /// How frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// How the frequencies `theta^(-2i/d)` are changed for contexts longer than the trained one.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Position interpolation: all frequencies divided by `factor` (arXiv 2306.15595).
    Linear {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// Dynamic NTK: `theta` grows with the sequence once that is longer than the trained context.
    Dynamic {
        /// How strongly.
        factor: f64,
        /// The trained context in tokens.
        max_position_embeddings: usize,
    },
    /// YaRN: low frequencies interpolated, high ones kept, a ramp between (arXiv 2309.00071).
    Yarn(Yarn),
    /// Llama 3.1: as YaRN in spirit, with a ramp over wavelengths.
    Llama3(Llama3),
}

/// Parameters of [`RopeScaling::Yarn`].
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How much longer the context becomes.
    pub factor: f64,
    /// The trained context in tokens.
    pub original_max_position_embeddings: usize,
    /// Rotations within the trained context above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations within the trained context below which a frequency is interpolated.
    pub beta_slow: f64,
    /// Factor on cosine and sine; computed from `factor` when the checkpoint does not give it.
    pub attention_factor: f64,
    /// Whether the ends of the ramp are rounded to whole dimensions.
    pub truncate: bool,
}

/// Parameters of [`RopeScaling::Llama3`].
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3 {
    /// How much longer the context becomes.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are interpolated.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// The trained context in tokens.
    pub original_max_position_embeddings: usize,
}

impl RopeConfig {
    /// Whether the frequencies depend on the length of the sequence.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. })
    }

    /// Angular frequencies in radians per token, one for each pair of channels.
    ///
    /// `seq_len` is the length of the sequence including the new tokens; it matters only if
    /// [`RopeConfig::is_dynamic`].
    ///
    /// # Shapes
    /// `[head_dim / 2]`
    ///
    /// # Equation
    /// `inv_freq[i] = theta^(-2i / head_dim)` (arXiv 2104.09864), then the scaling.
    pub fn inv_freq(&self, head_dim: usize, seq_len: usize) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::Default => unscaled(self.theta as f32, head_dim),
            RopeScaling::Linear { factor } => {
                let factor = *factor as f32;
                unscaled(self.theta as f32, head_dim).into_iter().map(|f| f / factor).collect()
            }
            RopeScaling::Dynamic { factor, max_position_embeddings } => unscaled(
                dynamic_theta(self.theta, *factor, *max_position_embeddings, head_dim, seq_len),
                head_dim,
            ),
            RopeScaling::Yarn(yarn) => yarn.inv_freq(self.theta, head_dim),
            RopeScaling::Llama3(llama3) => {
                unscaled(self.theta as f32, head_dim).into_iter().map(|f| llama3.scale(f)).collect()
            }
        }
    }

    /// The factor on cosine and sine; 1 unless the scaling is YaRN.
    pub fn attention_scaling(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
            _ => 1.0,
        }
    }
}

/// `theta^(2i / d)`, correctly rounded: computed in f64 from the f32 operands.
fn wavelengths(theta: f32, head_dim: usize) -> impl Iterator<Item = f32> {
    (0..head_dim / 2).map(move |i| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        f64::from(theta).powf(f64::from(exponent)) as f32
    })
}

/// `theta^(-2i / d)`.
fn unscaled(theta: f32, head_dim: usize) -> Vec<f32> {
    wavelengths(theta, head_dim).map(|w| 1.0 / w).collect()
}

/// The base of dynamic NTK: `theta * (factor * n / max - (factor - 1))^(d / (d - 2))`.
///
/// Up to the trained context the bracket is 1. Beyond it, transformers holds the length in a tensor,
/// so that the bracket and its power are rounded to f32.
fn dynamic_theta(theta: f64, factor: f64, max_len: usize, head_dim: usize, seq_len: usize) -> f32 {
    let exponent = head_dim as f64 / (head_dim as f64 - 2.0);
    if seq_len <= max_len {
        let bracket = factor * max_len as f64 / max_len as f64 - (factor - 1.0);
        return (theta * bracket.powf(exponent)) as f32;
    }
    let bracket = factor as f32 * seq_len as f32 / max_len as f32 - (factor - 1.0) as f32;
    let power = f64::from(bracket).powf(exponent) as f32;
    theta as f32 * power
}

impl Yarn {
    /// The attention factor that the YaRN paper suggests, with DeepSeek's `mscale` fields.
    pub fn default_attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
        let scaled = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        match (mscale.filter(|m| *m != 0.0), mscale_all_dim.filter(|m| *m != 0.0)) {
            (Some(numerator), Some(denominator)) => scaled(numerator) / scaled(denominator),
            _ => scaled(1.0),
        }
    }

    /// Interpolated and kept frequencies, mixed by the ramp.
    fn inv_freq(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let (low, high) = self.ramp_ends(theta, head_dim);
        let width = (if low == high { high + 0.001 } else { high } - low) as f32;
        let mix = |(i, wavelength): (usize, f32)| {
            let kept = 1.0 - ((i as f32 - low as f32) / width).clamp(0.0, 1.0);
            let interpolated = 1.0 / (self.factor as f32 * wavelength);
            interpolated * (1.0 - kept) + 1.0 / wavelength * kept
        };
        wavelengths(theta as f32, head_dim).enumerate().map(mix).collect()
    }

    /// The pairs of channels between which the ramp goes from kept (first) to interpolated (second).
    fn ramp_ends(&self, theta: f64, head_dim: usize) -> (f64, f64) {
        let trained = self.original_max_position_embeddings as f64;
        let pair =
            |rotations: f64| head_dim as f64 * (trained / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low.max(0.0), high.min(head_dim as f64 - 1.0))
    }
}

impl Llama3 {
    /// One frequency: kept, interpolated, or between. `r * (1 / x)` and not `r / x` is as torch
    /// evaluates a number divided by a tensor.
    fn scale(&self, inv_freq: f32) -> f32 {
        let trained = self.original_max_position_embeddings as f64;
        let (factor, low, high) = (self.factor as f32, self.low_freq_factor, self.high_freq_factor);
        let wavelength = (1.0 / inv_freq) * (2.0 * PI) as f32;
        if wavelength > (trained / low) as f32 {
            return inv_freq / factor;
        }
        if wavelength < (trained / high) as f32 {
            return inv_freq;
        }
        let smooth = ((1.0 / wavelength) * trained as f32 - low as f32) / (high - low) as f32;
        (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
    }
}
