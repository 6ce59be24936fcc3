//! Random weights of a model's shape, for measuring: nothing of their size is ever on the host.

use std::any::Any;
use std::collections::BTreeMap;

use kivi_kernels::Element;

use crate::weights::WeightDtype;

/// Values of a pattern that matrices repeat: a prime, so that no two rows of a matrix begin alike.
const PATTERN: usize = 1_048_573;
/// Each matrix starts the pattern so much further on than the one before.
const STEP: usize = 337_639;
/// Spread of the values, as transformers initialises models: logits stay small at any depth.
const STD: f64 = 0.02;

/// Shapes of the tensors, and the values that they get.
pub(crate) struct Random {
    /// Name and shape of each tensor.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Type of matrices.
    pub dtype: WeightDtype,
    start: usize,
    /// The pattern twice, so that it can be begun anywhere; a `Vec` of the type of matrices.
    pattern: Option<Box<dyn Any>>,
}

impl Random {
    pub fn new(dtype: WeightDtype) -> Self {
        Self { shapes: BTreeMap::new(), dtype, start: 0, pattern: None }
    }

    /// The values of the next matrix, to be repeated.
    pub fn next<T: Element>(&mut self) -> &[T] {
        self.start = (self.start + STEP) % PATTERN;
        let pattern = self.pattern.get_or_insert_with(|| Box::new(twice::<T>()));
        let pattern = pattern.downcast_ref::<Vec<T>>().expect("matrices have one type");
        &pattern[self.start..][..PATTERN]
    }

    /// Elements of these tensors together.
    pub fn len<S: AsRef<str>>(&self, names: &[S]) -> usize {
        let len = |name: &S| self.shapes.get(name.as_ref()).map_or(0, |shape| shape.iter().product());
        names.iter().map(len).sum()
    }

    /// Their bytes, were they in a checkpoint.
    pub fn bytes<S: AsRef<str>>(&self, names: &[S]) -> usize {
        self.len(names) * self.dtype.size()
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        let elements = self.shapes.values().map(|shape| shape.iter().product::<usize>() as u64);
        elements.sum::<u64>() * self.dtype.size() as u64
    }

    /// Vectors one after the other: norms that change nothing, and biases of zero.
    pub fn vector<S: AsRef<str>>(&self, names: &[S]) -> Vec<f32> {
        let of = |name: &S| {
            let value = if name.as_ref().ends_with("bias") { 0.0 } else { 1.0 };
            vec![value; self.len(std::slice::from_ref(name))]
        };
        names.iter().flat_map(of).collect()
    }
}

/// The pattern, twice.
fn twice<T: Element>() -> Vec<T> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let values: Vec<T> = (0..PATTERN).map(|_| T::from_f64(STD * normal(&mut state))).collect();
    [values.as_slice(), &values].concat()
}

/// A value with mean 0 and variance 1, nearly normal: the sum of four 16-bit numbers.
fn normal(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    // Mixed, since the bits of a xorshift are not independent of its last ones.
    let mixed = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let sum: u64 = (0..4).map(|i| mixed >> (16 * i) & 0xffff).sum();
    (sum as f64 / 65536.0 - 2.0) * 3_f64.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_spread_of_a_model_and_differ_between_matrices() {
        let mut random = Random::new(WeightDtype::F32);
        let first: Vec<f32> = random.next::<f32>().to_vec();
        let n = first.len() as f64;
        let mean = first.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance = first.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 1e-4 && (variance.sqrt() - STD).abs() < 1e-4, "{mean} {variance}");
        assert_ne!(&first[..8], &random.next::<f32>()[..8]);
    }
}
