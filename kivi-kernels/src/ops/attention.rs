//! Attention of new tokens over a KIVI cache.

use kivi_quant::PageLayout;

use crate::error::ensure;
use crate::{Backend, Batch, Buffer, KvLayer, Rows, RowsMut, ShapeError};

op! {
    /// Attention of each sequence's new tokens over its cache *before* the step and over themselves, exact and
    /// causal. One new token is a decode step; many over an empty cache are a prefill.
    ///
    /// # Shapes
    /// `q`, `out` `[rows, n_heads * head_dim]`, `k_new`, `v_new` `[rows, n_kv_heads * head_dim]` with the rows of
    /// `batch`; `alibi` `[n_heads]`.
    ///
    /// # Equation
    /// For query head `h` of KV head `h / (n_heads / n_kv_heads)` and a new token at position `i`:
    /// `out = sum_j p_j v_j`, `p = softmax_j(scale q . k_j + alibi_h (j - i))` over `j <= i` and, with a window
    /// `w`, `j > i - w`. Keys and values are read in three ranges: below `min(k_packed, v_packed)` both are
    /// dequantized, below the larger of the two one of them, up to `len` both come from the residual ring, and
    /// from `len` on both are the new rows, rounded to the cache's `kv_dtype`. Tokens below `sink_tokens` are read
    /// from the sinks where the side is quantized. (The KIVI code attends before it packs; the paper's
    /// Algorithm 1 the other way round.)
    ///
    /// Rows of a sequence that is not active are 0.
    Attend, AttendParts {
        /// Output rows.
        out: RowsMut<'a, B, B::Act>,
        /// Queries, rotated.
        q: Rows<'a, B, B::Act>,
        /// New keys, rotated.
        k_new: Rows<'a, B, B::Act>,
        /// New values.
        v_new: Rows<'a, B, B::Act>,
        /// The cache of the layer.
        cache: &'a KvLayer<B>,
        /// The step.
        batch: &'a Batch<B>,
        /// Which of the batch's cache groups the layer belongs to.
        group: usize,
        /// Query heads.
        n_heads: usize,
        /// Factor on `q . k`.
        scale: f32,
        /// Keys that a token sees, itself included.
        window: Option<usize>,
        /// Slope of each query head.
        alibi: Option<&'a B::Buffer<f32>>,
    }
}

op! {
    /// What the [`Attend`]s of a step have in common, worked out once for all layers of a cache group: how lengths, which lie on
    /// the device, are shared between its parts, for example. It changes no result. Without it each [`Attend`] does so for itself;
    /// a backend with nothing to work out does nothing.
    ///
    /// It holds until the next [`Batch::plan`]. A graph that its caller records must have it in itself if it has [`Attend`]s
    /// behind one.
    PlanAttend, PlanAttendParts {
        /// The step; [`crate::GroupArrays::plan`] of its group is written.
        batch: &'a mut Batch<B>,
        /// Which of the batch's cache groups.
        group: usize,
        /// A layer of the group; its pool is not read.
        cache: &'a KvLayer<B>,
        /// Query heads.
        n_heads: usize,
        /// Keys that a token sees, itself included.
        window: Option<usize>,
    }
}

impl<B: Backend> PlanAttendParts<'_, B> {
    /// Lets the [`Attend`]s of the step use the plan: for the backend, behind the op that writes it.
    pub fn done(self) {
        let (layout, kv_heads) = (*self.cache.layout(), self.cache.n_kv_heads());
        let planned = Planned { layout, kv_heads, heads: self.n_heads, window: self.window };
        self.batch.groups[self.group].planned = Some(planned);
    }
}

/// What [`PlanAttend`] was told of [`Attend`]s besides their step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    layout: PageLayout,
    kv_heads: usize,
    heads: usize,
    window: Option<usize>,
}

