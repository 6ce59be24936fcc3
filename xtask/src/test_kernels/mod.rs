//! `cargo xtask test-kernels`: the conformance suite as a table. Needs neither cargo nor the repository at run time: the binary
//! can be copied to a machine with a GPU.

mod compile;
pub(crate) mod emulate;
mod report;
mod sanitize;
mod workers;

use anyhow::{Context, Result, ensure};
use half::{bf16, f16};
use kivi_kernels::Backend;
use kivi_kernels_cuda::Cuda;
use kivi_kernels_ref::Cpu;
use kivi_kernels_ref::conformance::{self, Report, Verdict};

use crate::device::{Act, Device};
use report::Counts;
use sanitize::Tool;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the kernels run: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// Type of activations on CUDA [default: one after the other]
    #[arg(long, value_name = "TYPE")]
    act: Option<Act>,
    /// Cases of this op only, by the name of its method in `Backend`
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    op: String,
    /// Random cases of each op, besides those made by hand
    #[arg(long, value_name = "N", default_value_t = 32)]
    random: u32,
    /// Threads that run cases, each with its own backend [default: one a core, at most 16; 1 on the emulator and under --sanitize]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), conflicts_with_all = ["sanitize", "emulate"])]
    jobs: Option<u16>,
    /// Print one JSON object with every case instead of the table
    #[arg(long)]
    json: bool,
    /// Run under compute-sanitizer
    #[arg(long, value_name = "TOOL")]
    sanitize: Option<Tool>,
    /// Run the CUDA kernels on the CPU, compiled by a C++ compiler; shows much of what is wrong with them, without a GPU
    #[arg(long, conflicts_with_all = ["device", "sanitize"])]
    emulate: bool,
    /// Compile every kernel by NVRTC instead of running any; needs no GPU
    #[arg(long, conflicts_with_all = ["device", "act", "op", "random", "jobs", "sanitize", "emulate"])]
    compile_only: bool,
    /// Architectures to compile for, such as sm_90a,sm_100 [default: all six that are supported, each layout of the
    /// cache with f16 on every other one, with bf16 on the rest]
    #[arg(long, value_name = "LIST", requires = "compile_only", value_delimiter = ',')]
    arch: Vec<String>,
}

/// Does what the arguments ask for.
pub fn run(args: &Args) -> Result<()> {
    if args.compile_only {
        return compile::run(&args.arch, args.json);
    }
    let ops = conformance::ops();
    let known = args.op.is_empty() || ops.contains(&args.op.as_str());
    ensure!(known, "--op: unknown op {:?}; known: {}", args.op, ops.join(", "));
    if args.emulate {
        return emulate::again(&["--device", "cuda", "--jobs", "1"]);
    }
    let is_cpu = args.device == Device::Cpu;
    ensure!(!is_cpu || args.act.is_none(), "--act: the CPU computes in f32; give --device cuda");
    ensure!(!is_cpu || args.sanitize.is_none(), "--sanitize: is for CUDA; give --device cuda");
    match args.sanitize {
        Some(tool) => sanitize::run(tool),
        None => test(args),
    }
}

/// Runs the cases and prints what came out.
fn test(args: &Args) -> Result<()> {
    let (name, reports) = match args.device {
        Device::Cpu => cases(args, || Ok(Cpu::<f32>::new()))?,
        Device::Cuda(ordinal) => {
            on_cuda(args, ordinal).with_context(|| format!("--device {}", args.device))?
        }
    };
    let counts = Counts::of(&reports);
    if args.json {
        println!("{:#}", report::to_json((&args.device.to_string(), &name), args.random, &reports));
    } else {
        print!("{}", report::table(&reports));
        let not_passed = reports.iter().filter(|report| report.verdict != Verdict::Pass);
        not_passed.for_each(|report| println!("{report}"));
        report::coverage(&reports).iter().for_each(|line| println!("{line}"));
        println!(
            "{name}: {} passed, {} failed, {} skipped; and {} random cases of each op",
            counts.passed, counts.failed, counts.skipped, args.random
        );
    }
    ensure!(counts.failed == 0, "{} of {} cases failed", counts.failed, reports.len());
    Ok(())
}

/// The cases with each type of activations that is asked for.
fn on_cuda(args: &Args, ordinal: usize) -> Result<(String, Vec<Report>)> {
    let (mut name, mut reports) = (String::new(), Vec::new());
    for act in args.act.map_or(vec![Act::F16, Act::Bf16], |act| vec![act]) {
        let (device, more) = match act {
            Act::F16 => cases(args, || Cuda::<f16>::new(ordinal))?,
            Act::Bf16 => cases(args, || Cuda::<bf16>::new(ordinal))?,
        };
        name = device;
        reports.extend(more);
    }
    Ok((name, reports))
}

/// The device's name and what came out: a report for each case made by hand, and one for each random case that failed.
fn cases<B: Backend>(
    args: &Args,
    make: impl Fn() -> Result<B, B::Error> + Sync,
) -> Result<(String, Vec<Report>), B::Error> {
    let name = make()?.name().to_owned();
    let mut trials = conformance::trials(&args.op);
    let by_hand = trials.len();
    trials.extend(conformance::random_trials(&args.op, args.random));
    let jobs = args.jobs.map_or_else(workers::default_jobs, usize::from);
    let reports = workers::run(&trials, jobs, make)?.into_iter().enumerate();
    let reports = reports.filter(|(place, report)| *place < by_hand || report.failed());
    Ok((name, reports.map(|(_, report)| report).collect()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    /// The first line of what is wrong with a command line.
    fn error(line: &str) -> String {
        let found = match Command::try_parse_from(format!("test-kernels {line}").split_whitespace()) {
            Ok(command) => run(&command.args).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        found.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn wrong_arguments_say_what_is_right() {
        assert!(error("--device gpu").ends_with("known: cpu, cuda, cuda:N"));
        assert!(error("--op ad").starts_with("--op: unknown op \"ad\"; known: embed, linear"));
        assert_eq!(error("--act f16"), "--act: the CPU computes in f32; give --device cuda");
        assert_eq!(error("--sanitize memcheck"), "--sanitize: is for CUDA; give --device cuda");
        assert!(error("--compile-only --device cuda").contains("cannot be used with"));
        assert!(error("--arch sm_80").contains("required"));
    }
}
