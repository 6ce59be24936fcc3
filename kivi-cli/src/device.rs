//! Where to compute, and in which type: the only place that knows which backends there are.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use half::{bf16, f16};
use kivi_kernels_cuda::{Cuda, CudaError, device_count};
use kivi_kernels_ref::Cpu;
use kivi_model::weights::{Checkpoint, WeightDtype};

use crate::args::{DeviceArgs, WeightsFrom};
use crate::{bench, model_source};

/// A device, as it is named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The fastest there is.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let device = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(|number| number.parse().ok()).map(Self::Cuda),
        };
        device.ok_or("expected auto, cpu, cuda or cuda:N")
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Type of activations and of weights on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// That of the checkpoint; f16 if it is f32.
    Auto,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// A backend that is ready.
pub enum Chosen {
    /// The processor, in f32.
    Cpu(Cpu<f32>),
    /// A CUDA device, in f16.
    CudaF16(Cuda<f16>),
    /// A CUDA device, in bf16.
    CudaBf16(Cuda<bf16>),
}

/// The backend that the flags ask for. `auto` is the first CUDA device if it can be used, else the processor.
///
/// # Errors
/// A CUDA device that was asked for and cannot be used, or a checkpoint whose type cannot be read.
pub fn choose(args: &DeviceArgs, model: WeightsFrom<'_>, progress: bool) -> Result<Chosen> {
    match args.device {
        Device::Cpu => cpu(args.threads),
        Device::Cuda(ordinal) => {
            let count = device_count().with_context(|| format!("--device {}", args.device))?;
            if ordinal >= count {
                return Err(anyhow!(
                    "--device {}: this machine has {count} CUDA devices, counted from 0",
                    args.device
                ));
            }
            let dtype = dtype(args.dtype, model, progress)?;
            cuda(ordinal, dtype).with_context(|| format!("--device {}", args.device))
        }
        Device::Auto => match device_count() {
            Err(why) => {
                tracing::info!("{why}; computing on the CPU");
                cpu(args.threads)
            }
            Ok(_) => cuda(0, dtype(args.dtype, model, progress)?).or_else(|why| {
                tracing::warn!("there is a CUDA device, but {why}; computing on the CPU");
                cpu(args.threads)
            }),
        },
    }
}

fn cuda(ordinal: usize, dtype: Dtype) -> Result<Chosen, CudaError> {
    Ok(match dtype {
        Dtype::Bf16 => Chosen::CudaBf16(Cuda::new(ordinal)?),
        Dtype::Auto | Dtype::F16 => Chosen::CudaF16(Cuda::new(ordinal)?),
    })
}

/// The type that was asked for, or that most of the checkpoint's bytes have.
fn dtype(asked: Dtype, model: WeightsFrom<'_>, progress: bool) -> Result<Dtype> {
    if asked != Dtype::Auto {
        return Ok(asked);
    }
    let model = match model {
        WeightsFrom::Checkpoint(model) => model,
        WeightsFrom::Random(shape) => {
            let bf16 = bench::shape::config(shape)?.dtype == Some(WeightDtype::Bf16);
            return Ok(if bf16 { Dtype::Bf16 } else { Dtype::F16 });
        }
    };
    let checkpoint = Checkpoint::open(&model_source::open(model, progress)?)?;
    let dtypes = checkpoint.dtypes();
    let most = dtypes.iter().max_by_key(|(_, (_, bytes))| *bytes).map(|(name, _)| *name);
    Ok(if most == Some("BF16") { Dtype::Bf16 } else { Dtype::F16 })
}

/// The CPU backend, with its threads started. The main thread is one of them: handing each op of a decode step to another
/// thread and waiting for it costs more than many an op.
fn cpu(threads: usize) -> Result<Chosen> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    pool.build_global().context("--threads: cannot be started")?;
    Ok(Chosen::Cpu(Cpu::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(name.parse::<Device>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0"] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }
}
