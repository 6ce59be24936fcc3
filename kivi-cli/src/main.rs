//! The command line of kivi: transformer inference with a 2-bit key/value cache.
#![forbid(unsafe_code)]

mod args;
mod batch;
mod chat;
mod commands;
mod eval;
mod failure;
mod format;
mod hash;
#[cfg(feature = "hub")]
mod hub;
mod hub_name;
mod json;
mod memory;
mod model_source;
mod output;
mod policy;
mod prompts;
mod report;
mod settings;
mod setup;
mod sizing;

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use kivi_kernels_ref::Cpu;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command, Device, DeviceArgs, EvalTask};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    log_to_stderr(cli.verbose, cli.quiet);
    // Libraries that panic on damaged files are caught where they are called; what they print meanwhile is noise.
    set_hook(Box::new(|panic| tracing::debug!("{panic}")));
    match catch_unwind(AssertUnwindSafe(|| run(&cli))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => ExitCode::from(failure::report(&error)),
        Err(panic) => failure::fault(panic.as_ref()),
    }
}

/// Runs a command on the backend that it asks for.
fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Inspect(args) => commands::inspect::run(args, cli.quiet),
        Command::Generate(args) => {
            let backend = backend(&args.run.device)?;
            commands::generate::run(&backend, args, cli.quiet)
        }
        Command::Chat(args) => {
            let backend = backend(&args.run.device)?;
            commands::chat::run(&backend, args, cli.quiet)
        }
        Command::Eval(args) => {
            let EvalTask::Passkey(task) = &args.task;
            let backend = backend(&task.device)?;
            commands::eval::run(&backend, &args.task, cli.quiet)
        }
        Command::Perplexity(args) => {
            let backend = backend(&args.device)?;
            commands::perplexity::run(&backend, args, cli.quiet)
        }
    }
}

/// The backend that a command asks for: the only place that knows which there are.
fn backend(args: &DeviceArgs) -> anyhow::Result<Cpu<f32>> {
    match args.device {
        Device::Auto | Device::Cpu => start_threads(args.threads).map(|()| Cpu::new()),
    }
}

/// Starts the threads of the CPU backend. The main thread is one of them: handing each op of a decode step to another
/// thread and waiting for it costs more than many an op.
fn start_threads(n: usize) -> anyhow::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).use_current_thread();
    pool.build_global().context("--threads: cannot be started")
}

/// Sends logs to standard error; `RUST_LOG` wins over the flags.
fn log_to_stderr(verbose: u8, quiet: bool) {
    let level = match verbose {
        _ if quiet => "error",
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    logs.without_time().with_target(false).init();
}
