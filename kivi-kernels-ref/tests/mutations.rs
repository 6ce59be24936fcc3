//! Wrong caches that look right: each differs from the oracle by more than the tolerance, so that the suite would
//! show it, also where activations are f16 or bf16.

mod common;

use std::sync::LazyLock;

use common::{Shape, Tokens, World, dense, distance, shape};
use kivi_kernels::DType;
use kivi_kernels_ref::Cpu;
use kivi_quant::{Bits, Packed, PageLayout, Side, page};

const N: usize = 205;
/// Tokens at the ends of the ranges.
const ENDS: [usize; 8] = [0, 140, 141, 191, 192, N - 2, N - 1, N];

/// One decode step, token `N`, after a prompt: by the oracle and by rows chosen here.
struct Step {
    shape: Shape,
    tokens: Tokens,
    oracle: Vec<f64>,
    /// The largest error that passes, for each type of activations.
    tolerances: [(DType, f64); 3],
}

impl Step {
    /// A step of random queries.
    fn random() -> Self {
        let shape = shape(Bits::B2, Bits::B2, 32, 64);
        Self::new(shape, shape.tokens(N + 1, 17))
    }

    /// Steps of queries that are `factor` times the key of a token at an end of a range, as the suite has them.
    fn picks(factor: f64) -> Vec<Self> {
        let shape = shape(Bits::B2, Bits::B2, 32, 64);
        let pick = |token: usize| {
            let mut tokens = shape.tokens(N + 1, 17);
            for head in 0..shape.gqa * shape.n_kv_heads {
                for c in 0..shape.head_dim {
                    let key = token * shape.kv_cols() + head / shape.gqa * shape.head_dim + c;
                    tokens.q[N * shape.q_cols() + head * shape.head_dim + c] = factor * tokens.k[key];
                }
            }
            Self::new(shape, tokens)
        };
        ENDS.map(pick).into()
    }

    /// All of these.
    fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Step>> = LazyLock::new(|| {
            [vec![Step::random()], Step::picks(0.75), Step::picks(2.0)].into_iter().flatten().collect()
        });
        &ALL
    }

    fn new(shape: Shape, tokens: Tokens) -> Self {
        let oracle = decode(World::single(Cpu::<f64>::new(), shape, &tokens));
        let ulp = |digits: i32| {
            let largest = oracle.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            2.0_f64.powi(largest.log2().floor() as i32 - digits)
        };
        let tolerance = |act: DType, digits: i32| {
            let rounding = (act != DType::F32).then_some(act);
            let yardstick = decode(World::single(Cpu::yardstick(rounding), shape, &tokens));
            (act, 2.0 * distance(&oracle, &yardstick) + ulp(digits))
        };
        let tolerances = [tolerance(DType::F32, 23), tolerance(DType::F16, 10), tolerance(DType::Bf16, 7)];
        Self { shape, tokens, oracle, tolerances }
    }

    fn packed(&self) -> Packed {
        self.shape.config.packed(N)
    }

    /// Token `t` in full precision.
    fn exact(&self, side: Side, head: usize, t: usize) -> Vec<f64> {
        let rows = if side == Side::Key { &self.tokens.k } else { &self.tokens.v };
        rows[t * self.shape.kv_cols() + head * self.shape.head_dim..][..self.shape.head_dim].to_vec()
    }

    /// Token `t` as it is once packed. Its group, for keys, are the 32 tokens that it is aligned with.
    fn quantized(&self, side: Side, head: usize, t: usize) -> Vec<f64> {
        let layout = self.shape.layout();
        let mut page = vec![0; layout.page_words()];
        let row =
            |t: usize| -> Vec<f32> { self.exact(side, head, t.min(N)).iter().map(|&x| x as f32).collect() };
        match side {
            Side::Key => {
                let group: Vec<f32> = (t / 32 * 32..t / 32 * 32 + 32).flat_map(row).collect();
                page::pack_keys(&layout, &mut page, 0, &group, 0);
                read(&layout, side, &page, t % 32)
            }
            Side::Value => {
                page::pack_value(&layout, &mut page, 0, &row(t));
                read(&layout, side, &page, 0)
            }
        }
    }

    /// The cache as it is: packed below the counts, exact above.
    fn right(&self, packed: Packed, side: Side, head: usize, t: usize) -> Vec<f64> {
        let limit = if side == Side::Key { packed.k } else { packed.v };
        if t < limit { self.quantized(side, head, t) } else { self.exact(side, head, t) }
    }

    /// The step's output over these rows.
    fn output(&self, rows: &[[Vec<Vec<f64>>; 2]]) -> Vec<f64> {
        let (shape, d) = (self.shape, self.shape.head_dim);
        let head = |head: usize| {
            let [keys, values] = &rows[head / shape.gqa];
            dense(&self.tokens.q[N * shape.q_cols() + head * d..][..d], keys, values)
        };
        (0..shape.gqa * shape.n_kv_heads).flat_map(head).collect()
    }
}

/// What a step sees: tokens, and the row of each.
type Seen<'a> = (core::ops::Range<usize>, &'a dyn Fn(&Step, Side, usize, usize) -> Vec<f64>);

