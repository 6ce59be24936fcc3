//! Attention over the cache.

use kivi_kernels::{Backend, Batch, DType, Element, Spec, StepError, ops};
use kivi_quant::Side;
use proptest::strategy::{BoxedStrategy, Strategy};

use super::{CacheCase, CacheShape, Case, Grid, Outcome, Rng, cache, round};

/// Attention of a step over a cache made on the host.
#[derive(Clone, Debug)]
pub struct AttendCase(pub CacheCase);

/// The inputs of a step on a device.
pub(super) struct Inputs<B: Backend> {
    buffers: Vec<B::Buffer<B::Act>>,
    grids: [(usize, Grid); 3],
}

impl<B: Backend> Inputs<B> {
    /// Queries, keys and values of the step's rows, in one buffer or three.
    pub fn new(backend: &B, case: &CacheCase, act: DType) -> Result<Self, B::Error> {
        let n = *case.row_starts().last().unwrap_or(&0);
        let parts = [queries(case, act), new_rows(case, Side::Key, act), new_rows(case, Side::Value, act)];
        let cols = [case.q_cols(), case.kv_cols(), case.kv_cols()];
        if !case.fused {
            let pads = [case.q_pad, 0, 0];
            let grids = [0, 1, 2].map(|i| (i, Grid::padded(n, cols[i], pads[i])));
            let buffers = grids.iter().map(|(i, grid)| grid.upload(backend, &parts[*i]));
            return Ok(Self { buffers: buffers.collect::<Result<_, _>>()?, grids });
        }
        let row = |i: usize| (0..3).flat_map(move |p| (0..cols[p]).map(move |c| (p, i * cols[p] + c)));
        let values: Vec<f64> = (0..n).flat_map(row).map(|(p, at)| parts[p][at]).collect();
        let total: usize = cols.iter().sum();
        let grid = |i: usize| {
            let left = cols[..i].iter().sum();
            (0, Grid { rows: n, cols: cols[i], left, right: total - left - cols[i] })
        };
        Ok(Self {
            buffers: vec![Grid::dense(n, total).upload(backend, &values)?],
            grids: [0, 1, 2].map(grid),
        })
    }

    /// The view of queries (0), keys (1) or values (2).
    pub fn view(&self, i: usize) -> Result<kivi_kernels::Rows<'_, B, B::Act>, kivi_kernels::ShapeError> {
        let (buffer, grid) = &self.grids[i];
        grid.view(&self.buffers[*buffer])
    }
}

fn queries(case: &CacheCase, act: DType) -> Vec<f64> {
    let Some(factor) = case.picks else {
        let n = *case.row_starts().last().unwrap_or(&0) * case.q_cols();
        return Rng::new(case.seed + 5).normals(n, |x| round(act, x));
    };
    let mut queries = Vec::new();
    for (s, seq) in case.seqs.iter().enumerate() {
        let keys = case.rows(s, Side::Key, act);
        for at in seq.len..seq.end() {
            let ends = case.ends(s, at);
            for head in 0..case.gqa * case.n_kv_heads {
                let token = ends[(at + head) % ends.len()];
                let key = token * case.kv_cols() + head / case.gqa * case.head_dim;
                queries
                    .extend(keys[key..][..case.head_dim].iter().map(|x| round(act, f64::from(factor) * x)));
            }
        }
    }
    queries
}

/// The new rows of all sequences, one after the other.
fn new_rows(case: &CacheCase, side: Side, act: DType) -> Vec<f64> {
    let rows = |s: usize| case.rows(s, side, act).split_off(case.seqs[s].len * case.kv_cols());
    (0..case.seqs.len()).flat_map(rows).collect()
}

impl Case for AttendCase {
    const OP: &'static str = "attend";

    fn by_hand() -> Vec<Self> {
        cache::by_hand(false).into_iter().map(Self).collect()
    }

    fn strategy() -> BoxedStrategy<Self> {
        cache::strategy().prop_map(Self).boxed()
    }

    fn cache(&self) -> Option<CacheShape> {
        Some(self.0.shape())
    }

    fn spec(&self, act: DType) -> Option<Spec> {
        Some(self.0.spec(act))
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let case = &self.0;
        let (layer, mut batch) = (case.layer(backend, act)?, case.batch(backend)?);
        let inputs = Inputs::new(backend, case, act)?;
        let pad = if case.fused { 16 } else { case.out_pad };
        let grid = Grid::padded(batch.n_tokens(), case.q_cols(), pad);
        let slopes: Vec<f32> = (1..=case.gqa * case.n_kv_heads).map(|h| 0.5 / h as f32).collect();
        let slopes = backend.upload(&slopes)?;
        let scale = 1.0 / (case.head_dim as f32).sqrt();
        let attend = |batch: &Batch<B>| -> Result<Outcome, StepError<B::Error>> {
            let mut out = grid.poisoned(backend)?;
            let new = (inputs.view(1)?, inputs.view(2)?);
            let view = grid.view_mut(&mut out)?;
            let op = ops::Attend::new(view, inputs.view(0)?, new, &layer, (batch, 1), scale)?;
            let op = if let Some(window) = case.window { op.with_window(window)? } else { op };
            backend.attend(if case.alibi { op.with_alibi(&slopes)? } else { op })?;
            Ok(grid.read(backend, &out)?)
        };
        let mut outcome = attend(&batch)?;
        if backend.attend_plan_words() > 0 {
            let heads = case.gqa * case.n_kv_heads;
            backend.plan_attend(ops::PlanAttend::new((&mut batch, 1), &layer, heads, case.window)?)?;
            if attend(&batch)?.values != outcome.values {
                outcome.faults.push("with a plan the result is another".to_owned());
            }
        }
        self.check_inactive(&batch, &mut outcome);
        Ok(outcome)
    }
}

impl AttendCase {
    /// Rows of a sequence that is not active are 0.
    fn check_inactive<B: Backend>(&self, batch: &Batch<B>, outcome: &mut Outcome) {
        let cols = self.0.q_cols();
        for (s, seq) in self.0.seqs.iter().enumerate().filter(|(_, seq)| !seq.active) {
            let start = batch.host_row_starts()[s] * cols;
            if outcome.values[start..start + seq.new * cols]
                .iter()
                .any(|&x| x != B::Act::from_f64(0.0).to_f64())
            {
                outcome.faults.push(format!("rows of inactive sequence {s} are not 0"));
            }
        }
    }
}
