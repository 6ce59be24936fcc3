//! Which layer keeps its cache how. The paper has one setting for all; what differs from that is off by default.

use std::collections::BTreeMap;

use kivi_quant::KiviConfig;

/// The settings of the cache of each layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachePolicy {
    base: KiviConfig,
    layers: BTreeMap<usize, KiviConfig>,
}

impl CachePolicy {
    /// The same policy with other settings for layer `index`.
    #[must_use]
    pub fn with_layer(mut self, index: usize, config: KiviConfig) -> Self {
        self.layers.insert(index, config);
        self
    }

    /// The settings of the layers that have no others.
    pub fn base(&self) -> &KiviConfig {
        &self.base
    }

    /// The settings of layer `index`.
    pub fn layer(&self, index: usize) -> &KiviConfig {
        self.layers.get(&index).unwrap_or(&self.base)
    }

    /// The layers that have settings of their own, with these.
    pub fn overrides(&self) -> impl Iterator<Item = (usize, &KiviConfig)> {
        self.layers.iter().map(|(index, config)| (*index, config)).filter(|(_, config)| **config != self.base)
    }

    /// The settings of `n_layers` layers, in order.
    pub fn layers(&self, n_layers: usize) -> Vec<KiviConfig> {
        (0..n_layers).map(|index| *self.layer(index)).collect()
    }
}

impl From<KiviConfig> for CachePolicy {
    /// The same settings for every layer.
    fn from(base: KiviConfig) -> Self {
        Self { base, layers: BTreeMap::new() }
    }
}