/// Keys and values of each head; the same for all steps, which differ in their queries.
fn rows(step: &Step, (tokens, row): Seen<'_>) -> Vec<[Vec<Vec<f64>>; 2]> {
    let side = |side, head| tokens.clone().map(|t| row(step, side, head, t)).collect();
    (0..step.shape.n_kv_heads).map(|head| [side(Side::Key, head), side(Side::Value, head)]).collect()
}

/// Fails unless some step tells these rows from the oracle's, for each type of activations.
fn shows(what: &str, steps: &[Step], seen: Seen<'_>) {
    let rows = rows(&steps[0], seen);
    let mut shown = [0.0_f64; 3];
    for step in steps {
        let distance = distance(&step.oracle, &step.output(&rows));
        for (shown, (_, tolerance)) in shown.iter_mut().zip(step.tolerances) {
            *shown = shown.max(distance / tolerance);
        }
    }
    for ((shown, least), act) in shown.iter().zip([100.0, 10.0, 3.0]).zip(["f32", "f16", "bf16"]) {
        assert!(*shown > least, "{what}: {shown:.1} tolerances of {act}");
    }
}

fn decode<A: kivi_kernels_ref::Accum>(mut world: World<A>) -> Vec<f64> {
    world.append(&[N]);
    world.step(&[1])
}

fn read(layout: &PageLayout, side: Side, page: &[u32], token: usize) -> Vec<f64> {
    let mut row = vec![0.0; layout.head_dim()];
    page::read_row(layout, side, page, token, &mut row);
    row.into_iter().map(f64::from).collect()
}

#[test]
fn the_right_rows_do_not_show() {
    let steps = Step::all();
    let right = |step: &Step, side, head, t| step.right(step.packed(), side, head, t);
    let rows = rows(&steps[0], (0..N + 1, &right));
    assert!(steps.iter().all(|step| distance(&step.oracle, &step.output(&rows)) < 1e-6));
}

#[test]
fn packing_before_attending_shows() {
    let steps = Step::all();
    let next = steps[0].shape.config.packed(N + 1);
    assert_ne!(next, steps[0].packed());
    shows("packed first", steps, (0..N + 1, &|step, side, head, t| step.right(next, side, head, t)));
}

#[test]
fn an_end_that_is_off_by_one_shows() {
    let steps = Step::all();
    let Packed { k, v } = steps[0].packed();
    assert!(v < k && k < N, "all three ranges have tokens");
    assert_eq!([v - 1, v, k - 1, k], ENDS[1..5]);
    for (what, packed) in [
        ("one value more", Packed { k, v: v + 1 }),
        ("one value less", Packed { k, v: v - 1 }),
        ("one key more", Packed { k: k + 1, v }),
        ("one key less", Packed { k: k - 1, v }),
        ("values as keys", Packed { k, v: k }),
        ("keys as values", Packed { k: v, v }),
    ] {
        shows(what, steps, (0..N + 1, &|step, side, head, t| step.right(packed, side, head, t)));
    }
    let right = |step: &Step, side, head, t| step.right(step.packed(), side, head, t);
    shows("without the new token", steps, (0..N, &right));
    shows("without the first token", steps, (1..N + 1, &right));
}

#[test]
fn a_ring_that_is_off_by_one_shows() {
    let steps = Step::all();
    for side in [Side::Key, Side::Value] {
        let before = |step: &Step, s, head, t| {
            let packed = step.packed();
            let ring = t >= if s == Side::Key { packed.k } else { packed.v } && t < N;
            step.right(packed, s, head, if s == side && ring { t - 1 } else { t })
        };
        shows("the row before", steps, (0..N + 1, &before));
    }
}

#[test]
fn keys_quantized_per_token_show() {
    let per_token = |step: &Step, side, head, t| {
        if side == Side::Value || t >= step.packed().k {
            return step.right(step.packed(), side, head, t);
        }
        let layout = step.shape.layout();
        let mut page = vec![0; layout.page_words()];
        let row: Vec<f32> = step.exact(side, head, t).iter().map(|&x| x as f32).collect();
        page::pack_value(&layout, &mut page, 0, &row);
        read(&layout, Side::Value, &page, 0)
    };
    shows("per token", Step::all(), (0..N + 1, &per_token));
}

#[test]
fn groups_that_are_not_aligned_show() {
    // Groups that begin one token late: not aligned with the sequence.
    let shifted = |step: &Step, side, head, t: usize| {
        let packed = step.packed();
        if side == Side::Value || t >= packed.k {
            return step.right(packed, side, head, t);
        }
        let layout = step.shape.layout();
        let first = t.saturating_sub(1) / 32 * 32 + 1;
        let group: Vec<f32> =
            (first..first + 32).flat_map(|t| step.exact(side, head, t)).map(|x| x as f32).collect();
        let mut page = vec![0; layout.page_words()];
        page::pack_keys(&layout, &mut page, 0, &group, 0);
        read(&layout, side, &page, t.saturating_sub(first))
    };
    shows("shifted groups", Step::all(), (0..N + 1, &shifted));
}
