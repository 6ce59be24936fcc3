//! Attention of single rows over long caches: as many blocks as the device holds share all tokens.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;
use kivi_kernels::KvLayer;

use super::attention::AttendParams;
use super::{ActRows, at, source};
use crate::device::Cuda;
use crate::jit::{Plan, Shape, Variant};
use crate::{Act, CudaBuffer, CudaError};

source!(shaped "decode.cu": DecodeParams);

/// Query heads of a unit of work.
const QUERIES: usize = 8;
/// Most blocks of a multiprocessor.
const MAX_BLOCKS: usize = 2;
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

/// What the blocks of a launch leave for each other: partial results, and how many came.
pub(crate) struct DecodeScratch {
    partials: CudaBuffer<f32>,
    arrived: CudaBuffer<u32>,
    multiprocessors: usize,
}

impl DecodeScratch {
    /// For a device of so many multiprocessors.
    pub fn new(stream: &Arc<CudaStream>, multiprocessors: usize) -> Result<Self, CudaError> {
        let blocks = multiprocessors * MAX_BLOCKS;
        let partial = QUERIES * (MAX_HEAD_DIM + 2);
        Ok(Self {
            partials: CudaBuffer::uninit(stream, blocks * 2 * partial)?,
            arrived: CudaBuffer::zeros(stream, blocks)?,
            multiprocessors,
        })
    }
}

/// The shape of `cache`, if the kernel takes it and these new rows: it reads 16 bytes of them at a time.
pub(super) fn shape<A: Act>(
    cuda: &Cuda<A>,
    cache: &KvLayer<Cuda<A>>,
    (k_new, v_new): (&ActRows<'_, A>, &ActRows<'_, A>),
    alibi: bool,
) -> Option<(Shape, Plan)> {
    let aligned = [k_new, v_new].iter().all(|rows| at(rows) % 16 == 0 && rows.stride() % 8 == 0);
    let shape = Shape::new(cache.layout(), A::DTYPE, alibi).filter(|_| aligned)?;
    Some((shape, cuda.jit.plan(shape)?))
}

/// Attention of the rows of `attend` of sequences that have at most `few` new ones.
pub(super) fn decode<A: Act>(
    cuda: &Cuda<A>,
    (shape, plan): (Shape, Plan),
    attend: AttendParams,
    few: u32,
) -> Result<(), CudaError> {
    let scratch = &cuda.decode;
    let params = DecodeParams {
        attend,
        partials: scratch.partials.at(0),
        arrived: scratch.arrived.at(0),
        query_blocks: attend.ratio().div_ceil(QUERIES) as u32,
        few,
    };
    let variant = Variant { kernel: "decode", shape: Some(shape), shared: plan.shared };
    let blocks = scratch.multiprocessors * plan.blocks.min(MAX_BLOCKS);
    // SAFETY: `Attend::new` checked views, slopes, pages and slots, and `Batch::plan` the counts against pages and rings;
    // scratch has two partial results and a counter for each block.
    unsafe { cuda.launch_variant(&SOURCE, variant, [blocks, 1, 1], params) }
}
