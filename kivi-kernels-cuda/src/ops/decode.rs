//! Attention of single rows over long caches: a block a multiprocessor, which share all tokens.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::Buffer;
use kivi_quant::PageLayout;

use super::attention::AttendParams;
use super::source;
use crate::device::Cuda;
use crate::jit::{Plan, Shape, Variant};
use crate::raw::RawRows;
use crate::{Act, CudaBuffer, CudaError};

source!(shaped "decode.cu": DecodeParams);

/// Query heads of a unit of work.
const QUERIES: usize = 8;
/// Largest head.
const MAX_HEAD_DIM: usize = 256;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DecodeParams {
    attend: AttendParams,
    partials: u64,
    arrived: u64,
    query_blocks: u32,
    few: u32,
}

/// What the blocks of a launch leave for each other: how many came, and partial results.
pub(crate) struct Scratch {
    words: CudaBuffer<u32>,
    multiprocessors: usize,
}

impl Scratch {
    /// Words for a device of so many multiprocessors.
    pub fn words(multiprocessors: usize) -> usize {
        let partials = multiprocessors * 2 * QUERIES * (MAX_HEAD_DIM + 2);
        Self::counters(multiprocessors) + partials
    }

    /// Those before the partial results: a counter a block, up to a multiple of 256 bytes.
    fn counters(multiprocessors: usize) -> usize {
        multiprocessors.next_multiple_of(64)
    }

    /// In `words`, which are all zero, of a device of so many multiprocessors.
    ///
    /// # Errors
    /// [`CudaError::Foreign`] if there are too few.
    pub fn new(words: CudaBuffer<u32>, multiprocessors: usize) -> Result<Self, CudaError> {
        let enough = words.len() >= Self::words(multiprocessors);
        let why = "scratch has fewer words than raw::scratch_words asks for";
        if enough { Ok(Self { words, multiprocessors }) } else { Err(CudaError::Foreign(why)) }
    }
}

/// The shape of `layout`, if the kernel takes it and these queries and new rows: it reads 16 bytes of them at a time.
pub(super) fn shape<A: Act>(
    cuda: &Cuda<A>,
    layout: &PageLayout,
    rows: &[RawRows],
    alibi: bool,
) -> Option<(Shape, Plan)> {
    let aligned = rows.iter().all(|rows| rows.ptr % 16 == 0 && rows.stride % 8 == 0);
    let shape = Shape::new(layout, A::DTYPE, alibi).filter(|_| aligned)?;
    Some((shape, cuda.jit.plan(shape)?))
}

/// Attention of the rows of `attend` of sequences that have at most `few` new ones, with scratch of the caller or, if that is
/// null, of `cuda`.
pub(super) fn decode<A: Act>(
    cuda: &Cuda<A>,
    (shape, plan): (Shape, Plan),
    attend: AttendParams,
    (few, scratch): (u32, u64),
) -> Result<(), CudaError> {
    let Scratch { words, multiprocessors } = &cuda.scratch;
    let scratch = if scratch == 0 { words.device_ptr() } else { scratch };
    let params = DecodeParams {
        attend,
        partials: scratch + 4 * Scratch::counters(*multiprocessors) as u64,
        arrived: scratch,
        query_blocks: attend.ratio().div_ceil(QUERIES) as u32,
        few,
    };
    let variant = Variant { kernel: "decode", shape: Some(shape), shared: plan.shared };
    let blocks = if attend.rows() > 0 { *multiprocessors } else { 0 };
    // SAFETY: as the caller of `attend_raw` says; scratch has two partial results and a counter for each block.
    unsafe { cuda.launch_blocks(&SOURCE, variant, ([blocks, 1, 1], 32 * plan.warps), params) }
}
