//! The ops: grids and arguments, one file a family, as the `.cu` files.

mod append;
mod attention;
mod bandwidth;
mod cache;
mod decode;
mod elementwise;
mod gemv;
mod linear;
mod norm;
mod patch;
mod plan;
mod prefill;
mod rope;
mod sample;
mod select;

use kivi_kernels::{Element, Rows, RowsMut, Weight};

pub(crate) use append::{append, append_raw};
pub(crate) use attention::{attend, attend_raw};
pub(crate) use bandwidth::sum_words;
pub(crate) use cache::clear_pages;
pub(crate) use decode::Scratch;
pub(crate) use elementwise::{activate, add};
pub(crate) use linear::{embed, linear};
pub(crate) use norm::{add_rms_norm, layer_norm, rms_norm};
pub(crate) use patch::{Parcel, patch};
pub(crate) use plan::{plan_attend, plan_attend_raw, plan_words};
pub(crate) use rope::rope;
pub(crate) use sample::sample;
pub(crate) use select::{argmax, gather, top_k};

use crate::device::Cuda;
use crate::jit::Source;
use crate::raw::RawRows;
use crate::{Act, CudaBuffer};

/// Every source.
pub(crate) const SOURCES: &[&Source] = &[
    &norm::SOURCE,
    &linear::SOURCE,
    &gemv::SOURCE,
    &rope::SOURCE,
    &elementwise::SOURCE,
    &select::SOURCE,
    &sample::SOURCE,
    &patch::SOURCE,
    &cache::SOURCE,
    &append::SOURCE,
    &attention::SOURCE,
    &bandwidth::SOURCE,
    &decode::SOURCE,
    &plan::SOURCE,
    &prefill::SOURCE,
];

/// Elements that a thread reads at a time, 16 bytes of activations: `PACK` in `packs.cuh`.
const PACK: u64 = 8;

/// Declares a `SOURCE` and the structs that its kernels take.
macro_rules! source {
    ($file:literal: $($params:ident),*) => { source! { @ false false $file: $($params),* } };
    (shaped $file:literal: $($params:ident),*) => { source! { @ true false $file: $($params),* } };
    (streaming $file:literal: $($params:ident),*) => { source! { @ false true $file: $($params),* } };
    (@ $shaped:literal $streaming:literal $file:literal: $($params:ident),*) => {
        pub(super) static SOURCE: crate::jit::Source = crate::jit::Source {
            file: $file,
            text: include_str!(concat!("../../cu/", $file)),
            sizes: &[$((stringify!($params), size_of::<$params>())),*],
            shaped: $shaped,
            streaming: $streaming,
        };
    };
}
use source;

/// Rows of activations.
type ActRows<'a, A> = Rows<'a, Cuda<A>, A>;

/// Address of the first element of a view.
fn at<A: Act, T: Element>(x: &Rows<'_, Cuda<A>, T>) -> u64 {
    x.buffer().at(x.offset())
}

/// Address of the first element of a view that is written.
fn at_mut<A: Act, T: Element>(x: &mut RowsMut<'_, Cuda<A>, T>) -> u64 {
    let offset = x.offset();
    x.buffer().at_mut(offset)
}

/// A view as address and stride.
fn rows<A: Act>(x: &ActRows<'_, A>) -> RawRows {
    RawRows { ptr: at(x), stride: x.stride() }
}

/// A view that is written, likewise.
fn rows_mut<A: Act>(x: &mut RowsMut<'_, Cuda<A>, A>) -> RawRows {
    RawRows { ptr: at_mut(x), stride: x.stride() }
}

/// Address of a buffer that may be absent: null.
fn at_or_null<T: Element>(x: Option<&CudaBuffer<T>>) -> u64 {
    x.map_or(0, |x| x.at(0))
}

/// Address of a weight, and which of a kernel's three versions takes it.
fn weight<A: Act>(x: &Weight<Cuda<A>>, [f32, f16, bf16]: [&'static str; 3]) -> (u64, &'static str) {
    match x {
        Weight::F32(x) => (x.at(0), f32),
        Weight::F16(x) => (x.at(0), f16),
        Weight::Bf16(x) => (x.at(0), bf16),
    }
}
