//! Normalisation of rows.

use super::{Add, AddParts};
use crate::error::ensure;
use crate::{Backend, Buffer, Rows, RowsMut, ShapeError};

op! {
    /// Root-mean-square normalisation of each row, or of each head of each row.
    ///
    /// # Shapes
    /// `x`, `out` `[rows, groups * n]`; `weight` `[n]`. A row has one group, or one a head.
    ///
    /// # Equation
    /// For each group of `n` columns, by itself: `out = x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich,
    /// arXiv 1910.07467; of the heads of queries and keys: Dehghani et al., arXiv 2302.05442, section 3.1).
    RmsNorm, RmsNormParts {
        /// Output rows.
        out: RowsMut<'a, B, B::Act>,
        /// Input rows.
        x: Rows<'a, B, B::Act>,
        /// Scale of each column of a group.
        weight: &'a B::Buffer<f32>,
        /// Added to the mean square.
        eps: f32,
    }
}

impl<'a, B: Backend> RmsNorm<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes differ, or rows are not groups of `weight.len()` columns.
    pub fn new(
        out: RowsMut<'a, B, B::Act>,
        x: Rows<'a, B, B::Act>,
        weight: &'a B::Buffer<f32>,
        eps: f32,
    ) -> Result<Self, ShapeError> {
        ensure(
            out.shape() == x.shape(),
            "rms_norm",
            "out",
            || format!("shape {:?}", x.shape()),
            out.shape(),
        )?;
        let groups = !weight.is_empty() && x.cols().is_multiple_of(weight.len());
        let expected = || format!("{} elements or a divisor of that", x.cols());
        ensure(groups, "rms_norm", "weight", expected, weight.len())?;
        Ok(Self(RmsNormParts { out, x, weight, eps }))
    }
}

op! {
    /// A residual connection and the norm behind it, [`Add`] and then [`RmsNorm`] of whole rows.
    ///
    /// # Shapes
    /// `out`, `hidden`, `x` `[rows, n]`; `weight` `[n]`.
    ///
    /// # Equation
    /// `hidden = hidden + x`, rounded to the type of activations, and `out = hidden / sqrt(mean(hidden^2) + eps) * weight`.
    AddRmsNorm, AddRmsNormParts {
        /// The rows' norms.
        out: RowsMut<'a, B, B::Act>,
        /// What is added to.
        hidden: RowsMut<'a, B, B::Act>,
        /// What is added.
        x: Rows<'a, B, B::Act>,
        /// Scale of each column.
        weight: &'a B::Buffer<f32>,
        /// Added to the mean square.
        eps: f32,
    }
}

impl<'a, B: Backend> AddRmsNorm<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn new(
        out: RowsMut<'a, B, B::Act>,
        hidden: RowsMut<'a, B, B::Act>,
        x: Rows<'a, B, B::Act>,
        weight: &'a B::Buffer<f32>,
        eps: f32,
    ) -> Result<Self, ShapeError> {
        let (op, shape) = ("add_rms_norm", || format!("shape {:?}", x.shape()));
        ensure(out.shape() == x.shape(), op, "out", shape, out.shape())?;
        ensure(hidden.shape() == x.shape(), op, "hidden", shape, hidden.shape())?;
        let n = || format!("{} elements", x.cols());
        ensure(weight.len() == x.cols(), op, "weight", n, weight.len())?;
        Ok(Self(AddRmsNormParts { out, hidden, x, weight, eps }))
    }

    /// The first half.
    pub fn add(&mut self) -> Add<'_, B> {
        Add(AddParts { out: self.0.hidden.reborrow(), x: self.0.x })
    }

    /// The second half.
    pub fn norm(&mut self) -> RmsNorm<'_, B> {
        let AddRmsNormParts { out, hidden, weight, eps, .. } = &mut self.0;
        RmsNorm(RmsNormParts { out: out.reborrow(), x: hidden.as_rows(), weight, eps: *eps })
    }
}

op! {
    /// Layer normalisation of each row.
    ///
    /// # Shapes
    /// `x`, `out` `[rows, n]`; `weight`, `bias` `[n]`.
    ///
    /// # Equation
    /// `out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias` (Ba et al., arXiv 1607.06450).
    LayerNorm, LayerNormParts {
        /// Output rows.
        out: RowsMut<'a, B, B::Act>,
        /// Input rows.
        x: Rows<'a, B, B::Act>,
        /// Scale of each column.
        weight: &'a B::Buffer<f32>,
        /// Offset of each column.
        bias: Option<&'a B::Buffer<f32>>,
        /// Added to the variance.
        eps: f32,
    }
}

impl<'a, B: Backend> LayerNorm<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn new(
        out: RowsMut<'a, B, B::Act>,
        x: Rows<'a, B, B::Act>,
        weight: &'a B::Buffer<f32>,
        bias: Option<&'a B::Buffer<f32>>,
        eps: f32,
    ) -> Result<Self, ShapeError> {
        let n = || format!("{} elements", x.cols());
        ensure(
            out.shape() == x.shape(),
            "layer_norm",
            "out",
            || format!("shape {:?}", x.shape()),
            out.shape(),
        )?;
        ensure(weight.len() == x.cols(), "layer_norm", "weight", n, weight.len())?;
        let bias_len = bias.map_or(x.cols(), Buffer::len);
        ensure(bias_len == x.cols(), "layer_norm", "bias", n, bias_len)?;
        Ok(Self(LayerNormParts { out, x, weight, bias, eps }))
    }
}
