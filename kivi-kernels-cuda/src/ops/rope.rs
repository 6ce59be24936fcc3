//! Rotary position embedding.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::RopeParts;

use super::{at_mut, at_or_null, source};
use crate::device::Cuda;
use crate::launch::{BLOCK, MAX_DOWN};
use crate::{Act, CudaError};

source!("rope.cu": RopeParams);

/// Heads that a thread turns: `HEADS` in `rope.cu`.
const HEADS: usize = 4;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RopeParams {
    x: u64,
    positions: u64,
    inv_freq: u64,
    table_of_row: u64,
    stride: u64,
    rows: u64,
    heads: u32,
    head_dim: u32,
    d: u32,
    scaling: f32,
}

pub(crate) fn rope<A: Act>(cuda: &Cuda<A>, op: RopeParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let RopeParts { mut x, head_dim, rotary_dim, positions, inv_freq, table_of_row, scaling } = op;
    let heads = x.cols() / head_dim;
    let params = RopeParams {
        x: at_mut(&mut x),
        positions: positions.at(0),
        inv_freq: inv_freq.at(0),
        table_of_row: at_or_null(table_of_row),
        stride: x.stride() as u64,
        rows: x.rows() as u64,
        heads: heads as u32,
        head_dim: head_dim as u32,
        d: (rotary_dim / 2) as u32,
        scaling,
    };
    // Both elements of a pair of neighbours lie in one word.
    let pairs = params.x.is_multiple_of(4)
        && [params.stride, head_dim as u64, params.d.into()].iter().all(|n| n % 2 == 0);
    let (kernel, each) = if pairs { ("rope_pairs", 2) } else { ("rope", 1) };
    let items = heads.div_ceil(HEADS) * (rotary_dim / 2 / each);
    let grid = [items.div_ceil(BLOCK), x.rows().min(MAX_DOWN), 1];
    // SAFETY: `Rope::new` checked the view, `rotary_dim`, the frequencies and the length of both lists; that rows name
    // tables that there are is the op's contract with its caller.
    unsafe { cuda.launch(&SOURCE, kernel, grid, params) }
}
