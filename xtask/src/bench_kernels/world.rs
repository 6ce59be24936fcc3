//! A case on a device: layers, a step over them, operands.

use kivi_kernels::{
    Backend, Batch, BatchCapacity, Element, GroupStep, KvLayer, Rows, RowsMut, SeqStep, StepError, StepPlan,
    ops,
};
use kivi_kernels_ref::conformance::Rng;
use kivi_quant::{CacheBytes, Packed, Side};

use super::case::{Case, Kind};
use super::measure::Measured;
use super::pattern::{Inputs, Pattern};
use super::shape::HEAD_DIM;

/// Bytes that the sets of a case have together, so that nothing of one is in the L2 cache when its turn comes again.
const PAST_L2: usize = 512 << 20;
/// Most sets, and most memory that more than one set takes.
const MAX_SETS: usize = 256;
const MAX_BYTES: usize = 16 << 30;

/// Sets of `bytes` bytes each that take turns.
pub fn sets_of(bytes: usize) -> usize {
    PAST_L2.div_ceil(bytes.max(1)).clamp(1, MAX_SETS)
}

/// Sets of `case` for which there are `free` bytes; 0 if not even one fits.
pub fn sets(case: &Case, free: usize) -> usize {
    let one = memory_of_set(case);
    if case.kind == Kind::Plan {
        return usize::from(one <= free);
    }
    sets_of(case.bytes()).min((MAX_BYTES / one).max(1)).min(free / one)
}

/// Device memory that one set takes.
pub fn memory_of_set(case: &Case) -> usize {
    let shape = case.shape;
    let tokens = case.len() + case.new_tokens();
    let cache = CacheBytes::allocated_by_head(&case.layout, tokens) * shape.n_kv_heads;
    let rows = case.new_tokens() * 2 * (shape.n_heads + shape.n_kv_heads) * 4 * case.layout.row_words();
    shape.batch * (cache + rows)
}

/// Sets of layer and operands, all with the same step. Page tables are scattered, as they are after some use.
pub struct World<'a, D: Backend> {
    case: &'a Case,
    tables: Vec<Vec<u32>>,
    batch: Batch<D>,
    sets: Vec<Set<D>>,
}

struct Set<D: Backend> {
    layer: KvLayer<D>,
    /// Queries, keys, values.
    rows: [D::Buffer<D::Act>; 3],
    out: D::Buffer<D::Act>,
}

impl<'a, D: Measured> World<'a, D> {
    /// `sets` sets, with caches made of `pattern` if they are read.
    pub fn new(
        device: &D,
        case: &'a Case,
        (pattern, inputs): (&Pattern, &Inputs<D::Act>),
        sets: usize,
    ) -> Result<Self, StepError<D::Error>> {
        let (batch, config) = (case.shape.batch, case.layout.config());
        let pages = config.pages(case.len() + case.new_tokens()).max(1);
        let order = Rng::new(3).permutation(batch * pages);
        let tables: Vec<Vec<u32>> = order.chunks(pages).map(<[u32]>::to_vec).collect();
        let sets = (0..sets).map(|_| Set::new(device, case, (pattern, inputs), batch * pages));
        let sets = sets.collect::<Result<_, _>>()?;
        let mut world = Self { case, batch: plan(device, case, &tables)?, tables, sets };
        world.plan_attend(device)?;
        Ok(world)
    }

    /// Works out what the `attend`s of all sets share, as those of a model's layers do.
    fn plan_attend(&mut self, device: &D) -> Result<(), StepError<D::Error>> {
        let (layer, n_heads) = (&self.sets[0].layer, self.case.shape.n_heads);
        Ok(device.plan_attend(ops::PlanAttend::new((&mut self.batch, 0), layer, n_heads, None)?)?)
    }

    /// `attend`, its plan or `append`, on one set.
    pub fn launch(&mut self, device: &D, set: usize) -> Result<(), StepError<D::Error>> {
        if self.case.kind == Kind::Plan {
            return self.plan_attend(device);
        }
        let Self { case, batch, sets, .. } = self;
        let Set { layer, rows: [q, k, v], out } = &mut sets[set];
        let n = batch.n_tokens();
        let (q_cols, kv_cols) = (case.shape.n_heads * HEAD_DIM, case.shape.n_kv_heads * HEAD_DIM);
        let new = (Rows::new(k, n, kv_cols)?, Rows::new(v, n, kv_cols)?);
        if !case.is_attend() {
            return Ok(device.append(ops::Append::new(new, layer, (batch, 0))?)?);
        }
        let (out, q) = (RowsMut::new(out, n, q_cols)?, Rows::new(q, n, q_cols)?);
        Ok(device.attend(ops::Attend::new(out, q, new, layer, (batch, 0), scale())?)?)
    }

