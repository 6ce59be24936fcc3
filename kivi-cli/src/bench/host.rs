//! Where and when a run was, and what was asked for.

use std::fs::read_to_string;

use kivi_kernels::{Backend, Element};
use kivi_kernels_cuda::{devices, jit};
use kivi_model::config::ModelConfig;
use serde::{Deserialize, Serialize};

/// What a number is worth nothing without.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// What wrote the file: `bench`.
    #[serde(skip_deserializing)]
    pub command: &'static str,
    /// Version of kivi.
    pub version: String,
    /// The commit that was built, if it is known.
    pub commit: Option<String>,
    /// When it began, UTC.
    pub date: String,
    /// The command line.
    #[serde(default)]
    pub command_line: Vec<String>,
    /// What was measured.
    pub model: String,
    /// Whether its weights are random.
    pub random_weights: bool,
    /// Its shape.
    pub shape: Shape,
    /// The device.
    pub device: String,
    /// Type of activations.
    pub dtype: String,
    /// Bytes of the device, where it says.
    pub device_bytes: Option<u64>,
    /// The driver, on a GPU.
    pub driver: Option<String>,
    /// The compiler of kernels, on a GPU.
    pub nvrtc: Option<String>,
    /// The processor.
    pub cpu: String,
    /// Threads that compute, on the CPU.
    pub threads: usize,
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
    pub fn new<B: Backend>(
        backend: &B,
        (model, random_weights): (String, bool),
        config: &ModelConfig,
        device_bytes: Option<u64>,
        settings: Settings,
    ) -> Self {
        let gpu = device_bytes.is_some();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("KIVI_COMMIT").map(Into::into),
            date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            command: "bench",
            command_line: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            model,
            random_weights,
            shape: Shape::new(config),
            device: backend.name().to_owned(),
            dtype: B::Act::DTYPE.name().to_owned(),
            device_bytes,
            driver: gpu.then(driver).flatten(),
            nvrtc: if gpu { jit::nvrtc_version().ok().map(|(version, _)| version) } else { None },
            cpu: cpu(),
            threads: rayon::current_num_threads(),
            settings,
        }
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

/// The driver's version, and the CUDA that it supports.
fn driver() -> Option<String> {
    let file = read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let version = file.split_whitespace().find(|word| word.chars().all(|c| c.is_ascii_digit() || c == '.'));
    let cuda = devices().ok()?.into_iter().find_map(Result::ok).map(|info| info.driver)?;
    let cuda = format!("CUDA {cuda}");
    Some(version.map_or(cuda.clone(), |version| format!("{version}, {cuda}")))
}

/// The processor's name.
fn cpu() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |name| name.trim().to_owned())
}
