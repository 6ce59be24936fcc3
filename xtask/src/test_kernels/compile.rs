//! `cargo xtask test-kernels --compile-only`: every kernel through NVRTC, on a machine without a GPU.

use std::time::Instant;

use anyhow::{Result, ensure};
use kivi_kernels_cuda::CudaError;
use kivi_kernels_cuda::jit::{ARCHS, Compiled, Toolkit, compile_only};
use serde_json::{Value, json};

/// What came out for one architecture.
struct Outcome {
    arch: String,
    seconds: f64,
    /// What the compiler says where something does not compile.
    compiled: Result<Vec<Compiled>, String>,
}

/// Compiles for each of `archs`, also after one that failed; for none, for all that are supported, which take turns.
pub fn run(archs: &[String], json: bool) -> Result<()> {
    let all = ARCHS.iter().enumerate().map(|(turn, &arch)| (arch, Some(turn)));
    let some = archs.iter().map(|arch| (arch.as_str(), None));
    let archs: Vec<(&str, Option<usize>)> = if archs.is_empty() { all.collect() } else { some.collect() };
    let nvrtc = Toolkit::find()?.library.display().to_string();
    if !json {
        println!("{nvrtc}\n{:<8} {:>7} {:>7} {:>9} {:>7}", "arch", "sources", "modules", "bytes", "seconds");
    }
    let mut outcomes = Vec::new();
    for (arch, turn) in archs {
        let outcome = compile(arch, turn)?;
        if !json {
            println!("{}", outcome.line());
        }
        outcomes.push(outcome);
    }
    if json {
        let archs: Vec<Value> = outcomes.iter().map(Outcome::to_json).collect();
        println!("{:#}", json!({ "nvrtc": nvrtc, "archs": archs }));
    }
    let failed = outcomes.iter().filter(|outcome| outcome.compiled.is_err());
    let failed: Vec<&str> = failed.map(|outcome| outcome.arch.as_str()).collect();
    ensure!(failed.is_empty(), "kernels do not compile for {}", failed.join(", "));
    Ok(())
}

/// An error is one that the next architecture would meet, too.
fn compile(arch: &str, turn: Option<usize>) -> Result<Outcome, CudaError> {
    let start = Instant::now();
    let compiled = match compile_only(arch, turn) {
        Ok(compiled) => Ok(compiled),
        Err(error @ CudaError::Compile { .. }) => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    Ok(Outcome { arch: arch.to_owned(), seconds: start.elapsed().as_secs_f64(), compiled })
}

impl Outcome {
    fn line(&self) -> String {
        let Self { arch, seconds, compiled } = self;
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(log) => return format!("{arch:<8} FAILED: {log}"),
        };
        let mut files: Vec<&str> = compiled.iter().map(|module| module.file).collect();
        files.sort_unstable();
        files.dedup();
        let bytes: usize = compiled.iter().map(|module| module.bytes).sum();
        format!("{arch:<8} {:>7} {:>7} {bytes:>9} {seconds:>7.1}", files.len(), compiled.len())
    }

    fn to_json(&self) -> Value {
        let module =
            |module: &Compiled| json!({ "file": module.file, "act": module.act, "bytes": module.bytes });
        let modules = self.compiled.as_ref().map(|modules| modules.iter().map(module).collect::<Vec<_>>());
        json!({
            "arch": self.arch,
            "seconds": self.seconds,
            "modules": modules.as_ref().ok(),
            "error": modules.err(),
        })
    }
}
