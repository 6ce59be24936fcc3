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
//!
//! # Using one layer
//!
//! Another engine can use the cache and its attention alone, in its own stream and memory. Ops are launches on that stream:
//! they allocate nothing and wait for nothing, once [`Cuda::prepare`] has loaded the kernels. There are two doors:
//!
//! - **Slices of [`cudarc`]**: [`Cuda::on_stream`] takes the stream, [`Cuda::adopt`] and [`Cuda::view`] make slices and views
//!   operands of the ops, and [`KvLayer::from_buffers`](kivi_kernels::KvLayer::from_buffers) makes a cache of them. Operands
//!   are checked; [`Batch::plan`](kivi_kernels::Batch::plan) copies lengths and page tables to the device.
//!   `examples/quantize_and_attend.rs` does all of it.
//! - **Addresses** ([`raw`]): nothing is checked, and nothing is copied: lengths and page tables are on the device already.
//!   [`Cuda::on_raw_stream`] takes the stream of a program that does not use this version of cudarc.
//!
//! Scratch is [`raw::scratch_words`], allocated by [`Cuda::on_stream`] or given to [`Cuda::with_scratch`]; launches that may
//! run at the same time need one each. Calls make the stream's context current in the calling thread.

mod act;
mod blas;
mod buffer;
mod device;
mod error;
mod graph;
pub mod jit;
mod landing;
mod launch;
mod measure;
mod ops;
mod probe;
pub mod raw;
mod settled;
mod staging;
mod view;

pub use act::Act;
pub use buffer::CudaBuffer;
pub use cudarc;
pub use device::Cuda;
pub use error::CudaError;
pub use graph::Recordings;
pub use landing::Later;
pub use probe::{DeviceInfo, device_count, devices};
pub use view::{View, ViewMut};
