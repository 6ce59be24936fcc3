//! Development tasks of kivi: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod bench_kernels;
mod ci;
mod device;
mod golden;
mod report;
mod test_kernels;
mod test_model;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// Development tasks of kivi.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Task {
    /// Time the CUDA kernels
    BenchKernels(bench_kernels::Args),
    /// Run everything that CI runs
    Ci,
    /// Remake the golden files of kivi-model with Hugging Face transformers
    Golden(golden::Args),
    /// Write the tables of docs/*.md from the results in docs/results
    Report(report::Args),
    /// Compare a backend with the oracle, case by case, or compile its kernels
    TestKernels(test_kernels::Args),
    /// Compare a whole model on CUDA with the CPU, prediction by prediction
    TestModel(test_model::Args),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::BenchKernels(args) => bench_kernels::run(&args),
        Task::Ci => ci::run(),
        Task::Golden(args) => golden::run(&args),
        Task::Report(args) => report::run(&args),
        Task::TestKernels(args) => test_kernels::run(&args),
        Task::TestModel(args) => test_model::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}
