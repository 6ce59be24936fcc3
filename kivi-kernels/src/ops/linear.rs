//! Embedding and matrix products with weights.

use crate::error::ensure;
use crate::{Backend, Buffer, Rows, RowsMut, ShapeError, Weight};

op! {
    /// Rows of an embedding table.
    ///
    /// # Shapes
    /// `table` `[vocab_size, n]`; `tokens` at least `rows` elements; `out` `[rows, n]`.
    ///
    /// # Equation
    /// `out[i] = table[tokens[i]]`; the caller keeps tokens below `vocab_size`.
    Embed, EmbedParts {
        /// Output rows.
        out: RowsMut<'a, B, B::Act>,
        /// The table.
        table: &'a Weight<B>,
        /// Row of the table for each output row.
        tokens: &'a B::Buffer<u32>,
    }
}

impl<'a, B: Backend> Embed<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        out: RowsMut<'a, B, B::Act>,
        table: &'a Weight<B>,
        tokens: &'a B::Buffer<u32>,
    ) -> Result<Self, ShapeError> {
        let whole = out.cols() > 0 && table.len().is_multiple_of(out.cols());
        ensure(whole, "embed", "table", || format!("rows of {} elements", out.cols()), table.len())?;
        ensure(
            tokens.len() >= out.rows(),
            "embed",
            "tokens",
            || format!("{} elements", out.rows()),
            tokens.len(),
        )?;
        Ok(Self(EmbedParts { out, table, tokens }))
    }
}

op! {
    /// Product with a weight matrix.
    ///
    /// # Shapes
    /// `x` `[rows, in_features]`; `weight` `[out_features, in_features]`; `bias` `[out_features]`; `out`
    /// `[rows, out_features]`.
    ///
    /// # Equation
    /// `out = x weight^T + bias`.
    Linear, LinearParts {
        /// Output rows.
        out: RowsMut<'a, B, B::Act>,
        /// Input rows.
        x: Rows<'a, B, B::Act>,
        /// The matrix.
        weight: &'a Weight<B>,
        /// Added to each row.
        bias: Option<&'a B::Buffer<f32>>,
    }
}

impl<'a, B: Backend> Linear<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        out: RowsMut<'a, B, B::Act>,
        x: Rows<'a, B, B::Act>,
        weight: &'a Weight<B>,
        bias: Option<&'a B::Buffer<f32>>,
    ) -> Result<Self, ShapeError> {
        let (n, k) = (out.cols(), x.cols());
        ensure(out.rows() == x.rows(), "linear", "out", || format!("{} rows", x.rows()), out.rows())?;
        let fits = n.checked_mul(k) == Some(weight.len());
        ensure(fits, "linear", "weight", || format!("[{n}, {k}] elements"), weight.len())?;
        let bias_len = bias.map_or(n, Buffer::len);
        ensure(bias_len == n, "linear", "bias", || format!("{n} elements"), bias_len)?;
        Ok(Self(LinearParts { out, x, weight, bias }))
    }
}
