//! The gemm crate behind slices.

/// A row-major matrix in a slice: `rows` of `cols` elements, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl Mat<'_> {
    fn check(&self, rows: usize, cols: usize) {
        assert!(rows == 0 || (rows - 1) * self.stride + cols <= self.data.len());
    }
}

/// Which way the right operand lies.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rhs {
    /// `b` is `[k, n]`.
    Plain,
    /// `b` is `[n, k]`: the product is with its transpose.
    Transposed,
}

/// `out[m, n] = a[m, k] b`, or `out += a b` with `accumulate`, on the calling thread.
pub(super) fn matmul(
    (out, out_stride): (&mut [f32], usize),
    (m, n, k): (usize, usize, usize),
    a: Mat<'_>,
    (b, rhs): (Mat<'_>, Rhs),
    accumulate: bool,
) {
    assert!(m == 0 || (m - 1) * out_stride + n <= out.len());
    a.check(m, k);
    let (b_rows, b_cols) = if rhs == Rhs::Plain { (k, n) } else { (n, k) };
    b.check(b_rows, b_cols);
    let (b_cs, b_rs) = if rhs == Rhs::Plain { (1, b.stride as isize) } else { (b.stride as isize, 1) };
    // SAFETY: the asserts above keep every element of the three matrices inside its slice; `out` is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            a.data.as_ptr(),
            1,
            a.stride as isize,
            b.data.as_ptr(),
            b_cs,
            b_rs,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
