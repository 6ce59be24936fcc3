//! Embedding and matrix products.

use half::{bf16, f16};
use kivi_kernels::{Backend, DType, Element, StepError, Weight, ops};
use proptest::prelude::any;
use proptest::sample::select;
use proptest::strategy::{BoxedStrategy, Strategy};

use super::{Case, Grid, Outcome, Rng, round};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// `n` random weights of `dtype` on `backend`, exact in `act` too.
fn weight<B: Backend>(
    backend: &B,
    dtype: DType,
    act: DType,
    seed: u64,
    n: usize,
) -> Result<Weight<B>, B::Error> {
    let values = Rng::new(seed).normals(n, |x| round(act, round(dtype, x)));
    fn elements<T: Element>(values: &[f64]) -> Vec<T> {
        values.iter().map(|&x| T::from_f64(x)).collect()
    }
    Ok(match dtype {
        DType::F16 => Weight::F16(backend.upload(&elements::<f16>(&values))?),
        DType::Bf16 => Weight::Bf16(backend.upload(&elements::<bf16>(&values))?),
        _ => Weight::F32(backend.upload(&elements::<f32>(&values))?),
    })
}

/// Rows of a table.
#[derive(Clone, Debug)]
pub struct EmbedCase {
    vocab: usize,
    cols: usize,
    tokens: Vec<u32>,
    dtype: DType,
    pad: usize,
}

impl Case for EmbedCase {
    const OP: &'static str = "embed";

    fn by_hand() -> Vec<Self> {
        let case = |dtype, pad| Self { vocab: 50, cols: 96, tokens: vec![3, 49, 0, 3, 17], dtype, pad };
        let mut cases: Vec<Self> = DTYPES.iter().flat_map(|&d| [case(d, 0), case(d, 8)]).collect();
        cases.push(Self { tokens: vec![], ..case(DType::F32, 0) });
        cases.push(Self { vocab: 1, cols: 1, tokens: vec![0], dtype: DType::F16, pad: 1 });
        cases
    }

    fn strategy() -> BoxedStrategy<Self> {
        let shape = (1..40_usize, 1..200_usize, select(DTYPES.to_vec()), 0..5_usize);
        let case = |(vocab, cols, dtype, pad)| {
            let tokens = proptest::collection::vec(0..vocab as u32, 0..20);
            tokens.prop_map(move |tokens| Self { vocab, cols, tokens, dtype, pad })
        };
        shape.prop_flat_map(case).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let table = weight(backend, self.dtype, act, 3, self.vocab * self.cols)?;
        let tokens = backend.upload(&self.tokens)?;
        let grid = Grid::padded(self.tokens.len(), self.cols, self.pad);
        let mut out = grid.poisoned(backend)?;
        backend.embed(ops::Embed::new(grid.view_mut(&mut out)?, &table, &tokens)?)?;
        Ok(grid.read(backend, &out)?)
    }
}

/// A product with a weight matrix.
#[derive(Clone, Debug)]
pub struct LinearCase {
    rows: usize,
    in_features: usize,
    out_features: usize,
    dtype: DType,
    bias: bool,
    pad: usize,
    seed: u64,
}

impl Case for LinearCase {
    const OP: &'static str = "linear";

    fn by_hand() -> Vec<Self> {
        let mut cases = Vec::new();
        for (rows, in_features, out_features) in [
            (0, 64, 64),
            (1, 64, 256),
            (3, 80, 200),
            (17, 256, 96),
            (64, 128, 128),
            (130, 33, 65),
            (1, 1000, 301),
            (2, 512, 96),
            (4, 2048, 37),
            (8, 1024, 70),
        ] {
            for dtype in DTYPES {
                for (bias, pad) in [(false, 0), (true, 8)] {
                    cases.push(Self { rows, in_features, out_features, dtype, bias, pad, seed: 1 });
                }
            }
        }
        cases
    }

    fn strategy() -> BoxedStrategy<Self> {
        let shape = (0..40_usize, 1..150_usize, 64..150_usize, select(DTYPES.to_vec()));
        (shape, any::<bool>(), 0..4_usize, any::<u16>())
            .prop_map(|((rows, in_features, out_features, dtype), bias, pad, seed)| Self {
                rows,
                in_features,
                out_features,
                dtype,
                bias,
                pad,
                seed: seed.into(),
            })
            .boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let (n, k) = (self.out_features, self.in_features);
        let weight = weight(backend, self.dtype, act, self.seed, n * k)?;
        let mut rng = Rng::new(self.seed + 1);
        let x = rng.normals(self.rows * k, |x| round(act, x));
        let bias: Vec<f32> = rng.normals(n, |x| x).iter().map(|&x| x as f32).collect();
        let bias = if self.bias { Some(backend.upload(&bias)?) } else { None };
        let (x_grid, grid) = (Grid::padded(self.rows, k, self.pad), Grid::padded(self.rows, n, self.pad));
        let (x, mut out) = (x_grid.upload(backend, &x)?, grid.poisoned(backend)?);
        let op = ops::Linear::new(grid.view_mut(&mut out)?, x_grid.view(&x)?, &weight, bias.as_ref())?;
        backend.linear(op)?;
        Ok(grid.read(backend, &out)?)
    }
}
