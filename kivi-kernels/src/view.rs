//! Matrices inside buffers: rows of `cols` elements that lie `stride` elements apart.

use core::ops::Range;

use half::{bf16, f16};

use crate::error::ensure;
use crate::{Backend, Buffer, Element, ShapeError};

/// Where the rows of a view lie in its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Extent {
    fn check(self, len: usize) -> Result<Self, ShapeError> {
        let last = self.rows.saturating_sub(1).checked_mul(self.stride);
        let end = last.and_then(|n| n.checked_add(self.offset)?.checked_add(self.cols));
        let inside = self.rows == 0 || end.is_some_and(|end| end <= len);
        let expected = || format!("{} rows of {} inside the buffer", self.rows, self.cols);
        ensure(inside && self.cols <= self.stride, "view", "buffer", expected, len)?;
        Ok(self)
    }

    fn columns(self, range: Range<usize>) -> Result<Self, ShapeError> {
        let inside = range.start <= range.end && range.end <= self.cols;
        ensure(inside, "view", "columns", || format!("a range within 0..{}", self.cols), &range)?;
        Ok(Self { offset: self.offset + range.start, cols: range.len(), ..self })
    }

    fn rows(self, range: Range<usize>) -> Result<Self, ShapeError> {
        let inside = range.start <= range.end && range.end <= self.rows;
        ensure(inside, "view", "rows", || format!("a range within 0..{}", self.rows), &range)?;
        Ok(Self { offset: self.offset + range.start * self.stride, rows: range.len(), ..self })
    }
}

macro_rules! extent_api {
    () => {
        /// First element of the first row in the buffer.
        pub fn offset(&self) -> usize {
            self.extent.offset
        }

        /// Number of rows.
        pub fn rows(&self) -> usize {
            self.extent.rows
        }

        /// Elements of a row.
        pub fn cols(&self) -> usize {
            self.extent.cols
        }

        /// Elements from the start of one row to the start of the next.
        pub fn stride(&self) -> usize {
            self.extent.stride
        }

        /// `(rows, cols)`.
        pub fn shape(&self) -> (usize, usize) {
            (self.extent.rows, self.extent.cols)
        }
    };
}

/// A read-only matrix `[rows, cols]` inside a buffer.
pub struct Rows<'a, B: Backend, T: Element> {
    buffer: &'a B::Buffer<T>,
    extent: Extent,
}

impl<B: Backend, T: Element> Clone for Rows<'_, B, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend, T: Element> Copy for Rows<'_, B, T> {}

impl<'a, B: Backend, T: Element> Rows<'a, B, T> {
    /// The first `rows * cols` elements of `buffer` as a matrix.
    ///
    /// # Errors
    /// If the buffer is shorter.
    pub fn new(buffer: &'a B::Buffer<T>, rows: usize, cols: usize) -> Result<Self, ShapeError> {
        let extent = Extent { offset: 0, rows, cols, stride: cols }.check(buffer.len())?;
        Ok(Self { buffer, extent })
    }

    /// The columns in `range` of every row.
    ///
    /// # Errors
    /// If the range does not lie within the row.
    pub fn columns(self, range: Range<usize>) -> Result<Self, ShapeError> {
        Ok(Self { extent: self.extent.columns(range)?, ..self })
    }

    /// The rows in `range`.
    ///
    /// # Errors
    /// If there are fewer rows.
    pub fn slice(self, range: Range<usize>) -> Result<Self, ShapeError> {
        Ok(Self { extent: self.extent.rows(range)?, ..self })
    }

    /// The buffer that the rows lie in.
    pub fn buffer(&self) -> &'a B::Buffer<T> {
        self.buffer
    }

    extent_api!();
}

/// A writable matrix `[rows, cols]` inside a buffer.
pub struct RowsMut<'a, B: Backend, T: Element> {
    buffer: &'a mut B::Buffer<T>,
    extent: Extent,
}

impl<'a, B: Backend, T: Element> RowsMut<'a, B, T> {
    /// The first `rows * cols` elements of `buffer` as a matrix.
    ///
    /// # Errors
    /// If the buffer is shorter.
    pub fn new(buffer: &'a mut B::Buffer<T>, rows: usize, cols: usize) -> Result<Self, ShapeError> {
        let extent = Extent { offset: 0, rows, cols, stride: cols }.check(buffer.len())?;
        Ok(Self { buffer, extent })
    }

    /// The columns in `range` of every row.
    ///
    /// # Errors
    /// If the range does not lie within the row.
    pub fn columns(self, range: Range<usize>) -> Result<Self, ShapeError> {
        Ok(Self { extent: self.extent.columns(range)?, ..self })
    }

    /// The same rows, for as long as this view is not used.
    pub fn reborrow(&mut self) -> RowsMut<'_, B, T> {
        RowsMut { buffer: self.buffer, extent: self.extent }
    }

    /// The same rows, to be read.
    pub fn as_rows(&self) -> Rows<'_, B, T> {
        Rows { buffer: self.buffer, extent: self.extent }
    }

    /// The buffer that the rows lie in.
    pub fn buffer(&mut self) -> &mut B::Buffer<T> {
        self.buffer
    }

    extent_api!();
}

/// A weight matrix `[out_features, in_features]` (or a table `[vocab_size, hidden_size]`) in the checkpoint's
/// type.
pub enum Weight<B: Backend> {
    /// f32 elements.
    F32(B::Buffer<f32>),
    /// f16 elements.
    F16(B::Buffer<f16>),
    /// bf16 elements.
    Bf16(B::Buffer<bf16>),
}

impl<B: Backend> Weight<B> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
