//! Rotary position embedding.

use crate::error::ensure;
use crate::{Backend, Buffer, RowsMut, ShapeError};

op! {
    /// Rotates the heads of each row by the row's position, in place.
    ///
    /// # Shapes
    /// `x` `[rows, heads * head_dim]`; `positions` at least `rows`; `inv_freq` `[tables, rotary_dim / 2]`;
    /// `table_of_row`, if given, at least `rows`: the row of `inv_freq` to use (without it, the first).
    ///
    /// # Equation
    /// With `d = rotary_dim / 2`, `a = positions[i] * inv_freq[j]`, `c = scaling cos a`, `s = scaling sin a`:
    /// `x'[j] = x[j] c - x[j + d] s`, `x'[j + d] = x[j + d] c + x[j] s` for `j < d`; channels from `rotary_dim`
    /// on stay (Su et al., arXiv 2104.09864, in the "half rotation" order of GPT-NeoX and Llama).
    Rope, RopeParts {
        /// Rows to rotate.
        x: RowsMut<'a, B, B::Act>,
        /// Channels of a head.
        head_dim: usize,
        /// Channels that are rotated, the first of the head.
        rotary_dim: usize,
        /// Position of each row.
        positions: &'a B::Buffer<u32>,
        /// Inverse frequencies.
        inv_freq: &'a B::Buffer<f32>,
        /// Which table each row uses.
        table_of_row: Option<&'a B::Buffer<u32>>,
        /// Factor on sine and cosine (1 but for YaRN).
        scaling: f32,
    }
}

impl<'a, B: Backend> Rope<'a, B> {
    /// Validates the operands.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        x: RowsMut<'a, B, B::Act>,
        (head_dim, rotary_dim): (usize, usize),
        positions: &'a B::Buffer<u32>,
        inv_freq: &'a B::Buffer<f32>,
        table_of_row: Option<&'a B::Buffer<u32>>,
        scaling: f32,
    ) -> Result<Self, ShapeError> {
        let heads = head_dim > 0 && x.cols() % head_dim == 0;
        ensure(heads, "rope", "x", || format!("heads of {head_dim} columns"), x.cols())?;
        let rotary = rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim;
        ensure(rotary, "rope", "rotary_dim", || format!("an even number up to {head_dim}"), rotary_dim)?;
        let tables = !inv_freq.is_empty() && inv_freq.len() % (rotary_dim / 2) == 0;
        ensure(
            tables,
            "rope",
            "inv_freq",
            || format!("rows of {} elements", rotary_dim / 2),
            inv_freq.len(),
        )?;
        let rows = || format!("{} elements", x.rows());
        ensure(positions.len() >= x.rows(), "rope", "positions", rows, positions.len())?;
        let table_rows = table_of_row.map_or(x.rows(), Buffer::len);
        ensure(table_rows >= x.rows(), "rope", "table_of_row", rows, table_rows)?;
        Ok(Self(RopeParts { x, head_dim, rotary_dim, positions, inv_freq, table_of_row, scaling }))
    }
}
