//! `cargo xtask bench-kernels`: how fast the CUDA kernels are, beside what the memory gives, the same at 16 bits and PyTorch.
//! Needs neither cargo nor the repository at run time.

mod case;
mod measure;
mod pattern;
mod report;
mod run;
mod shape;
#[cfg(test)]
mod tests;
mod torch;
mod world;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use kivi_kernels::{DType, Element};
use kivi_kernels_cuda::Cuda;
use kivi_quant::{Bits, GroupSize};

use crate::device::{Act, Device};
use case::{Case, What};
use measure::Measured;
use report::Row;
use run::Bench;
use shape::Shape;
use torch::Torch;

/// Relative error above which a result is wrong: far above the rounding of f16 and bf16.
const MAX_ERROR: f64 = 0.03;
/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The CUDA device: cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda:0")]
    device: Device,
    /// Type of activations and of rows in full precision
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    act: Act,
    /// What to measure
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "read,decode,plan,append,prefill"
    )]
    what: Vec<What>,
    /// Decode steps, as heads/kv_heads:sequences:tokens [default: 17 of 4,096 to 131,072 tokens]
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = shape::DEFAULT, hide_default_value = true)]
    shapes: Vec<Shape>,
    /// Widths of the cache, keys and values alike
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "16,8,4,2", value_parser = bits)]
    bits: Vec<Bits>,
    /// Group sizes
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "32,64,128", value_parser = group)]
    groups: Vec<GroupSize>,
    /// Measure PyTorch's attention, too (flash and cuDNN)
    #[arg(long)]
    with_torch: bool,
    /// Write everything as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn bits(text: &str) -> Result<Bits, String> {
    let bits: u32 = text.parse().map_err(|_| "expected 2, 4, 8 or 16".to_owned())?;
    Bits::try_from(bits).map_err(|error| error.to_string())
}

fn group(text: &str) -> Result<GroupSize, String> {
    let group: usize = text.parse().map_err(|_| "expected 32, 64 or 128".to_owned())?;
    GroupSize::try_from(group).map_err(|error| error.to_string())
}

/// Measures and prints line by line.
pub fn run(args: &Args) -> Result<()> {
    let Device::Cuda(ordinal) = args.device else {
        bail!("--device: bench-kernels measures CUDA devices; give cuda or cuda:N")
    };
    let absent = || format!("--device {}", args.device);
    match args.act {
        Act::F16 => bench(args, &Cuda::<f16>::new(ordinal).with_context(absent)?, ordinal),
        Act::Bf16 => bench(args, &Cuda::<bf16>::new(ordinal).with_context(absent)?, ordinal),
    }
}

fn bench<D: Measured>(args: &Args, device: &D, ordinal: usize) -> Result<()> {
    let waits = std::env::var_os("KIVI_SYNC").is_some_and(|value| value == "1");
    ensure!(!waits, "KIVI_SYNC=1 makes every op wait, which cannot be measured: unset it");
    let cases = case::cases(&args.what, &args.shapes, (&args.bits, &args.groups), D::Act::DTYPE)?;
    println!("{}, {}", device.name(), D::Act::DTYPE.name());
    let torch = args.with_torch.then(|| peers(&cases, ordinal, D::Act::DTYPE)).flatten();
    let mut bench = Bench::new(device, torch.unwrap_or_default(), args.json.as_deref());
    bench.save()?;
    println!("{}", report::header());
    bench.run(&args.what, &cases)?;
    let wrong: Vec<&Row> = bench.rows.iter().filter(|row| row.error > Some(MAX_ERROR)).collect();
    let first =
        || format!("the first: {}, relative error {:.1e}", wrong[0].case, wrong[0].error.unwrap_or(0.0));
    ensure!(wrong.is_empty(), "{} results are wrong, {}", wrong.len(), first());
    Ok(())
}

/// What PyTorch takes, or a line that says why that is not known.
fn peers(cases: &[Case], ordinal: usize, act: DType) -> Option<Torch> {
    Torch::measure(cases, ordinal, act)
        .inspect_err(|error| println!("--with-torch: left out: {error:#}"))
        .ok()
}
