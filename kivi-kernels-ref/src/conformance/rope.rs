//! Rotary position embedding.

use kivi_kernels::{Backend, DType, StepError, ops};
use proptest::prelude::any;
use proptest::sample::select;
use proptest::strategy::{BoxedStrategy, Strategy};

use super::{Case, Grid, Outcome, Rng, round};

/// Heads to rotate.
#[derive(Clone, Debug)]
pub struct RopeCase {
    positions: Vec<u32>,
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    pad: usize,
    /// Whether rows choose between two tables of frequencies.
    tables: bool,
    scaling: f32,
    seed: u64,
}

impl Case for RopeCase {
    const OP: &'static str = "rope";

    fn by_hand() -> Vec<Self> {
        let case = Self {
            positions: vec![0, 1, 2, 77, 1000, 8191],
            heads: 3,
            head_dim: 64,
            rotary_dim: 64,
            pad: 0,
            tables: false,
            scaling: 1.0,
            seed: 1,
        };
        let mut cases = vec![
            Self { positions: vec![], ..case.clone() },
            Self { pad: 16, ..case.clone() },
            Self { rotary_dim: 32, ..case.clone() },
            Self { rotary_dim: 2, ..case.clone() },
            Self { tables: true, pad: 8, ..case.clone() },
            Self { scaling: 1.2, ..case.clone() },
        ];
        for head_dim in [16, 64, 80, 96, 128, 256] {
            cases.push(Self { head_dim, rotary_dim: head_dim, ..case.clone() });
        }
        cases
    }

    fn strategy() -> BoxedStrategy<Self> {
        let positions = proptest::collection::vec(0..10_000_u32, 1..20);
        let shape = (1..5_usize, 1..20_usize, 1..20_usize, 0..4_usize);
        (positions, shape, any::<bool>(), select(vec![1.0, 1.25]), any::<u16>())
            .prop_map(|(positions, (heads, half, rest, pad), tables, scaling, seed)| Self {
                positions,
                heads,
                head_dim: 2 * half + rest - 1,
                rotary_dim: 2 * half,
                pad,
                tables,
                scaling,
                seed: seed.into(),
            })
            .boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let (rows, cols) = (self.positions.len(), self.heads * self.head_dim);
        let grid = Grid::padded(rows, cols, self.pad);
        let mut x = grid.upload(backend, &Rng::new(self.seed).normals(rows * cols, |x| round(act, x)))?;
        let positions = backend.upload(&self.positions)?;
        let table = |base: f32| {
            let d = self.rotary_dim as f32;
            (0..self.rotary_dim / 2).map(move |j| base.powf(-2.0 * j as f32 / d))
        };
        let inv_freq = backend.upload(&table(1e4).chain(table(5e5)).collect::<Vec<_>>())?;
        let table_of_row = backend.upload(&(0..rows as u32).map(|i| i % 2).collect::<Vec<_>>())?;
        let table_of_row = self.tables.then_some(&table_of_row);
        let dims = (self.head_dim, self.rotary_dim);
        let op =
            ops::Rope::new(grid.view_mut(&mut x)?, dims, &positions, &inv_freq, table_of_row, self.scaling)?;
        backend.rope(op)?;
        Ok(grid.read(backend, &x)?)
    }
}