    /// The relative error of the last output row of the last head of the last set, in the Euclidean norm; infinite if that
    /// is no number.
    pub fn error(
        &self,
        device: &D,
        (pattern, inputs): (&Pattern, &Inputs<D::Act>),
    ) -> Result<f64, StepError<D::Error>> {
        let mut found = vec![D::Act::from_f64(0.0); HEAD_DIM];
        let heads = self.batch.n_tokens() * self.case.shape.n_heads;
        let out = &self.sets.last().expect("there is a set").out;
        device.read(out, (heads - 1) * HEAD_DIM, &mut found)?;
        let expected = self.expected(pattern, inputs);
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let difference = norm(&mut found.iter().zip(&expected).map(|(x, y)| x.to_f64() - y));
        let error = difference / norm(&mut expected.iter().copied());
        Ok(if error.is_finite() { error } else { f64::INFINITY })
    }

    /// That row by the equation of [`ops::Attend`], from what the pattern holds.
    fn expected(&self, pattern: &Pattern, inputs: &Inputs<D::Act>) -> Vec<f64> {
        let end = self.case.len() + self.case.new_tokens();
        let q: Vec<f64> = inputs.row(0, self.batch.n_tokens() * self.case.shape.n_heads - 1).collect();
        let rows = |side| (0..end).map(move |t| self.row(pattern, inputs, side, t));
        let dot = |row: Vec<f64>| q.iter().zip(row).map(|(q, k)| q * k).sum::<f64>() * f64::from(scale());
        let logits: Vec<f64> = rows(Side::Key).map(dot).collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let mut out = vec![0.0; HEAD_DIM];
        for (weight, row) in weights.iter().zip(rows(Side::Value)) {
            out.iter_mut().zip(row).for_each(|(out, v)| *out += weight * v);
        }
        let total: f64 = weights.iter().sum();
        out.iter_mut().for_each(|x| *x /= total);
        out
    }

    /// The row of token `t` of the last head of the last sequence.
    fn row(&self, pattern: &Pattern, inputs: &Inputs<D::Act>, side: Side, t: usize) -> Vec<f64> {
        let (case, config) = (self.case, self.case.layout.config());
        let (heads, seq) = (case.shape.n_kv_heads, case.shape.batch - 1);
        let Packed { k, v } = config.packed(case.len());
        let packed = if side == Side::Key { k } else { v };
        let exact = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect();
        if t >= case.len() {
            let row = seq * case.new_tokens() + t - case.len();
            let which = if side == Side::Key { 1 } else { 2 };
            return inputs.row(which, (row + 1) * heads - 1).collect();
        }
        if t >= packed {
            let residual = config.residual_length();
            let head = (seq + 1) * heads - 1;
            return exact(pattern.ring_row(side, head * residual + t % residual));
        }
        let page = self.tables[seq][t / config.page_tokens()] as usize;
        exact(pattern.page_row(side, (page + 1) * heads - 1, t % config.page_tokens()))
    }
}

/// Twice the usual one: logits of random rows have a deviation of 2, so that the output is no mean of all values.
fn scale() -> f32 {
    2.0 / (HEAD_DIM as f32).sqrt()
}

impl<D: Measured> Set<D> {
    fn new(
        device: &D,
        case: &Case,
        (pattern, inputs): (&Pattern, &Inputs<D::Act>),
        n_pages: usize,
    ) -> Result<Self, D::Error> {
        let (shape, rows) = (case.shape, case.shape.batch * case.new_tokens());
        let mut layer = KvLayer::new(device, case.layout, shape.n_kv_heads, n_pages, shape.batch)?;
        if case.len() > 0 {
            device.repeat(&mut layer.pool, &pattern.pages)?;
            device.repeat(&mut layer.k_ring, &pattern.rings[0])?;
            device.repeat(&mut layer.v_ring, &pattern.rings[1])?;
        }
        let random = |which: usize, heads: usize| {
            let mut buffer = device.zeros(rows * heads * HEAD_DIM)?;
            device.repeat(&mut buffer, &inputs.0[which])?;
            Ok(buffer)
        };
        Ok(Self {
            layer,
            rows: [random(0, shape.n_heads)?, random(1, shape.n_kv_heads)?, random(2, shape.n_kv_heads)?],
            out: device.zeros(rows * shape.n_heads * HEAD_DIM)?,
        })
    }
}

/// The step: each sequence has its own slot and pages.
fn plan<D: Backend>(device: &D, case: &Case, tables: &[Vec<u32>]) -> Result<Batch<D>, StepError<D::Error>> {
    let (batch, config) = (case.shape.batch, *case.layout.config());
    let n_pages = tables.iter().flatten().max().map_or(0, |&page| page as usize + 1);
    let capacity = BatchCapacity {
        max_seqs: batch,
        max_tokens: batch * case.new_tokens(),
        max_pages: vec![tables[0].len()],
        n_pages: vec![n_pages],
        n_slots: batch,
    };
    let mut planned = Batch::new(device, capacity, &[config])?;
    let tokens = vec![0; case.new_tokens()];
    let (packed, packed_next) = (config.packed(case.len()), config.packed(case.len() + case.new_tokens()));
    let seqs = tables.iter().enumerate().map(|(slot, pages)| SeqStep {
        tokens: &tokens,
        len: case.len(),
        active: true,
        groups: vec![GroupStep { slot, pages, packed, packed_next }],
    });
    planned.plan(device, &StepPlan { seqs: seqs.collect() })?;
    Ok(planned)
}
