//! Two backends in plain Rust, and the suite that compares any backend with them.
//!
//! * `Cpu<f64>` is the **oracle**: every op as its equation reads, sequentially, in f64, rounding nothing.
//! * `Cpu<f32>` is the CPU backend: the oracle's loops, with matrix products and the cache made fast.
//! * [`Cpu::yardstick`] runs the oracle's own loops in f32 and rounds where a kernel with tensor cores must; its
//!   error is the measure of another backend's (`docs/numerics.md`).
//!
//! With the feature `conformance`, the module `conformance` has the cases, the tolerance rule and the macro that
//! makes tests of them.
#![deny(unsafe_code)] // One exception: the module that calls the gemm crate.

mod accum;
#[cfg(feature = "conformance")]
pub mod conformance;
mod cpu;
mod fast;
mod oracle;
mod sequence;
mod view;

pub use accum::Accum;
pub use cpu::{Cpu, CpuBuffer, CpuError};
