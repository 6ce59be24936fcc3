//! Host data: random numbers, and matrices placed inside wider, poisoned buffers.

use kivi_kernels::{Backend, Buffer, Element, Rows, RowsMut, ShapeError};

use super::Outcome;

/// A small seeded generator (SplitMix64; Steele et al., OOPSLA 2014), the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator; streams of nearby seeds are unrelated.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// `n` standard normal numbers, each passed through `f`.
    pub fn normals(&mut self, n: usize, f: impl Fn(f64) -> f64) -> Vec<f64> {
        (0..n).map(|_| f(self.normal())).collect()
    }

    /// The numbers `0..n` in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        (1..n).rev().for_each(|i| order.swap(i, self.below(i + 1)));
        order
    }
}

/// A matrix `[rows, cols]` in a buffer with `left` and `right` foreign columns beside it, which hold NaN: reading
/// them shows in the result, writing them is a fault.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Foreign columns before.
    pub left: usize,
    /// Foreign columns behind.
    pub right: usize,
}

impl Grid {
    /// A contiguous matrix.
    pub fn dense(rows: usize, cols: usize) -> Self {
        Self { rows, cols, left: 0, right: 0 }
    }

    /// A matrix with `pad` foreign columns before and `2 * pad` behind.
    pub fn padded(rows: usize, cols: usize, pad: usize) -> Self {
        Self { rows, cols, left: pad, right: 2 * pad }
    }

    fn stride(&self) -> usize {
        self.left + self.cols + self.right
    }

    fn is_foreign(&self, i: usize) -> bool {
        !(self.left..self.left + self.cols).contains(&(i % self.stride()))
    }

    /// A buffer with `values` in place.
    ///
    /// # Errors
    /// Those of the device.
    pub fn upload<B: Backend>(&self, backend: &B, values: &[f64]) -> Result<B::Buffer<B::Act>, B::Error> {
        let mut values = values.iter().copied();
        let mut next =
            |i: usize| if self.is_foreign(i) { f64::NAN } else { values.next().unwrap_or(f64::NAN) };
        let buffer: Vec<_> = (0..self.rows * self.stride()).map(|i| B::Act::from_f64(next(i))).collect();
        backend.upload(&buffer)
    }

    /// A buffer of NaN, for an output.
    ///
    /// # Errors
    /// Those of the device.
    pub fn poisoned<B: Backend>(&self, backend: &B) -> Result<B::Buffer<B::Act>, B::Error> {
        self.upload(backend, &[])
    }

    /// The matrix in `buffer`.
    ///
    /// # Errors
    /// If the buffer is another one's.
    pub fn view<'a, B: Backend>(
        &self,
        buffer: &'a B::Buffer<B::Act>,
    ) -> Result<Rows<'a, B, B::Act>, ShapeError> {
        Rows::new(buffer, self.rows, self.stride())?.columns(self.left..self.left + self.cols)
    }

    /// The matrix in `buffer`, to write to.
    ///
    /// # Errors
    /// If the buffer is another one's.
    pub fn view_mut<'a, B: Backend>(
        &self,
        buffer: &'a mut B::Buffer<B::Act>,
    ) -> Result<RowsMut<'a, B, B::Act>, ShapeError> {
        RowsMut::new(buffer, self.rows, self.stride())?.columns(self.left..self.left + self.cols)
    }

    /// Reads the matrix back; a foreign element that is not as it was is a fault.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read<B: Backend>(&self, backend: &B, buffer: &B::Buffer<B::Act>) -> Result<Outcome, B::Error> {
        let mut elements = vec![B::Act::from_f64(0.0); buffer.len()];
        backend.read(buffer, 0, &mut elements)?;
        let poison = B::Act::from_f64(f64::NAN);
        let same = |x: &B::Act| bytemuck::bytes_of(x) == bytemuck::bytes_of(&poison);
        let mut outcome = Outcome::default();
        for (i, x) in elements.iter().enumerate() {
            if !self.is_foreign(i) {
                outcome.values.push(x.to_f64());
            } else if !same(x) {
                outcome.faults.push(format!("wrote outside the view, element {i} of the buffer"));
            }
        }
        Ok(outcome)
    }
}
