//! Elementwise operations.

use kivi_kernels::ops::Activation;
use kivi_kernels::{Backend, DType, StepError, ops};
use proptest::prelude::any;
use proptest::sample::select;
use proptest::strategy::{BoxedStrategy, Strategy};

use super::{Case, Grid, Outcome, Rng, round};

const ACTIVATIONS: [Activation; 4] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

/// An activation, gated or not. Gate and factor are column ranges of one buffer.
#[derive(Clone, Debug)]
pub struct ActivateCase {
    rows: usize,
    cols: usize,
    pad: usize,
    activation: Activation,
    gated: bool,
    /// Factor on every element: 30 reaches both flat ends.
    size: f64,
}

impl Case for ActivateCase {
    const OP: &'static str = "activate";

    fn by_hand() -> Vec<Self> {
        let mut cases = Vec::new();
        for activation in ACTIVATIONS {
            for (gated, size) in [(true, 1.0), (false, 1.0), (true, 30.0)] {
                for (rows, cols, pad) in [(0, 8, 0), (1, 512, 0), (7, 100, 8)] {
                    cases.push(Self { rows, cols, pad, activation, gated, size });
                }
            }
        }
        cases
    }

    fn strategy() -> BoxedStrategy<Self> {
        (0..20_usize, 64..300_usize, 0..4_usize, select(ACTIVATIONS.to_vec()), any::<bool>())
            .prop_map(|(rows, cols, pad, activation, gated)| Self {
                rows,
                cols,
                pad,
                activation,
                gated,
                size: 2.0,
            })
            .boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let both = Grid::dense(self.rows, 2 * self.cols);
        let element = |x| round(act, self.size * x);
        let x = both.upload(backend, &Rng::new(9).normals(2 * self.rows * self.cols, element))?;
        let (gate, up) =
            (both.view(&x)?.columns(0..self.cols)?, both.view(&x)?.columns(self.cols..2 * self.cols)?);
        let grid = Grid::padded(self.rows, self.cols, self.pad);
        let mut out = grid.poisoned(backend)?;
        let up = self.gated.then_some(up);
        backend.activate(ops::Activate::new(grid.view_mut(&mut out)?, gate, up, self.activation)?)?;
        Ok(grid.read(backend, &out)?)
    }
}

/// A residual connection.
#[derive(Clone, Debug)]
pub struct AddCase {
    rows: usize,
    cols: usize,
    pad: usize,
}

impl Case for AddCase {
    const OP: &'static str = "add";

    fn by_hand() -> Vec<Self> {
        [(0, 8, 0), (1, 1, 0), (1, 500, 0), (9, 130, 8)]
            .map(|(rows, cols, pad)| Self { rows, cols, pad })
            .into()
    }

    fn strategy() -> BoxedStrategy<Self> {
        (0..20_usize, 1..300_usize, 0..4_usize).prop_map(|(rows, cols, pad)| Self { rows, cols, pad }).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let n = self.rows * self.cols;
        let mut rng = Rng::new(n as u64);
        let (grid, x_grid) =
            (Grid::padded(self.rows, self.cols, self.pad), Grid::dense(self.rows, self.cols));
        let mut out = grid.upload(backend, &rng.normals(n, |x| round(act, x)))?;
        let x = x_grid.upload(backend, &rng.normals(n, |x| round(act, x)))?;
        backend.add(ops::Add::new(grid.view_mut(&mut out)?, x_grid.view(&x)?)?)?;
        Ok(grid.read(backend, &out)?)
    }
}
