//! The KIVI cache format and its arithmetic, on plain slices.
//!
//! KIVI (Liu et al., ICML 2024, arXiv 2402.02750) keeps the keys of a transformer's cache quantized **per
//! channel** (one scale and zero for `group_size` consecutive tokens of one channel) and the values **per
//! token** (one scale and zero for `group_size` consecutive channels of one token), asymmetrically, in 2, 4 or
//! 8 bits, with the most recent tokens in full precision.
//!
//! This crate owns what every backend must agree on, and runs anywhere (`no_std` + `alloc`):
//!
//! * [`Bits`], [`GroupSize`], [`KvDtype`], [`KiviConfig`]: validated settings;
//! * [`group`]: quantize and dequantize one group, the scalar truth; [`original`]: the same with every step
//!   rounded to f16, as the authors' code does;
//! * [`PageLayout`]: where each code, scale and zero lies in a page (`docs/format.md`), and [`page`]: packing
//!   rows into pages and reading them back;
//! * [`linear`]: the authors' linear word order, for interchange;
//! * [`KiviConfig::packed`]: which tokens are packed at a given length, in closed form;
//! * [`CacheBytes`]: exact byte accounting.
//!
//! ```
//! use kivi_quant::{Bits, group};
//! let x = [0.0_f32, 1.0, 2.0, 3.0];
//! let params = group::params(x.iter().copied(), Bits::B2);
//! let codes: Vec<u32> = x.iter().map(|&x| params.quantize(x, Bits::B2)).collect();
//! assert_eq!(codes, [0, 1, 2, 3]);
//! assert_eq!(params.dequantize(codes[3]), 3.0);
//! ```
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

/// The README's example is a test of this crate.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod bytes;
mod config;
pub mod group;
mod layout;
pub mod linear;
pub mod original;
pub mod page;

pub use bytes::CacheBytes;
pub use config::{Bits, ConfigError, GroupSize, KiviConfig, KvDtype, Packed};
pub use group::{GroupParams, KvElement};
pub use layout::{CodeAt, PageLayout, Side};
