//! Appending to the cache, each new row read once.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::AppendParts;
use kivi_quant::Side;

use super::cache::{self, Cache};
use super::{decode, rows, source};
use crate::device::Cuda;
use crate::jit::Variant;
use crate::launch::BLOCK;
use crate::raw::{RawAppend, RawCache, RawStep};
use crate::{Act, CudaError};

source!(shaped "append.cu": AppendParams);

/// About as many tokens as a tile has; with large heads half.
const TILE: usize = 256;
/// Most blocks that share one head of one sequence; they loop where there is more.
const MAX_PARTS: usize = 4096;
/// A step with no more new rows a sequence is a warp's for each head, or for each side of one.
const FEW: usize = 8;
/// Most heads of a block of `append_step`: a warp for keys and one for values.
const MAX_HEADS: usize = BLOCK / 64;
/// Blocks of it that are enough for any device: with fewer heads to a block, keys that are due take less time.
const ENOUGH: usize = 256;
/// Blocks of it that a multiprocessor holds at a time; where there are more, two launches take less time than one.
const BLOCKS: usize = 2;

/// Heads of a block of `append_rows`, and of `append_due`: as many as it has warps.
const WARPS: usize = BLOCK / 32;
/// Sequences of a block of `append_due`: `DUE_SEQS` in `append.cu`.
const DUE_SEQS: usize = 8;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AppendParams {
    cache: Cache,
    heads: u32,
    settled: u32,
}

pub(crate) fn append<A: Act>(cuda: &Cuda<A>, op: AppendParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let AppendParts { k_new, v_new, cache, batch, group } = op;
    let (cache, step) = (RawCache::from(&*cache), RawStep::new(batch, group));
    let raw = RawAppend { k_new: rows(&k_new), v_new: rows(&v_new), cache, step };
    // SAFETY: `Append::new` checked rows, pages and slots against the cache and `Batch::plan` the counts against pages and
    // rings.
    unsafe { append_raw(cuda, &raw) }
}

/// # Safety
/// As for [`Cuda::append_raw`].
pub(crate) unsafe fn append_raw<A: Act>(cuda: &Cuda<A>, op: &RawAppend) -> Result<(), CudaError> {
    // SAFETY: as the caller says.
    unsafe { queue(cuda, op) }?;
    cuda.settled.wrote(op.cache.pool);
    Ok(())
}

/// # Safety
/// As for [`Cuda::append_raw`].
unsafe fn queue<A: Act>(cuda: &Cuda<A>, op: &RawAppend) -> Result<(), CudaError> {
    let RawAppend { k_new, v_new, cache, step } = op;
    let new = [*k_new, *v_new];
    let params = Cache::new(cache, step, new);
    let Some((shape, _)) = decode::shape(cuda, &cache.layout, &new, false) else {
        // SAFETY: as the caller says.
        return unsafe { cache::append(cuda, params, (cache, step)) };
    };
    let heads = (cache.n_kv_heads * step.n_seqs).div_ceil(ENOUGH).clamp(1, MAX_HEADS);
    let settled = u32::from(cuda.settled.has(params.pool));
    let params = AppendParams { cache: params, heads: heads as u32, settled };
    let launch = |kernel, grid| {
        let variant = Variant { kernel, shape: Some(shape), shared: 0 };
        // SAFETY: as the caller says; the kernels keep to what counts and page tables say is due.
        unsafe { cuda.launch_variant(&SOURCE, variant, grid, params) }
    };
    if step.max_new > FEW {
        let parts = step.max_new.div_ceil(TILE).clamp(1, MAX_PARTS);
        return launch("append", [2 * cache.n_kv_heads, parts, step.n_seqs]);
    }
    let grid = [cache.n_kv_heads.div_ceil(heads), step.n_seqs, 1];
    // For no sequence at all each is launched, with no block, which loads them: `Cuda::prepare` asks for that.
    let one_launch = grid[0] * grid[1] <= BLOCKS * cuda.multiprocessors;
    if one_launch {
        launch("append_step", grid)?;
    }
    if one_launch && step.n_seqs > 0 {
        return Ok(());
    }
    launch("append_rows", [(cache.n_kv_heads * step.n_seqs).div_ceil(WARPS), 1, 1])?;
    if !cache.layout.bits(Side::Key).is_quantized() {
        return Ok(());
    }
    launch("append_due", [cache.n_kv_heads.div_ceil(WARPS), step.n_seqs.div_ceil(DUE_SEQS), 1])
}
