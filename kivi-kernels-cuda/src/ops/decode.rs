//! Attention of single rows over long caches: a block a multiprocessor, which share all tokens.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::Buffer;
use kivi_quant::PageLayout;

use super::attention::AttendParams;
use super::plan::{launch_plan, plan_words};
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
pub(super) struct DecodeParams {
    pub attend: AttendParams,
    plan: u64,
    partials: u64,
    arrived: u64,
    blocks: u32,
    query_blocks: u32,
    few: u32,
    warps: u32,
    tile: u32,
    rows_cost: u32,
    settled: u32,
    unused: u32,
}

/// What the blocks of a launch leave for each other, how many came and partial results, and a plan for those that are given none.
pub(crate) struct Scratch {
    words: CudaBuffer<u32>,
    multiprocessors: usize,
}

impl Scratch {
    /// Words for a device of so many multiprocessors.
    pub fn words(multiprocessors: usize) -> usize {
        Self::plan_at(multiprocessors) + plan_words(multiprocessors)
    }

    fn plan_at(multiprocessors: usize) -> usize {
        let partials = multiprocessors * 2 * QUERIES * (MAX_HEAD_DIM + 2);
        Self::counters(multiprocessors) + partials
    }

    /// Those before the partial results: a counter a block, up to a multiple of 256 bytes.
    fn counters(multiprocessors: usize) -> usize {
        multiprocessors.next_multiple_of(64)
    }

    /// Multiprocessors of the device.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
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

/// The shape of `layout`, if the kernel takes it and these results, queries and new rows: of rows it takes up to 16 bytes at a time.
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

/// The shape for as many sequences and units as there are: the same for a plan and for what is planned.
pub(super) fn sized<A: Act>(
    cuda: &Cuda<A>,
    (shape, plan): (Shape, Plan),
    attend: &AttendParams,
) -> (Shape, Plan) {
    let units = attend.kv_heads() * attend.ratio().div_ceil(QUERIES);
    let (small, few) = (shape.small(), attend.sequences() * units <= cuda.few_units);
    cuda.jit.plan(small).filter(|_| few).map_or((shape, plan), |plan| (small, plan))
}

impl DecodeParams {
    /// With a plan and scratch of the caller or, if they are null, of `cuda`.
    pub fn new<A: Act>(
        cuda: &Cuda<A>,
        shape: Plan,
        attend: AttendParams,
        (few, plan, scratch): (u32, u64, u64),
    ) -> Self {
        let Scratch { words, multiprocessors } = &cuda.scratch;
        let scratch = if scratch == 0 { words.device_ptr() } else { scratch };
        let at = |word: usize| scratch + 4 * word as u64;
        Self {
            attend,
            plan: if plan == 0 { at(Scratch::plan_at(*multiprocessors)) } else { plan },
            partials: at(Scratch::counters(*multiprocessors)),
            arrived: scratch,
            blocks: *multiprocessors as u32,
            query_blocks: attend.ratio().div_ceil(QUERIES) as u32,
            few,
            warps: shape.warps as u32,
            tile: shape.tile as u32,
            rows_cost: shape.rows_cost as u32,
            settled: u32::from(plan != 0 && cuda.settled.has(attend.pool())),
            unused: 0,
        }
    }
}

/// Attention of the rows of `attend` of sequences that have at most `few` new ones, with a plan and scratch of the caller or, if
/// they are null, of `cuda`.
pub(super) fn decode<A: Act>(
    cuda: &Cuda<A>,
    shape: (Shape, Plan),
    attend: AttendParams,
    (few, planned, scratch): (u32, u64, u64),
) -> Result<(), CudaError> {
    let sized = sized(cuda, shape, &attend);
    // For no sequence at all the kernel of many is launched, too, with no block, which loads it: `Cuda::prepare` asks for that.
    if attend.sequences() == 0 {
        launch(cuda, shape, attend, (few, planned, scratch))?;
    }
    launch(cuda, sized, attend, (few, planned, scratch))
}

fn launch<A: Act>(
    cuda: &Cuda<A>,
    (shape, plan): (Shape, Plan),
    attend: AttendParams,
    (few, planned, scratch): (u32, u64, u64),
) -> Result<(), CudaError> {
    let params = DecodeParams::new(cuda, plan, attend, (few, planned, scratch));
    if planned == 0 {
        launch_plan(cuda, params)?;
    }
    let variant = Variant { kernel: "decode", shape: Some(shape), shared: plan.shared };
    let blocks = if attend.rows() > 0 { params.blocks as usize } else { 0 };
    // SAFETY: as the caller of `attend_raw` says; scratch has two partial results and a counter for each block.
    unsafe { cuda.launch_blocks(&SOURCE, variant, ([blocks, 1, 1], 32 * plan.warps), params) }
}
