//! What a saved cache says about itself: the model and the settings that it belongs to.

use std::collections::HashMap;

use kivi_quant::{Bits, ConfigError, GroupSize, KiviConfig, KvDtype};
use serde::{Deserialize, Serialize};

use super::{FORMAT, VERSION};

/// The model and the settings of each layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    /// The model's fingerprint.
    pub model: String,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// Settings and window of each layer.
    pub layers: Vec<(KiviConfig, Option<usize>)>,
}

/// A saved cache is not one of this engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Other weights or another configuration.
    #[error("the cache was saved with another model; load the model that it was saved with")]
    Model,
    /// Other settings of the cache.
    #[error(
        "layer {layer}: the cache was saved with {found}, this run has {expected}; use the settings that it was saved with"
    )]
    Settings {
        /// The first layer that differs.
        layer: usize,
        /// The settings of this engine.
        expected: String,
        /// Those of the file.
        found: String,
    },
    /// The arrays do not have the lengths that follow from the tokens.
    #[error("the cache has tokens or arrays that its settings do not allow; save it again")]
    Arrays,
}

/// A layer as the file describes it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    k_bits: u32,
    v_bits: u32,
    group_size: usize,
    residual_length: usize,
    page_tokens: usize,
    kv_dtype: String,
    sink_tokens: usize,
    window: Option<usize>,
    left: usize,
}

impl Header {
    /// Fails unless a cache with this header is one of an engine with the header `engine`.
    pub fn check(&self, engine: &Header) -> Result<(), Mismatch> {
        let size = |header: &Header| (header.n_kv_heads, header.head_dim, header.layers.len());
        if self.model != engine.model || size(self) != size(engine) {
            return Err(Mismatch::Model);
        }
        for (layer, (found, expected)) in self.layers.iter().zip(&engine.layers).enumerate() {
            if found != expected {
                let [found, expected] = [found, expected].map(describe);
                return Err(Mismatch::Settings { layer, expected, found });
            }
        }
        Ok(())
    }

    /// The metadata of the file, but the checksum; `left` are the pages of each layer that left its window.
    pub fn metadata(&self, left: impl Iterator<Item = usize>) -> HashMap<String, String> {
        let layers = self.layers.iter().zip(left);
        let layers: Vec<_> =
            layers.map(|((config, window), left)| Layer::new(config, *window, left)).collect();
        let pairs = [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("model", self.model.clone()),
            ("n_kv_heads", self.n_kv_heads.to_string()),
            ("head_dim", self.head_dim.to_string()),
            ("layers", serde_json::to_string(&layers).unwrap_or_default()),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The header that the metadata of a file has, and the pages of each layer that left its window.
    pub fn parse(metadata: &HashMap<String, String>) -> Result<(Header, Vec<usize>), String> {
        let text = |key: &str| metadata.get(key).ok_or_else(|| format!("it has no {key}"));
        let number = |key: &str| text(key)?.parse().map_err(|_| format!("{key} is not a number"));
        let layers: Vec<Layer> =
            serde_json::from_str(text("layers")?).map_err(|error| format!("layers: {error}"))?;
        let configs = layers.iter().map(|layer| Ok((layer.config()?, layer.window)));
        let header = Header {
            model: text("model")?.clone(),
            n_kv_heads: number("n_kv_heads")?,
            head_dim: number("head_dim")?,
            layers: configs.collect::<Result<_, String>>()?,
        };
        Ok((header, layers.iter().map(|layer| layer.left).collect()))
    }
}

impl Layer {
    fn new(config: &KiviConfig, window: Option<usize>, left: usize) -> Self {
        Self {
            k_bits: config.k_bits().get(),
            v_bits: config.v_bits().get(),
            group_size: config.group_size(),
            residual_length: config.residual_length(),
            page_tokens: config.page_tokens(),
            kv_dtype: config.kv_dtype().to_string(),
            sink_tokens: config.sink_tokens(),
            window,
            left,
        }
    }

    fn config(&self) -> Result<KiviConfig, String> {
        let dtype = KvDtype::ALL.into_iter().find(|dtype| dtype.to_string() == self.kv_dtype);
        let dtype = dtype.ok_or("layers: kv_dtype is unknown")?;
        let valid = || {
            let (k_bits, v_bits) = (Bits::try_from(self.k_bits)?, Bits::try_from(self.v_bits)?);
            let group_size = GroupSize::try_from(self.group_size)?;
            let config = KiviConfig::new(k_bits, v_bits, group_size, self.residual_length)?;
            config.with_page_tokens(self.page_tokens)?.with_sink_tokens(self.sink_tokens)
        };
        valid().map(|config| config.with_kv_dtype(dtype)).map_err(|error: ConfigError| error.to_string())
    }
}

fn describe((config, window): &(KiviConfig, Option<usize>)) -> String {
    let window = window.map_or(String::new(), |window| format!(" window {window}"));
    format!("{config}{window}")
}
