//! The cache and its kernels on bare device addresses, for engines that keep lengths and page tables on the device, or use
//! another version of cudarc, or another language's runtime.
//!
//! Nothing is checked on the host: [`Cuda::attend_raw`] and [`Cuda::append_raw`] are unsafe, and what they trust is written
//! at the fields. An address is a number; counts are in elements, words have 32 bits. They queue launches on the stream of
//! the [`Cuda`], and neither allocate nor wait, once [`Cuda::prepare`] has loaded the kernels.
//!
//! On devices of compute capability 9.0 and above these launches may start early (programmatic dependent launch, unless
//! `KIVI_PDL=0` is in the environment), and on the device they wait for the launch before them, before they read or write
//! anything: also for one of the caller's that lets its dependents start early. A step that [`kivi_kernels::Backend::record`]
//! records is different: in it they read pages and what the step is about before they wait, if no launch of the step writes
//! it. So nothing but ops and launches of this door may be in it, the same pool must have the same address
//! in all of them, and no op may write arrays of a [`RawStep`]. They let the launch behind them start early
//! in turn, before they wait themselves, so that several may be under way. This concerns a launch of the caller's only if it
//! has the attribute for it. That one must wait on the device (`griddepcontrol.wait`) in every block, even if it needs
//! nothing of what is before: what comes behind it takes its end for the end of all before.

use cudarc::driver::sys::CUdeviceptr;
use kivi_kernels::{Batch, KvLayer};
use kivi_quant::PageLayout;

use crate::device::Cuda;
use crate::{Act, CudaError, ops};

/// Rows of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawRows {
    /// The first element of the first row, aligned to 2 bytes. For results, queries, new keys and new values, 16 let the fast kernels take them.
    pub ptr: CUdeviceptr,
    /// Elements from one row to the next. For results, queries, new keys and new values, multiples of 8 let the fast kernels take them.
    pub stride: usize,
}

/// The cache of one layer: [`KvLayer`] as addresses, each aligned to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawCache {
    /// Layout of a page of one head.
    pub layout: PageLayout,
    /// Key/value heads, at least 1.
    pub n_kv_heads: usize,
    /// `[n_pages][n_kv_heads][page_words]` words.
    pub pool: CUdeviceptr,
    /// Residual keys and values, `[n_slots][n_kv_heads][residual_length][row_words]` words; unused at 16 bits.
    pub rings: [CUdeviceptr; 2],
    /// Sinks of keys and values, `[n_slots][n_kv_heads][sink_tokens][row_words]` words; unused at 16 bits or without sinks.
    pub sinks: [CUdeviceptr; 2],
}

/// A step: [`Batch`] and one of its groups as addresses of u32 arrays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawStep {
    /// Sequences.
    pub n_seqs: usize,
    /// Rows, of all sequences.
    pub n_tokens: usize,
    /// Most rows of one sequence, or more: kernels and grids are chosen by it.
    pub max_new: usize,
    /// `[n_seqs + 1]`: first row of each sequence, increasing from 0; the last element is `n_tokens`.
    pub row_start: CUdeviceptr,
    /// `[n_tokens]`: sequence of each row.
    pub seq_of_row: CUdeviceptr,
    /// `[n_seqs]`: tokens in the cache before the step.
    pub len: CUdeviceptr,
    /// `[n_seqs]`: 1 where the sequence takes part, else 0.
    pub active: CUdeviceptr,
    /// `[n_seqs]`: slot of rings and sinks; no two active sequences have the same.
    pub slots: CUdeviceptr,
    /// `[n_seqs][max_pages]`: pages in the order of their tokens; those that hold what is packed after the step.
    pub page_table: CUdeviceptr,
    /// Row length of `page_table`.
    pub max_pages: usize,
    /// `[n_seqs]` each, of keys and of values: tokens packed before the step. At most a ring is not
    /// ([`kivi_quant::KiviConfig::ring_rows`]); keys are packed in whole groups.
    pub packed: [CUdeviceptr; 2],
    /// `[n_seqs]` each: tokens packed after it, likewise, and no fewer ([`kivi_quant::KiviConfig::packed`]).
    pub packed_next: [CUdeviceptr; 2],
}

/// Operands of [`Cuda::attend_raw`]; the equation is that of [`kivi_kernels::ops::Attend`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RawAttend {
    /// Output `[n_tokens, n_heads * head_dim]`.
    pub out: RawRows,
    /// Queries `[n_tokens, n_heads * head_dim]`.
    pub q: RawRows,
    /// New keys `[n_tokens, n_kv_heads * head_dim]`.
    pub k_new: RawRows,
    /// New values, likewise.
    pub v_new: RawRows,
    /// The cache of the layer.
    pub cache: RawCache,
    /// The step.
    pub step: RawStep,
    /// Query heads: a multiple of the KV heads, at least 1.
    pub n_heads: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Keys that a token sees, itself included.
    pub window: Option<usize>,
    /// `[n_heads]` slopes in f32, or 0: no ALiBi.
    pub alibi: CUdeviceptr,
    /// What [`Cuda::plan_attend_raw`] wrote for this step, layout of cache, heads and window; or 0: a launch before this one works it
    /// out for this alone.
    pub plan: CUdeviceptr,
    /// [`scratch_words`] words aligned to 16 bytes, or 0: those of the [`Cuda`]. They are zero before their first use and then
    /// belong to the kernels. Launches that may run at the same time, as of graphs in two streams, need one each.
    pub scratch: CUdeviceptr,
}

