//! The command line of kivi: transformer inference with a 2-bit key/value cache.
#![forbid(unsafe_code)]

mod ablate;
mod args;
mod batch;
mod bench;
mod budget;
mod chat;
mod commands;
mod device;
mod eval;
mod failure;
mod format;
mod hash;
#[cfg(feature = "hub")]
mod hub;
mod hub_name;
mod json;
mod magnitudes;
mod memory;
mod model_source;
mod output;
mod plot;
mod policy;
mod prompts;
mod provenance;
mod report;
mod settings;
mod setup;
mod sizing;

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;

use clap::Parser;
use kivi_kernels::Backend;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};
use crate::device::Chosen;

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

/// Runs a command, on the backend that it asks for if it computes.
fn run(cli: &Cli) -> anyhow::Result<()> {
    let Some((device, model)) = cli.command.computes() else {
        return without_backend(&cli.command, cli.quiet);
    };
    match device::choose(device, model, !cli.quiet)? {
        Chosen::Cpu(backend) => on(&backend, &cli.command, cli.quiet),
        Chosen::CudaF16(backend) => on(&backend, &cli.command, cli.quiet),
        Chosen::CudaBf16(backend) => on(&backend, &cli.command, cli.quiet),
    }
}

fn on<B: Backend>(backend: &B, command: &Command, quiet: bool) -> anyhow::Result<()> {
    match command {
        Command::Generate(args) => commands::generate::run(backend, args, quiet),
        Command::Chat(args) => commands::chat::run(backend, args, quiet),
        Command::Eval(args) => commands::eval::run(backend, &args.task, quiet),
        Command::Bench(args) => commands::bench::run(backend, args, quiet),
        Command::Perplexity(args) => commands::perplexity::run(backend, args, quiet),
        Command::Ablate(args) => commands::ablate::run(backend, args, quiet),
        Command::Inspect(args) => commands::inspect_kv::run(backend, args, quiet),
        command => without_backend(command, quiet),
    }
}

fn without_backend(command: &Command, quiet: bool) -> anyhow::Result<()> {
    match command {
        Command::Inspect(args) => commands::inspect::run(args, quiet),
        Command::Plot(args) => commands::plot::run(args),
        Command::Devices(args) => commands::devices::run(args),
        _ => Ok(()),
    }
}

/// Sends logs to standard error; `RUST_LOG` wins over the flags.
fn log_to_stderr(verbose: u8, quiet: bool) {
    let level = match verbose {
        _ if quiet => "error",
        0 => "warn,kivi_kernels_cuda::jit=info", // what a first run takes its time for
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    logs.without_time().with_target(false).init();
}
