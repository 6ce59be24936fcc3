//! Wrong caches that look right: each differs from the oracle by far more than the tolerance, so that the suite
//! would show it.

mod common;

use common::{Shape, Tokens, World, dense, distance, shape};
use kivi_kernels_ref::Cpu;
use kivi_quant::{Bits, Packed, PageLayout, Side, page};

const N: usize = 205;

/// One decode step, token `N`, after a prompt: by the oracle, by the yardstick, and by rows chosen here.
struct Step {
    shape: Shape,
    tokens: Tokens,
    oracle: Vec<f64>,
    yardstick_err: f64,
}

impl Step {
    fn new() -> Self {
        let shape = shape(Bits::B2, Bits::B2, 32, 64);
        let tokens = shape.tokens(N + 1, 17);
        let oracle = decode(World::single(Cpu::<f64>::new(), shape, &tokens));
        let yardstick = decode(World::single(Cpu::yardstick(None), shape, &tokens));
        let yardstick_err = distance(&oracle, &yardstick);
        Self { shape, tokens, oracle, yardstick_err }
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

    /// The step's output if the row of token `t` is `row(side, head, t)` and tokens `tokens` are seen.
    fn output(
        &self,
        tokens: core::ops::Range<usize>,
        row: &dyn Fn(Side, usize, usize) -> Vec<f64>,
    ) -> Vec<f64> {
        let (shape, d) = (self.shape, self.shape.head_dim);
        let head = |head: usize| {
            let rows = |side| -> Vec<_> { tokens.clone().map(|t| row(side, head / shape.gqa, t)).collect() };
            dense(&self.tokens.q[N * shape.q_cols() + head * d..][..d], &rows(Side::Key), &rows(Side::Value))
        };
        (0..shape.gqa * shape.n_kv_heads).flat_map(head).collect()
    }

    /// Fails unless a step over these rows is told from the oracle's.
    fn shows(&self, what: &str, row: &dyn Fn(Side, usize, usize) -> Vec<f64>) {
        self.differs(what, &self.output(0..N + 1, row));
    }

    fn differs(&self, what: &str, output: &[f64]) {
        let tolerance = 2.0 * self.yardstick_err + f64::from(f32::EPSILON);
        let distance = distance(&self.oracle, output);
        assert!(distance > 100.0 * tolerance, "{what}: {distance:e}, tolerance {tolerance:e}");
    }
}

fn decode<A: kivi_kernels_ref::Accum>(mut world: World<A>) -> Vec<f64> {
    world.step(&[N]);
    world.step(&[1])
}

fn read(layout: &PageLayout, side: Side, page: &[u32], token: usize) -> Vec<f64> {
    let mut row = vec![0.0; layout.head_dim()];
    page::read_row(layout, side, page, token, &mut row);
    row.into_iter().map(f64::from).collect()
}

#[test]
fn the_right_rows_do_not_show() {
    let step = Step::new();
    let output = step.output(0..N + 1, &|side, head, t| step.right(step.packed(), side, head, t));
    assert!(distance(&step.oracle, &output) < 1e-6);
}

#[test]
fn packing_before_attending_shows() {
    let step = Step::new();
    let next = step.shape.config.packed(N + 1);
    assert_ne!(next, step.packed());
    step.shows("packed first", &|side, head, t| step.right(next, side, head, t));
}

#[test]
fn an_end_that_is_off_by_one_shows() {
    let step = Step::new();
    let Packed { k, v } = step.packed();
    assert!(v < k && k < N, "all three ranges have tokens");
    for (what, packed) in [
        ("one value more", Packed { k, v: v + 1 }),
        ("one value less", Packed { k, v: v - 1 }),
        ("one key more", Packed { k: k + 1, v }),
        ("one key less", Packed { k: k - 1, v }),
        ("values as keys", Packed { k, v: k }),
        ("keys as values", Packed { k: v, v }),
    ] {
        step.shows(what, &|side, head, t| step.right(packed, side, head, t));
    }
    let right = |side, head, t| step.right(step.packed(), side, head, t);
    step.differs("without the new token", &step.output(0..N, &right));
    step.differs("without the first token", &step.output(1..N + 1, &right));
}

#[test]
fn a_ring_that_is_off_by_one_shows() {
    let step = Step::new();
    for side in [Side::Key, Side::Value] {
        step.shows("the row before", &|s, head, t| {
            let packed = step.packed();
            let ring = t >= if s == Side::Key { packed.k } else { packed.v } && t < N;
            step.right(packed, s, head, if s == side && ring { t - 1 } else { t })
        });
    }
}

#[test]
fn keys_quantized_per_token_show() {
    let step = Step::new();
    step.shows("per token", &|side, head, t| {
        if side == Side::Value || t >= step.packed().k {
            return step.right(step.packed(), side, head, t);
        }
        let layout = step.shape.layout();
        let mut page = vec![0; layout.page_words()];
        let row: Vec<f32> = step.exact(side, head, t).iter().map(|&x| x as f32).collect();
        page::pack_value(&layout, &mut page, 0, &row);
        read(&layout, Side::Value, &page, 0)
    });
}

#[test]
fn groups_that_are_not_aligned_show() {
    let step = Step::new();
    // Groups that begin one token late: not aligned with the sequence.
    step.shows("shifted groups", &|side, head, t| {
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
    });
}