/// Operands of [`Cuda::plan_attend_raw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawPlan {
    /// [`plan_words`] words aligned to 16 bytes, which are written.
    pub plan: CUdeviceptr,
    /// The cache of a layer; its pool, rings and sinks are not read.
    pub cache: RawCache,
    /// The step.
    pub step: RawStep,
    /// Query heads: a multiple of the KV heads, at least 1.
    pub n_heads: usize,
    /// Keys that a token sees, itself included.
    pub window: Option<usize>,
}

/// Operands of [`Cuda::append_raw`]; what it does is said at [`kivi_kernels::ops::Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawAppend {
    /// New keys `[n_tokens, n_kv_heads * head_dim]`.
    pub k_new: RawRows,
    /// New values, likewise.
    pub v_new: RawRows,
    /// The cache of the layer.
    pub cache: RawCache,
    /// The step.
    pub step: RawStep,
}

/// Words (of 32 bits) that attention writes besides its output, on a device of so many multiprocessors.
pub fn scratch_words(multiprocessors: usize) -> usize {
    ops::Scratch::words(multiprocessors)
}

/// Words (of 32 bits) that a plan of attention takes, on a device of so many multiprocessors.
pub fn plan_words(multiprocessors: usize) -> usize {
    ops::plan_words(multiprocessors)
}

impl<A: Act> From<&KvLayer<Cuda<A>>> for RawCache {
    fn from(cache: &KvLayer<Cuda<A>>) -> Self {
        Self {
            layout: *cache.layout(),
            n_kv_heads: cache.n_kv_heads(),
            pool: cache.pool.device_ptr(),
            rings: [cache.k_ring.device_ptr(), cache.v_ring.device_ptr()],
            sinks: [cache.k_sink.device_ptr(), cache.v_sink.device_ptr()],
        }
    }
}

impl RawStep {
    /// The planned step of `batch`, for layers of its cache group `group`.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn new<A: Act>(batch: &Batch<Cuda<A>>, group: usize) -> Self {
        let arrays = &batch.groups[group];
        Self {
            n_seqs: batch.n_seqs(),
            n_tokens: batch.n_tokens(),
            max_new: batch.max_new(),
            row_start: batch.row_start.device_ptr(),
            seq_of_row: batch.seq_of_row.device_ptr(),
            len: batch.len.device_ptr(),
            active: batch.active.device_ptr(),
            slots: arrays.slots.device_ptr(),
            page_table: arrays.page_table.device_ptr(),
            max_pages: arrays.max_pages,
            packed: [arrays.k_packed.device_ptr(), arrays.v_packed.device_ptr()],
            packed_next: [arrays.k_packed_next.device_ptr(), arrays.v_packed_next.device_ptr()],
        }
    }
}

impl<A: Act> Cuda<A> {
    /// Queues working out who does what in the attention of a step: once for all layers of one layout, heads and window. It changes
    /// no result, and nothing but the time of [`Self::attend_raw`].
    ///
    /// # Errors
    /// As for [`Self::attend_raw`].
    ///
    /// # Safety
    /// As for [`Self::attend_raw`].
    pub unsafe fn plan_attend_raw(&self, op: &RawPlan) -> Result<(), CudaError> {
        // SAFETY: as the caller says.
        unsafe { ops::plan_attend_raw(self, op) }
    }

    /// Queues attention of a step's rows over the cache before it and over themselves.
    ///
    /// # Errors
    /// A failure of the driver, or of compiling the kernels.
    ///
    /// # Safety
    /// Every array must have the shape and the contents that its field asks for when the kernels run, in memory of this
    /// context that nothing else writes (and nothing reads, where they write: `out`, `scratch`) until they are done; slots and
    /// pages must lie in rings, sinks and pool.
    pub unsafe fn attend_raw(&self, op: &RawAttend) -> Result<(), CudaError> {
        // SAFETY: as the caller says.
        unsafe { ops::attend_raw(self, op) }
    }

    /// Queues adding a step's rows to the cache.
    ///
    /// # Errors
    /// As for [`Self::attend_raw`].
    ///
    /// # Safety
    /// As for [`Self::attend_raw`]; written are pool, rings and sinks.
    pub unsafe fn append_raw(&self, op: &RawAppend) -> Result<(), CudaError> {
        // SAFETY: as the caller says.
        unsafe { ops::append_raw(self, op) }
    }

    /// Compiles and loads what [`Self::attend_raw`] and [`Self::append_raw`], and the ops `Attend` and `Append`, may launch for
    /// caches of `layout`; otherwise the first launch of each kernel does, which takes seconds, allocates and may wait.
    ///
    /// # Errors
    /// [`CudaError::Compile`], or a failure of the driver.
    pub fn prepare(&self, layout: &PageLayout, alibi: bool) -> Result<(), CudaError> {
        let rows = RawRows::default();
        let cache = RawCache { layout: *layout, n_kv_heads: 1, pool: 0, rings: [0; 2], sinks: [0; 2] };
        // Aligned rows, then others; few rows, then many.
        for (stride, max_new) in [(0, 1), (0, usize::MAX), (1, 1)] {
            let (new, step) = (RawRows { stride, ..rows }, RawStep { max_new, ..RawStep::default() });
            let (k_new, v_new, scale) = (new, new, 1.0);
            let (out, q, n_heads, window) = (rows, rows, 1, None);
            let (alibi, plan, scratch) = (CUdeviceptr::from(alibi), 0, 0);
            let attend =
                RawAttend { out, q, k_new, v_new, cache, step, n_heads, scale, window, alibi, plan, scratch };
            // SAFETY: there are no rows, so nothing is launched.
            unsafe {
                self.attend_raw(&attend)?;
                self.append_raw(&RawAppend { k_new, v_new, cache, step })?;
            }
        }
        Ok(())
    }
}
