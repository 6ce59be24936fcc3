//! Every op as its equation reads: sequential, in the type `A`, nothing clever. Written to be read; the file
//! names are those of `kivi_kernels::ops`.

mod attention;
mod cache;
mod elementwise;
mod linear;
mod norm;
mod rope;
pub(crate) mod sample;
mod select;

pub(crate) use attention::attend;
pub(crate) use cache::{append, clear_pages};
pub(crate) use elementwise::{activate, add};
pub(crate) use linear::{embed, linear};
pub(crate) use norm::{layer_norm, rms_norm};
pub(crate) use rope::rope;
pub(crate) use sample::sample;
pub(crate) use select::{argmax, gather, top_k};
