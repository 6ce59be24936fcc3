//! What can go wrong on a CUDA device.

use std::path::PathBuf;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use kivi_kernels::{ErrorKind, KernelError};

/// A failure of the CUDA backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver, or no such device.
    #[error("no CUDA device: {0}")]
    NoDevice(String),
    /// NVRTC or the CUDA headers were not found.
    #[error(
        "NVRTC with the CUDA headers not found in {searched}; set CUDA_HOME to a CUDA toolkit, or \
         `pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl` and activate the environment"
    )]
    NoToolkit {
        /// Where they were looked for.
        searched: String,
    },
    /// The driver does not load what NVRTC compiles.
    #[error(
        "the driver supports CUDA up to {driver}, NVRTC is {nvrtc}: update the driver, or set CUDA_HOME to an older toolkit"
    )]
    OldDriver {
        /// The newest CUDA that the driver supports.
        driver: String,
        /// Version of NVRTC.
        nvrtc: String,
    },
    /// A library is there but cannot be used.
    #[error("cannot load {}: {why}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        why: String,
    },
    /// A kernel does not compile.
    #[error("{file} does not compile for {arch}: {log}")]
    Compile {
        /// The source.
        file: &'static str,
        /// The architecture.
        arch: String,
        /// What the compiler says.
        log: String,
    },
    /// The device has no memory left.
    #[error("out of device memory: {bytes} bytes asked for, {free} of {total} free")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u128,
        /// Bytes free.
        free: usize,
        /// Bytes of the device.
        total: usize,
    },
    /// cuBLASLt failed.
    #[error("cuBLASLt: {what}: status {status}")]
    Blas {
        /// What was being done.
        what: &'static str,
        /// `cublasStatus_t`.
        status: i32,
    },
    /// A copy that does not lie within its buffer.
    #[error("copy of {count} elements at {offset} does not fit a buffer of {len}")]
    Range {
        /// First element.
        offset: usize,
        /// Elements to copy.
        count: usize,
        /// Elements of the buffer.
        len: usize,
    },
    /// Memory of the caller that cannot be used.
    #[error("memory is refused: {0}")]
    Foreign(&'static str),
    /// More blocks than one launch has.
    #[error("{kernel}: a grid of {grid:?} blocks is too large for one launch")]
    Grid {
        /// The kernel.
        kernel: &'static str,
        /// The grid.
        grid: [usize; 3],
    },
    /// The driver refused a call, or reports a fault of an earlier one.
    #[error("{what}: {}", text(*error))]
    Driver {
        /// What was being done.
        what: &'static str,
        /// What the driver says.
        error: DriverError,
    },
}

/// The driver's description of `error`.
fn text(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    format!("{} ({:?}){}", text.unwrap_or_else(|_| "unknown error".into()), error.0, hint(error.0))
}

/// What to do about it, where that is known.
fn hint(code: CUresult) -> &'static str {
    let lost = driver_kind(code) == ErrorKind::DeviceLost;
    if lost { "; the device is lost to this process, start it again" } else { "" }
}

impl CudaError {
    /// Turns the driver's error into one that says `what` was being done.
    pub(crate) fn driver(what: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |error| Self::Driver { what, error }
    }
}

impl KernelError for CudaError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            Self::NoToolkit { .. } | Self::OldDriver { .. } | Self::Library { .. } | Self::Compile { .. } => {
                ErrorKind::Compile
            }
            Self::Grid { .. } => ErrorKind::Unsupported,
            Self::NoDevice(_) | Self::Blas { .. } | Self::Range { .. } | Self::Foreign(_) => ErrorKind::Other,
            Self::Driver { error, .. } => driver_kind(error.0),
        }
    }
}

/// After a fault of a kernel the context is spoilt for good: no later call succeeds.
fn driver_kind(code: CUresult) -> ErrorKind {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        | CUresult::CUDA_ERROR_ASSERT
        | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
        | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUresult::CUDA_ERROR_DEINITIALIZED
        | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => ErrorKind::DeviceLost,
        _ => ErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_says_what_to_do() {
        assert!(hint(CUresult::CUDA_ERROR_LAUNCH_FAILED).contains("start it again"));
        assert_eq!(hint(CUresult::CUDA_ERROR_INVALID_VALUE), "");
    }

    #[test]
    fn kinds_are_what_a_caller_can_act_on() {
        let driver = |code| CudaError::Driver { what: "launch", error: DriverError(code) }.kind();
        assert_eq!(driver(CUresult::CUDA_ERROR_OUT_OF_MEMORY), ErrorKind::OutOfMemory);
        assert_eq!(driver(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS), ErrorKind::DeviceLost);
        assert_eq!(driver(CUresult::CUDA_ERROR_INVALID_VALUE), ErrorKind::Other);
        assert_eq!(CudaError::NoToolkit { searched: String::new() }.kind(), ErrorKind::Compile);
    }
}
