//! The CUDA backend of kivi: hand-written kernels (`cu/*.cu`), compiled by NVRTC for the GPU at hand when they are first
//! used and kept on disk ([`jit`]).
//!
//! The crate builds without CUDA. At run time it needs NVIDIA's driver, and NVRTC with the CUDA headers, from a toolkit or
//! from Python wheels ([`jit::Toolkit`]); [`Cuda::new`] says in one line what is missing.
//!
//! ```no_run
//! use half::f16;
//! use kivi_kernels::Backend;
//! use kivi_kernels_cuda::Cuda;
//!
//! let cuda = Cuda::<f16>::new(0)?;
//! let x = cuda.upload(&[f16::ONE; 8])?;
//! # Ok::<(), kivi_kernels_cuda::CudaError>(())
//! ```
//!
//! A [`Cuda`] is one stream of one device. Ops are queued on it in the order of the calls; all that a step is about
//! (lengths, packed counts, page tables, slots, the active mask) is read by kernels from device memory.

mod act;
mod buffer;
mod device;
mod error;
pub mod jit;
mod launch;
mod measure;
mod ops;
mod probe;

pub use act::Act;
pub use buffer::CudaBuffer;
pub use device::Cuda;
pub use error::CudaError;
pub use probe::device_count;
