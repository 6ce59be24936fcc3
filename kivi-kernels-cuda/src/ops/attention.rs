//! Attention over the cache: by the fast kernel if it takes the layout, else by the plain one.

use bytemuck::{Pod, Zeroable};
use kivi_kernels::ops::AttendParts;

use super::cache::Cache;
use super::{at, at_mut, at_or_null, decode, source};
use crate::device::Cuda;
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

pub(crate) fn attend<A: Act>(cuda: &Cuda<A>, op: AttendParts<'_, Cuda<A>>) -> Result<(), CudaError> {
    let AttendParts { mut out, q, k_new, v_new, cache, batch, group, n_heads, scale, window, alibi } = op;
    let params = AttendParams {
        cache: Cache::new(cache, (batch, group), (&k_new, &v_new)),
        out: at_mut(&mut out),
        q: at(&q),
        alibi: at_or_null(alibi),
        out_stride: out.stride() as u64,
        q_stride: q.stride() as u64,
        n_heads: n_heads as u32,
        // A window that no sequence can fill is none.
        window: window.and_then(|window| u32::try_from(window).ok()).unwrap_or(0),
        scale,
        rows: q.rows() as u32,
    };
    if let Some(shape) = decode::shape(cuda, cache, (&k_new, &v_new), alibi.is_some()) {
        return decode::decode(cuda, shape, params, n_heads / cache.n_kv_heads());
    }
    // SAFETY: `Attend::new` checked views, slopes, pages and slots, and `Batch::plan` the counts against pages and rings; a
    // block a row and KV head.
    unsafe { cuda.launch(&SOURCE, "attend", [q.rows(), cache.n_kv_heads(), 1], params) }
}
