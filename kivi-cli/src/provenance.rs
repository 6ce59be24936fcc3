//! Where, when and by which command results were made.

use std::fs::read_to_string;
use std::path::Path;

use kivi_kernels::{Backend, Element};
use kivi_kernels_cuda::{devices, jit};
use serde::{Deserialize, Serialize};

/// What a number is worth nothing without.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provenance {
    /// The subcommand.
    pub command: String,
    /// Version of kivi.
    pub version: String,
    /// The commit that was built, if it is known.
    pub commit: Option<String>,
    /// When it began, UTC.
    pub date: String,
    /// What was typed, the program without its directory.
    pub command_line: Vec<String>,
    /// The device.
    pub device: String,
    /// Type of activations.
    pub dtype: String,
    /// The driver, on a GPU.
    pub driver: Option<String>,
    /// The compiler of kernels, on a GPU.
    pub nvrtc: Option<String>,
    /// The processor.
    pub cpu: String,
    /// Threads that compute, on the CPU.
    pub threads: usize,
}

impl Provenance {
    /// This run of a subcommand, on this machine, now.
    ///
    /// # Errors
    /// The device does not say what it has.
    pub fn new<B: Backend>(backend: &B, command: &str) -> Result<Self, B::Error> {
        let gpu = backend.memory()?.is_some();
        Ok(Self {
            command: command.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("KIVI_COMMIT").map(Into::into),
            date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            command_line: command_line(),
            device: backend.name().to_owned(),
            dtype: B::Act::DTYPE.name().to_owned(),
            driver: gpu.then(driver).flatten(),
            nvrtc: if gpu { jit::nvrtc_version().ok().map(|(version, _)| version) } else { None },
            cpu: cpu(),
            threads: rayon::current_num_threads(),
        })
    }
}

impl Provenance {
    /// What reports call the device.
    pub fn device_and_dtype(&self) -> String {
        format!("{} ({})", self.device, self.dtype)
    }
}

/// What was typed.
fn command_line() -> Vec<String> {
    let mut words: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if let Some(program) = words.first_mut() {
        *program = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
    words
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
