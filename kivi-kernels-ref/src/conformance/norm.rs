//! Normalisation.

use kivi_kernels::{Backend, DType, StepError, ops};
use proptest::prelude::any;
use proptest::prop_oneof;
use proptest::strategy::{BoxedStrategy, Strategy};

use super::{Case, Grid, Outcome, Rng, round};

/// Rows to normalise.
#[derive(Clone, Debug)]
struct NormData {
    rows: usize,
    cols: usize,
    pad: usize,
    /// Added to every element: a mean far from 0.
    offset: f64,
    /// Factor on every element; 0 leaves `eps` alone in the root.
    size: f64,
    seed: u64,
}

impl NormData {
    fn by_hand() -> Vec<Self> {
        let data = Self { rows: 5, cols: 256, pad: 0, offset: 0.0, size: 1.0, seed: 1 };
        vec![
            data.clone(),
            Self { pad: 8, ..data.clone() },
            Self { rows: 0, ..data.clone() },
            Self { rows: 130, cols: 33, ..data.clone() },
            Self { rows: 2, cols: 5000, ..data.clone() },
            Self { rows: 2, cols: 8192, ..data.clone() },
            Self { rows: 2, cols: 8200, ..data.clone() },
            Self { offset: 10.0, ..data.clone() },
            Self { size: 1e-3, ..data.clone() },
            Self { size: 100.0, ..data.clone() },
            Self { size: 0.0, ..data },
        ]
    }

    fn strategy() -> impl Strategy<Value = Self> {
        (0..20_usize, 16..300_usize, 0..4_usize, any::<u16>()).prop_map(|(rows, cols, pad, seed)| Self {
            rows,
            cols,
            pad,
            offset: 0.0,
            size: 1.0,
            seed: seed.into(),
        })
    }

    fn grid(&self) -> Grid {
        Grid::padded(self.rows, self.cols, self.pad)
    }

    fn rows<B: Backend>(&self, backend: &B, act: DType) -> Result<B::Buffer<B::Act>, B::Error> {
        let element = |x| round(act, self.size * x + self.offset);
        self.grid().upload(backend, &Rng::new(self.seed).normals(self.rows * self.cols, element))
    }

    /// A vector of `n` elements.
    fn column<B: Backend>(&self, backend: &B, seed: u64, n: usize) -> Result<B::Buffer<f32>, B::Error> {
        let values = Rng::new(self.seed + seed).normals(n, |x| x);
        backend.upload(&values.iter().map(|&x| x as f32).collect::<Vec<_>>())
    }
}

/// A root-mean-square normalisation of `groups` groups of columns a row.
#[derive(Clone, Debug)]
pub struct RmsNormCase {
    data: NormData,
    groups: usize,
}

impl RmsNormCase {
    /// Whole rows.
    fn of(data: NormData) -> Self {
        Self { data, groups: 1 }
    }

    /// Heads of `head_dim` columns; `pad` as where queries and keys lie among others.
    fn heads(rows: usize, groups: usize, head_dim: usize, pad: usize, size: f64) -> Self {
        let data = NormData { rows, cols: groups * head_dim, pad, offset: 0.0, size, seed: 2 };
        Self { data, groups }
    }
}

impl Case for RmsNormCase {
    const OP: &'static str = "rms_norm";

    fn by_hand() -> Vec<Self> {
        let heads = [
            Self::heads(7, 8, 128, 0, 1.0),
            Self::heads(9, 4, 64, 128, 1.0),
            Self::heads(0, 4, 64, 128, 1.0),
            Self::heads(5, 3, 80, 16, 100.0),
            Self::heads(3, 2, 512, 64, 1e-3),
            Self::heads(40, 5, 6, 2, 1.0),
            Self::heads(2, 300, 1, 1, 1.0),
        ];
        NormData::by_hand().into_iter().map(Self::of).chain(heads).collect()
    }

    fn strategy() -> BoxedStrategy<Self> {
        let heads = (1..20_usize, 1..6_usize, 16..300_usize, 0..4_usize);
        let heads = heads.prop_map(|(rows, groups, n, pad)| Self::heads(rows, groups, n, pad, 1.0));
        prop_oneof![NormData::strategy().prop_map(Self::of), heads].boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let (data, grid) = (&self.data, self.data.grid());
        let (x, weight) = (data.rows(backend, act)?, data.column(backend, 1, data.cols / self.groups)?);
        let mut out = grid.poisoned(backend)?;
        backend.rms_norm(ops::RmsNorm::new(grid.view_mut(&mut out)?, grid.view(&x)?, &weight, 1e-5)?)?;
        Ok(grid.read(backend, &out)?)
    }
}

/// A layer normalisation.
#[derive(Clone, Debug)]
pub struct LayerNormCase {
    data: NormData,
    bias: bool,
}

impl Case for LayerNormCase {
    const OP: &'static str = "layer_norm";

    fn by_hand() -> Vec<Self> {
        let cases = NormData::by_hand().into_iter();
        cases.flat_map(|data| [true, false].map(|bias| Self { data: data.clone(), bias })).collect()
    }

    fn strategy() -> BoxedStrategy<Self> {
        (NormData::strategy(), any::<bool>()).prop_map(|(data, bias)| Self { data, bias }).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let (data, grid) = (&self.data, self.data.grid());
        let column = |seed| data.column(backend, seed, data.cols);
        let (x, weight, bias) = (data.rows(backend, act)?, column(1)?, column(2)?);
        let bias = self.bias.then_some(&bias);
        let mut out = grid.poisoned(backend)?;
        let op = ops::LayerNorm::new(grid.view_mut(&mut out)?, grid.view(&x)?, &weight, bias, 1e-5)?;
        backend.layer_norm(op)?;
        Ok(grid.read(backend, &out)?)
    }
}

/// A residual connection and the norm behind it.
#[derive(Clone, Debug)]
pub struct AddRmsNormCase(NormData);

impl Case for AddRmsNormCase {
    const OP: &'static str = "add_rms_norm";

    fn by_hand() -> Vec<Self> {
        NormData::by_hand().into_iter().map(Self).collect()
    }

    fn strategy() -> BoxedStrategy<Self> {
        NormData::strategy().prop_map(Self).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let (data, grid) = (&self.0, self.0.grid());
        let mut hidden = data.rows(backend, act)?;
        let x = NormData { seed: data.seed + 1, ..data.clone() }.rows(backend, act)?;
        let weight = data.column(backend, 2, data.cols)?;
        let mut out = grid.poisoned(backend)?;
        let views = (grid.view_mut(&mut out)?, grid.view_mut(&mut hidden)?, grid.view(&x)?);
        backend.add_rms_norm(ops::AddRmsNorm::new(views.0, views.1, views.2, &weight, 1e-5)?)?;
        let (mut outcome, hidden) = (grid.read(backend, &out)?, grid.read(backend, &hidden)?);
        outcome.values.extend(hidden.values);
        outcome.faults.extend(hidden.faults);
        Ok(outcome)
    }
}
