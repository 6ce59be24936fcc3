//! Attention over the cache: by the fast kernel if it takes the layout, else by the plain one.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::AttendParts;

use super::cache::Cache;
use super::{at_or_null, decode, prefill, rows, rows_mut, source};
use crate::device::Cuda;
use crate::jit::{Plan, Shape};
use crate::raw::{RawAttend, RawCache, RawPlan, RawRows, RawStep};
use crate::{Act, CudaError};

source!("attention.cu": AttendParams);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AttendParams {
    cache: Cache,
    out: u64,
    q: u64,
    alibi: u64,
    out_stride: u64,
    q_stride: u64,
    n_heads: u32,
    window: u32,
    scale: f32,
    rows: u32,
}

impl AttendParams {
    /// What a plan knows of attention.
    pub fn new(plan: &RawPlan, new: [RawRows; 2]) -> Self {
        Self {
            cache: Cache::new(&plan.cache, &plan.step, new),
            n_heads: plan.n_heads as u32,
            // A window that no sequence can fill is none.
            window: plan.window.and_then(|window| u32::try_from(window).ok()).unwrap_or(0),
            rows: plan.step.n_tokens as u32,
            ..Zeroable::zeroed()
        }
    }

    /// New rows of the batch.
    pub fn rows(&self) -> usize {
        self.rows as usize
    }

    /// Sequences of the batch.
    pub fn sequences(&self) -> usize {
        self.cache.n_seqs as usize
    }

    /// Where pages are.
    pub fn pool(&self) -> u64 {
        self.cache.pool
    }

    /// KV heads.
    pub fn kv_heads(&self) -> usize {
        self.cache.n_kv_heads as usize
    }

    /// Bytes of the new keys and values of a KV head.
    pub fn bytes_of_head(&self) -> usize {
        self.rows() * 8 * self.cache.row_words as usize
    }

    /// Query heads to a KV head.
    pub fn ratio(&self) -> usize {
        (self.n_heads / self.cache.n_kv_heads) as usize
    }
}

/// A sequence with more new rows than these is prefilled; until then reading its cache once a row keeps the whole device busy.
const FEW: usize = 32;

/// New rows of a sequence that decode's kernel takes, in a step where one has at most `max_new`.
pub(super) fn few(max_new: usize) -> u32 {
    if max_new <= FEW { u32::MAX } else { FEW as u32 }
}

/// The kernel of few rows a sequence, and if some sequence may have many, that of many: each does its own sequences.
fn fast<A: Act>(
    cuda: &Cuda<A>,
    shape: (Shape, Plan),
    params: AttendParams,
    (max_new, plan, scratch): (usize, u64, u64),
) -> Result<(), CudaError> {
    // The kernel of many rows finds the largest logit before it scales.
    if params.scale <= 0.0 {
        return decode::decode(cuda, shape, params, (u32::MAX, 0, scratch));
    }
    decode::decode(cuda, shape, params, (few(max_new), plan, scratch))?;
    if max_new <= FEW {
        return Ok(());
    }
    prefill::prefill(cuda, shape, params, FEW as u32)
}

pub(crate) fn attend<A: Act>(cuda: &Cuda<A>, op: AttendParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let plan = at_or_null(op.plan());
    let AttendParts { mut out, q, k_new, v_new, cache, batch, group, n_heads, scale, window, alibi } = op;
    let raw = RawAttend {
        out: rows_mut(&mut out),
        q: rows(&q),
        k_new: rows(&k_new),
        v_new: rows(&v_new),
        cache: RawCache::from(cache),
        step: RawStep::new(batch, group),
        n_heads,
        scale,
        window,
        alibi: at_or_null(alibi),
        plan,
        scratch: 0,
    };
    // SAFETY: `Attend::new` checked views, slopes, pages and slots, and `Batch::plan` the counts against pages and rings.
    unsafe { attend_raw(cuda, &raw) }
}

/// # Safety
/// As for [`Cuda::attend_raw`].
pub(crate) unsafe fn attend_raw<A: Act>(cuda: &Cuda<A>, op: &RawAttend) -> Result<(), CudaError> {
    let RawAttend { out, q, k_new, v_new, cache, step, .. } = op;
    let planned =
        RawPlan { plan: op.plan, cache: *cache, step: *step, n_heads: op.n_heads, window: op.window };
    let params = AttendParams {
        out: out.ptr,
        q: q.ptr,
        alibi: op.alibi,
        out_stride: out.stride as u64,
        q_stride: q.stride as u64,
        scale: op.scale,
        ..AttendParams::new(&planned, [*k_new, *v_new])
    };
    if let Some(shape) = decode::shape(cuda, &cache.layout, &[*out, *q, *k_new, *v_new], op.alibi != 0) {
        return fast(cuda, shape, params, (step.max_new, op.plan, op.scratch));
    }
    // SAFETY: as the caller says; a block a row and KV head.
    unsafe { cuda.launch(&SOURCE, "attend", [step.n_tokens, cache.n_kv_heads, 1], params) }
}
