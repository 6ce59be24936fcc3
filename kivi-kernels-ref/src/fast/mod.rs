//! The ops that decide the speed of `Cpu<f32>`: matrix products, attention over packed pages, and drawing tokens.
//!
//! Loops are plain Rust over fixed-size arrays, compiled for the vector unit at hand by `pulp`; products of
//! matrices are the `gemm` crate's; work is spread by rayon. How work is cut never depends on the number of
//! threads. Attention is cut by the sequence alone; the order of sums in a product with weights depends on how many
//! rows the batch has (`docs/numerics.md`).

mod attend;
mod linear;
mod math;
#[allow(unsafe_code)] // one call of the gemm crate
mod matmul;
mod packed;
mod rows;
mod sample;
mod softmax;

pub(crate) use attend::attend;
pub(crate) use linear::linear;
pub(crate) use sample::sample;