impl<'a, B: Backend> PlanAttend<'a, B> {
    /// Validates the operands; `window` is that of the [`Attend`]s, if they have one.
    ///
    /// # Errors
    /// If heads or group do not fit the cache, or the window is 0.
    pub fn new(
        (batch, group): (&'a mut Batch<B>, usize),
        cache: &'a KvLayer<B>,
        n_heads: usize,
        window: Option<usize>,
    ) -> Result<Self, ShapeError> {
        let op = "plan_attend";
        cache.query_heads(op, n_heads.saturating_mul(cache.layout().head_dim()))?;
        check_group(op, cache, batch, group)?;
        ensure(window != Some(0), op, "window", || "at least 1 token".into(), 0)?;
        batch.groups[group].planned = None;
        Ok(Self(PlanAttendParts { batch, group, cache, n_heads, window }))
    }
}

impl<'a, B: Backend> AttendParts<'a, B> {
    /// What [`PlanAttend`] left for this op, if it ran for its step, group, heads and window.
    pub fn plan(&self) -> Option<&'a B::Buffer<u32>> {
        let (layout, kv_heads) = (*self.cache.layout(), self.cache.n_kv_heads());
        let own = Planned { layout, kv_heads, heads: self.n_heads, window: self.window };
        let arrays = &self.batch.groups[self.group];
        (arrays.planned == Some(own)).then_some(&arrays.plan)
    }
}

impl<'a, B: Backend> Attend<'a, B> {
    /// Validates the operands; without window and ALiBi.
    ///
    /// # Errors
    /// If the shapes do not fit each other, the batch or the cache.
    pub fn new(
        out: RowsMut<'a, B, B::Act>,
        q: Rows<'a, B, B::Act>,
        (k_new, v_new): (Rows<'a, B, B::Act>, Rows<'a, B, B::Act>),
        cache: &'a KvLayer<B>,
        (batch, group): (&'a Batch<B>, usize),
        scale: f32,
    ) -> Result<Self, ShapeError> {
        let n_heads = cache.query_heads("attend", q.cols())?;
        let rows = batch.n_tokens();
        ensure(q.rows() == rows, "attend", "q", || format!("{rows} rows"), q.rows())?;
        ensure(out.shape() == q.shape(), "attend", "out", || format!("shape {:?}", q.shape()), out.shape())?;
        check_cache("attend", cache, batch, group, k_new, v_new)?;
        let (window, alibi) = (None, None);
        Ok(Self(AttendParts { out, q, k_new, v_new, cache, batch, group, n_heads, scale, window, alibi }))
    }

    /// With a sliding window: a token sees itself and the `window - 1` tokens before it.
    ///
    /// # Errors
    /// If the window is 0.
    pub fn with_window(mut self, window: usize) -> Result<Self, ShapeError> {
        ensure(window > 0, "attend", "window", || "at least 1 token".into(), window)?;
        self.0.window = Some(window);
        Ok(self)
    }

    /// With ALiBi (Press et al., arXiv 2108.12409).
    ///
    /// # Errors
    /// If there is not one slope a query head.
    pub fn with_alibi(mut self, slopes: &'a B::Buffer<f32>) -> Result<Self, ShapeError> {
        let n = self.0.n_heads;
        ensure(slopes.len() == n, "attend", "alibi", || format!("{n} slopes"), slopes.len())?;
        self.0.alibi = Some(slopes);
        Ok(self)
    }
}

/// What [`Attend`] and [`super::Append`] ask of cache, batch and new rows.
pub(super) fn check_cache<B: Backend>(
    op: &'static str,
    cache: &KvLayer<B>,
    batch: &Batch<B>,
    group: usize,
    k_new: Rows<'_, B, B::Act>,
    v_new: Rows<'_, B, B::Act>,
) -> Result<(), ShapeError> {
    let shape = (batch.n_tokens(), cache.n_kv_heads() * cache.layout().head_dim());
    let expected = || format!("shape {shape:?}");
    ensure(k_new.shape() == shape, op, "k_new", expected, k_new.shape())?;
    ensure(v_new.shape() == shape, op, "v_new", expected, v_new.shape())?;
    check_group(op, cache, batch, group)
}

/// What ops ask of a cache and its group of the batch.
fn check_group<B: Backend>(
    op: &'static str,
    cache: &KvLayer<B>,
    batch: &Batch<B>,
    group: usize,
) -> Result<(), ShapeError> {
    let groups = batch.groups.len();
    ensure(group < groups, op, "group", || format!("one of {groups} cache groups"), group)?;
    let arrays = &batch.groups[group];
    let (expected, found) = (cache.layout().config(), &arrays.config);
    ensure(found == expected, op, "group", || format!("the cache's settings {expected:?}"), found)?;
    let (pages, slots) = (cache.n_pages(), cache.n_slots());
    let found = (arrays.n_pages, batch.capacity().n_slots);
    // `Batch::plan` holds page tables and slots to these.
    ensure(found.0 <= pages, op, "batch", || format!("tables of at most {pages} pages"), found.0)?;
    ensure(found.1 <= slots, op, "batch", || format!("at most {slots} slots"), found.1)
}
