//! Where, when and by which command results were made.

use kivi_kernels::{Backend, Element};
use serde::Serialize;

use crate::bench::host;

/// What a number is worth nothing without.
#[derive(Clone, Debug, Serialize)]
pub struct Provenance {
    /// Version of kivi.
    pub version: &'static str,
    /// The commit that was built, if it is known.
    pub commit: Option<&'static str>,
    /// When it began, UTC.
    pub date: String,
    /// The command line.
    pub command_line: Vec<String>,
    /// The device.
    pub device: String,
    /// Type of activations.
    pub dtype: &'static str,
    /// The driver, on a GPU.
    pub driver: Option<String>,
    /// The processor.
    pub cpu: String,
    /// Threads that compute, on the CPU.
    pub threads: usize,
}

impl Provenance {
    /// This run, on this machine, now.
    ///
    /// # Errors
    /// The device does not say what it has.
    pub fn new<B: Backend>(backend: &B) -> Result<Self, B::Error> {
        let gpu = backend.memory()?.is_some();
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("KIVI_COMMIT"),
            date: host::date(),
            command_line: host::command_line(),
            device: backend.name().to_owned(),
            dtype: B::Act::DTYPE.name(),
            driver: gpu.then(host::driver).flatten(),
            cpu: host::cpu(),
            threads: rayon::current_num_threads(),
        })
    }
}
