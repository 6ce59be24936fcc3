//! What a row takes, by part, against what the device says.

use kivi_model::engine::EngineBytes;
use serde::{Deserialize, Serialize};

/// Bytes by part.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Parts {
    /// Weights.
    pub weights: u64,
    /// Pages of the cache.
    pub pages: u64,
    /// Recent tokens in full precision.
    pub rings: u64,
    /// Activations of a step.
    pub workspace: u64,
    /// What the device had given away before the weights came: the driver, its libraries, other programs.
    pub other: u64,
    /// All of these.
    pub sum: u64,
    /// What the device says is in use; `null` where it does not.
    pub device: Option<u64>,
    /// How much more that is than the sum, in percent of the sum.
    pub device_over_sum_percent: Option<f64>,
}

impl Parts {
    /// With nothing said by the device yet.
    pub fn new(weights: u64, other: u64, engine: EngineBytes) -> Self {
        let EngineBytes { activations: workspace, rings, pages } = engine;
        let sum = weights.saturating_add(other).saturating_add(engine.total());
        Self { weights, pages, rings, workspace, other, sum, device: None, device_over_sum_percent: None }
    }

    /// With what the device says.
    pub fn measured(self, device: Option<u64>) -> Self {
        let over = |device: u64| 100.0 * (device as f64 - self.sum as f64) / self.sum as f64;
        Self { device, device_over_sum_percent: device.map(over), ..self }
    }

    /// What the row itself takes, weights included: as others count peak memory.
    pub fn own(&self) -> u64 {
        self.sum.saturating_sub(self.other)
    }
}
