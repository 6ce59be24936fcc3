//! Elementwise operations.

use crate::error::ensure;
use crate::{Backend, Rows, RowsMut, ShapeError};

/// A scalar activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 (1 + erf(x / sqrt 2))`.
    Gelu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

op! {
    /// Activation, gated or plain.
    ///
    /// # Shapes
    /// `x`, `up`, `out` `[rows, n]`.
    ///
    /// # Equation
    /// `out = activation(x) * up`, or `activation(x)` without `up` (Shazeer, arXiv 2002.05202).
    Activate, ActivateParts {
        /// Output rows.
        out: RowsMut<'a, B, B::Act>,
        /// What the function is applied to.
        x: Rows<'a, B, B::Act>,
        /// What its result is multiplied with.
        up: Option<Rows<'a, B, B::Act>>,
        /// The function.
        activation: Activation,
    }
}

impl<'a, B: Backend> Activate<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn new(
        out: RowsMut<'a, B, B::Act>,
        x: Rows<'a, B, B::Act>,
        up: Option<Rows<'a, B, B::Act>>,
        activation: Activation,
    ) -> Result<Self, ShapeError> {
        let shape = || format!("shape {:?}", x.shape());
        let up_shape = up.map_or(x.shape(), |up| up.shape());
        ensure(out.shape() == x.shape(), "activate", "out", shape, out.shape())?;
        ensure(up_shape == x.shape(), "activate", "up", shape, up_shape)?;
        Ok(Self(ActivateParts { out, x, up, activation }))
    }
}

op! {
    /// Adds rows to rows: a residual connection.
    ///
    /// # Shapes
    /// `out`, `x` `[rows, n]`.
    ///
    /// # Equation
    /// `out = out + x`.
    Add, AddParts {
        /// Rows that are added to.
        out: RowsMut<'a, B, B::Act>,
        /// Rows to add.
        x: Rows<'a, B, B::Act>,
    }
}

impl<'a, B: Backend> Add<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn new(out: RowsMut<'a, B, B::Act>, x: Rows<'a, B, B::Act>) -> Result<Self, ShapeError> {
        ensure(out.shape() == x.shape(), "add", "out", || format!("shape {:?}", x.shape()), out.shape())?;
        Ok(Self(AddParts { out, x }))
    }
}
