//! Choosing rows and tokens.

use crate::error::ensure;
use crate::{Backend, Buffer, Rows, RowsMut, ShapeError};

op! {
    /// Copies chosen rows: the last row of each sequence before the language model head.
    ///
    /// # Shapes
    /// `x` `[n, cols]`; `rows` at least `m` elements, each below `n`; `out` `[m, cols]`.
    ///
    /// # Equation
    /// `out[i] = x[rows[i]]`.
    Gather, GatherParts {
        /// Output rows.
        out: RowsMut<'a, B, B::Act>,
        /// Input rows.
        x: Rows<'a, B, B::Act>,
        /// Which row of `x` each output row is.
        rows: &'a B::Buffer<u32>,
    }
}

impl<'a, B: Backend> Gather<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        out: RowsMut<'a, B, B::Act>,
        x: Rows<'a, B, B::Act>,
        rows: &'a B::Buffer<u32>,
    ) -> Result<Self, ShapeError> {
        ensure(out.cols() == x.cols(), "gather", "out", || format!("{} columns", x.cols()), out.cols())?;
        ensure(
            rows.len() >= out.rows(),
            "gather",
            "rows",
            || format!("{} elements", out.rows()),
            rows.len(),
        )?;
        Ok(Self(GatherParts { out, x, rows }))
    }
}

op! {
    /// The position of each row's largest element.
    ///
    /// # Shapes
    /// `logits` `[rows, vocab_size]`; `out` at least `rows` elements.
    ///
    /// # Equation
    /// `out[i] = argmax_j logits[i, j]`, the first of equals; `u32::MAX` if any element of the row is NaN or
    /// infinite, so that a damaged model is noticed without its logits being read.
    Argmax, ArgmaxParts {
        /// Positions.
        out: &'a mut B::Buffer<u32>,
        /// Input rows.
        logits: Rows<'a, B, B::Act>,
    }
}

impl<'a, B: Backend> Argmax<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If `out` is too short or rows are empty.
    pub fn new(out: &'a mut B::Buffer<u32>, logits: Rows<'a, B, B::Act>) -> Result<Self, ShapeError> {
        ensure(logits.cols() > 0, "argmax", "logits", || "at least 1 column".into(), logits.cols())?;
        let rows = logits.rows();
        ensure(out.len() >= rows, "argmax", "out", || format!("{rows} elements"), out.len())?;
        Ok(Self(ArgmaxParts { out, logits }))
    }
}

op! {
    /// The `k` largest elements of each row, for sampling.
    ///
    /// # Shapes
    /// `logits` `[rows, vocab_size]`; `values` `[rows, k]`; `indices` at least `rows * k` elements.
    ///
    /// # Equation
    /// `values[i]` the `k` largest of `logits[i]`, descending, the lower index first among equals; `indices`
    /// where they stand; a NaN comes last.
    TopK, TopKParts {
        /// The elements.
        values: RowsMut<'a, B, B::Act>,
        /// Their positions.
        indices: &'a mut B::Buffer<u32>,
        /// Input rows.
        logits: Rows<'a, B, B::Act>,
    }
}

impl<'a, B: Backend> TopK<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        values: RowsMut<'a, B, B::Act>,
        indices: &'a mut B::Buffer<u32>,
        logits: Rows<'a, B, B::Act>,
    ) -> Result<Self, ShapeError> {
        let (rows, k) = values.shape();
        ensure(rows == logits.rows(), "top_k", "values", || format!("{} rows", logits.rows()), rows)?;
        ensure(k <= logits.cols(), "top_k", "values", || format!("at most {} columns", logits.cols()), k)?;
        ensure(
            indices.len() >= rows * k,
            "top_k",
            "indices",
            || format!("{} elements", rows * k),
            indices.len(),
        )?;
        Ok(Self(TopKParts { values, indices, logits }))
    }
}
