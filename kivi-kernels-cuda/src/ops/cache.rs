//! The cache as kernels see it, and writing it.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::ClearPagesParts;
use kivi_quant::{KvDtype, Side};

use super::source;
use crate::device::Cuda;
use crate::raw::{RawCache, RawRows, RawStep};
use crate::{Act, CudaError};

source!("cache.cu": Cache, ClearParams);

/// Most blocks that pack one head of one sequence; they loop where there is more to pack.
const MAX_PARTS: usize = 4096;

/// `Side` in `page.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CacheSide {
    ring: u64,
    sink: u64,
    rows: u64,
    packed: u64,
    packed_next: u64,
    row_stride: u64,
    bits: u32,
    token_words: u32,
    codes_start: u32,
    params_start: u32,
}

/// `Cache` in `page.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Cache {
    pub(super) pool: u64,
    k: CacheSide,
    v: CacheSide,
    row_start: u64,
    seq_of_row: u64,
    len: u64,
    active: u64,
    slots: u64,
    page_table: u64,
    max_pages: u32,
    pub n_kv_heads: u32,
    head_dim: u32,
    group_size: u32,
    residual: u32,
    page_tokens: u32,
    sinks: u32,
    kv_dtype: u32,
    pub row_words: u32,
    page_words: u32,
    value_groups: u32,
    pub n_seqs: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ClearParams {
    pool: u64,
    pages: u64,
    of_page: u64,
}

impl CacheSide {
    fn new(side: Side, cache: &RawCache, step: &RawStep, rows: RawRows) -> Self {
        let (layout, i) = (&cache.layout, usize::from(side == Side::Value));
        Self {
            ring: cache.rings[i],
            sink: cache.sinks[i],
            rows: rows.ptr,
            packed: step.packed[i],
            packed_next: step.packed_next[i],
            row_stride: rows.stride as u64,
            bits: layout.bits(side).get(),
            token_words: layout.token_words(side) as u32,
            codes_start: layout.codes_start(side) as u32,
            params_start: layout.params_start(side) as u32,
        }
    }
}

impl Cache {
    /// `cache` and `step`, whose new rows are `k_new` and `v_new`.
    pub fn new(cache: &RawCache, step: &RawStep, [k_new, v_new]: [RawRows; 2]) -> Self {
        let (layout, config) = (&cache.layout, cache.layout.config());
        Self {
            pool: cache.pool,
            k: CacheSide::new(Side::Key, cache, step, k_new),
            v: CacheSide::new(Side::Value, cache, step, v_new),
            row_start: step.row_start,
            seq_of_row: step.seq_of_row,
            len: step.len,
            active: step.active,
            slots: step.slots,
            page_table: step.page_table,
            max_pages: step.max_pages as u32,
            n_kv_heads: cache.n_kv_heads as u32,
            head_dim: layout.head_dim() as u32,
            group_size: config.group_size() as u32,
            residual: config.residual_length() as u32,
            page_tokens: config.page_tokens() as u32,
            sinks: config.sink_tokens() as u32,
            kv_dtype: number(config.kv_dtype()),
            row_words: layout.row_words() as u32,
            page_words: layout.page_words() as u32,
            value_groups: layout.value_groups() as u32,
            n_seqs: step.n_seqs as u32,
        }
    }
}

/// As in `page.cuh`.
fn number(dtype: KvDtype) -> u32 {
    match dtype {
        KvDtype::F16 => 0,
        KvDtype::Bf16 => 1,
        KvDtype::F32 => 2,
    }
}

/// Appending for any layout: an element at a time, in two launches.
///
/// # Safety
/// As for [`Cuda::append_raw`].
pub(super) unsafe fn append<A: Act>(
    cuda: &Cuda<A>,
    params: Cache,
    (cache, step): (&RawCache, &RawStep),
) -> Result<(), CudaError> {
    let config = cache.layout.config();
    if config.is_quantized() {
        // How much is due is known on the device alone: at least a block for each group of a full ring.
        let groups = config.residual_length() / config.group_size() + 1;
        let parts = step.max_new.clamp(groups, MAX_PARTS.max(groups));
        let grid = [parts, cache.n_kv_heads, step.n_seqs];
        // SAFETY: as the caller says; the kernel keeps to what counts and page tables say is due.
        unsafe { cuda.launch(&SOURCE, "append_pack", grid, params)? };
    }
    // SAFETY: as above. The queue is in order, so the rings have been read.
    unsafe { cuda.launch(&SOURCE, "append_store", [step.n_tokens, cache.n_kv_heads, 1], params) }
}

pub(crate) fn clear_pages<A: Act>(cuda: &Cuda<A>, op: ClearPagesParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let ClearPagesParts { cache, pages, n } = op;
    let of_page = (cache.n_kv_heads() * cache.layout().page_words()) as u64;
    let params = ClearParams { pool: cache.pool.at(0), pages: pages.at(0), of_page };
    // SAFETY: `ClearPages::new` checked the length of the list; that its pages are below `n_pages` is the op's contract
    // with its caller. A block a page.
    unsafe { cuda.launch(&SOURCE, "clear_pages", [n, 1, 1], params) }?;
    cuda.settled.wrote(params.pool);
    Ok(())
}
