//! What a bench was of, where and when.

use kivi_kernels::Backend;
use kivi_model::config::ModelConfig;
use serde::{Deserialize, Serialize};

use crate::provenance::Provenance;

/// Where and when it ran, and what was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Where and when it ran.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// What was measured.
    pub model: String,
    /// Whether its weights are random.
    pub random_weights: bool,
    /// Its shape.
    pub shape: Shape,
    /// Bytes of the device, where it says.
    pub device_bytes: Option<u64>,
    /// Settings of the measurement.
    pub settings: Settings,
}

/// Sizes of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // the names of config.json
pub struct Shape {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
}

/// Settings that all rows have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Times that each row is measured.
    pub repetitions: usize,
    /// Whether each is run before, without counting.
    pub warm_up: bool,
    /// Prompt tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Bytes that a row may take.
    pub memory: Option<u64>,
}

impl Host {
    /// This machine, now.
    ///
    /// # Errors
    /// The device does not say what it has.
    pub fn new<B: Backend>(
        backend: &B,
        (model, random_weights): (String, bool),
        config: &ModelConfig,
        settings: Settings,
    ) -> Result<Self, B::Error> {
        Ok(Self {
            provenance: Provenance::new(backend, "bench")?,
            model,
            random_weights,
            shape: Shape::new(config),
            device_bytes: backend.memory()?.map(|memory| memory.total as u64),
            settings,
        })
    }
}

impl Shape {
    fn new(c: &ModelConfig) -> Self {
        Self {
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.n_layers,
            num_attention_heads: c.n_heads,
            num_key_value_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            vocab_size: c.vocab_size,
            max_position_embeddings: c.max_position_embeddings,
        }
    }
}
