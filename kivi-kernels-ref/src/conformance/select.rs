//! Choosing rows and tokens.

use kivi_kernels::{Backend, Buffer, DType, StepError, ops};
use proptest::prelude::any;
use proptest::strategy::{BoxedStrategy, Strategy};

use super::{Case, Grid, Outcome, Rng, round};

/// What an index that nobody wrote reads as.
pub(super) const POISON: u32 = 0xDEAD_BEEF;

/// Reads `indices`; whatever lies behind the first `n` must be untouched.
pub(super) fn read_indices<B: Backend>(
    backend: &B,
    indices: &B::Buffer<u32>,
    n: usize,
) -> Result<Outcome, B::Error> {
    let mut words = vec![0; indices.len()];
    backend.read(indices, 0, &mut words)?;
    let rest = words.split_off(n);
    let touched = rest.iter().any(|&x| x != POISON);
    let faults = if touched { vec!["wrote behind the indices".into()] } else { Vec::new() };
    Ok(Outcome { words, faults, ..Outcome::default() })
}

/// Chosen rows.
#[derive(Clone, Debug)]
pub struct GatherCase {
    n: usize,
    cols: usize,
    rows: Vec<u32>,
    pad: usize,
}

impl Case for GatherCase {
    const OP: &'static str = "gather";

    fn by_hand() -> Vec<Self> {
        [vec![], vec![6], vec![6, 0, 3, 3]].map(|rows| Self { n: 7, cols: 96, rows, pad: 4 }).into()
    }

    fn strategy() -> BoxedStrategy<Self> {
        let case = |(n, cols, pad): (usize, usize, usize)| {
            let rows = proptest::collection::vec(0..n as u32, 0..10);
            rows.prop_map(move |rows| Self { n, cols, rows, pad })
        };
        (1..20_usize, 1..200_usize, 0..4_usize).prop_flat_map(case).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let x_grid = Grid::padded(self.n, self.cols, self.pad);
        let x = x_grid.upload(backend, &Rng::new(4).normals(self.n * self.cols, |x| round(act, x)))?;
        let rows = backend.upload(&self.rows)?;
        let grid = Grid::padded(self.rows.len(), self.cols, self.pad);
        let mut out = grid.poisoned(backend)?;
        backend.gather(ops::Gather::new(grid.view_mut(&mut out)?, x_grid.view(&x)?, &rows)?)?;
        Ok(grid.read(backend, &out)?)
    }
}

/// Logits to choose from.
#[derive(Clone, Debug)]
pub(super) struct Logits {
    /// Rows.
    pub(super) rows: usize,
    /// Columns.
    pub(super) vocab: usize,
    /// Foreign columns.
    pub(super) pad: usize,
    /// Steps between logits: coarse ones have equals.
    pub(super) step: f64,
    /// What the first and a middle element of every other row are instead.
    pub(super) odd: Option<f64>,
    /// Of the random numbers.
    pub(super) seed: u64,
}

impl Logits {
    fn by_hand() -> Vec<Self> {
        let logits = Self { rows: 3, vocab: 1000, pad: 0, step: 1e-3, odd: None, seed: 1 };
        vec![
            logits.clone(),
            Self { pad: 8, ..logits.clone() },
            Self { rows: 0, ..logits.clone() },
            Self { step: 0.5, rows: 8, ..logits.clone() },
            Self { vocab: 9, ..logits.clone() },
            Self { rows: 1, vocab: 33_001, ..logits.clone() },
            Self { odd: Some(f64::NAN), ..logits },
        ]
    }

    pub(super) fn strategy() -> impl Strategy<Value = Self> {
        (0..5_usize, 12..500_usize, 0..4_usize, any::<bool>(), any::<bool>(), any::<u16>()).prop_map(
            |(rows, vocab, pad, coarse, nan, seed)| Self {
                rows,
                vocab,
                pad,
                step: if coarse { 0.25 } else { 1e-3 },
                odd: nan.then_some(f64::NAN),
                seed: seed.into(),
            },
        )
    }

    pub(super) fn grid(&self) -> Grid {
        Grid::padded(self.rows, self.vocab, self.pad)
    }

    pub(super) fn upload<B: Backend>(&self, backend: &B, act: DType) -> Result<B::Buffer<B::Act>, B::Error> {
        let n = self.rows * self.vocab;
        let mut x = Rng::new(self.seed).normals(n, |x| round(act, (x / self.step).round() * self.step));
        if let Some(odd) = self.odd {
            x.iter_mut().step_by(2 * self.vocab).for_each(|x| *x = odd);
            x.iter_mut().skip(self.vocab / 2).step_by(2 * self.vocab).for_each(|x| *x = odd);
        }
        self.grid().upload(backend, &x)
    }
}

/// The largest of each row.
#[derive(Clone, Debug)]
pub struct ArgmaxCase(Logits);

impl Case for ArgmaxCase {
    const OP: &'static str = "argmax";

    fn by_hand() -> Vec<Self> {
        let infinite = [f64::INFINITY, f64::NEG_INFINITY].map(|odd| Logits {
            rows: 3,
            vocab: 300,
            pad: 0,
            step: 1e-3,
            odd: Some(odd),
            seed: 2,
        });
        Logits::by_hand().into_iter().chain(infinite).map(Self).collect()
    }

    fn strategy() -> BoxedStrategy<Self> {
        Logits::strategy().prop_map(Self).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let logits = self.0.upload(backend, act)?;
        let mut out = backend.upload(&vec![POISON; self.0.rows + 3])?;
        backend.argmax(ops::Argmax::new(&mut out, self.0.grid().view(&logits)?)?)?;
        Ok(read_indices(backend, &out, self.0.rows)?)
    }
}

/// The largest few of each row.
#[derive(Clone, Debug)]
pub struct TopKCase {
    logits: Logits,
    k: usize,
}

impl Case for TopKCase {
    const OP: &'static str = "top_k";

    fn by_hand() -> Vec<Self> {
        let cases = Logits::by_hand().into_iter();
        cases.flat_map(|logits| [1, 8].map(|k| Self { logits: logits.clone(), k })).collect()
    }

    fn strategy() -> BoxedStrategy<Self> {
        (Logits::strategy(), 0..10_usize).prop_map(|(logits, k)| Self { logits, k }).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let (rows, k) = (self.logits.rows, self.k);
        let logits = self.logits.upload(backend, act)?;
        let grid = Grid::padded(rows, k, self.logits.pad);
        let mut values = grid.poisoned(backend)?;
        let mut indices = backend.upload(&vec![POISON; rows * k + 3])?;
        let logits = self.logits.grid().view(&logits)?;
        backend.top_k(ops::TopK::new(grid.view_mut(&mut values)?, &mut indices, logits)?)?;
        let words = read_indices(backend, &indices, rows * k)?;
        let values = grid.read(backend, &values)?;
        let faults = [values.faults, words.faults].concat();
        Ok(Outcome { values: values.values, words: words.words, faults })
    }
}
