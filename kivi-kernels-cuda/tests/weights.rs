//! Weights of products, which are read while the launch before may still run: unless a launch may write them.

use half::f16;
use kivi_kernels::ops::{Add, Linear};
use kivi_kernels::{Backend, Rows, RowsMut, Weight};
use kivi_kernels_cuda::{Cuda, CudaBuffer};
use kivi_kernels_ref::conformance::skip;

type B = Cuda<f16>;

const IN: usize = 4096;
const OUT: usize = 512;

fn numbers(seed: u32, count: usize) -> Vec<f16> {
    let hash = |i: u32| (i ^ seed << 24).wrapping_mul(0x9E37_79B9).rotate_left(15).wrapping_mul(0x85EB_CA6B);
    (0..count as u32).map(|i| f16::from_f32((hash(i) >> 8) as f32 / (1 << 23) as f32 - 1.0)).collect()
}

/// `rows` rows of numbers times a weight, which is queued last before the product; nothing is queued in between.
fn product(cuda: &B, x: &CudaBuffer<f16>, rows: usize, weight: impl FnOnce() -> CudaBuffer<f16>) -> Vec<f16> {
    let mut out = cuda.zeros::<f16>(rows * OUT).unwrap();
    let weight = Weight::F16(weight());
    let to = RowsMut::new(&mut out, rows, OUT).unwrap();
    cuda.linear(Linear::new(to, Rows::new(x, rows, IN).unwrap(), &weight, None).unwrap()).unwrap();
    let mut host = vec![f16::ZERO; rows * OUT];
    cuda.read(&out, 0, &mut host).unwrap();
    host
}

/// A weight that a launch writes, for which nothing waits.
fn computed(cuda: &B, numbers: &CudaBuffer<f16>) -> CudaBuffer<f16> {
    let mut weight = cuda.zeros::<f16>(OUT * IN).unwrap();
    cuda.synchronize().unwrap();
    let to = RowsMut::new(&mut weight, OUT, IN).unwrap();
    cuda.add(Add::new(to, Rows::new(numbers, OUT, IN).unwrap()).unwrap()).unwrap();
    weight
}

#[test]
fn weights_are_what_the_launch_before_made_them() {
    let cuda = match B::new(0) {
        Ok(cuda) => cuda,
        Err(why) => return skip(&format!("weights: {why}")),
    };
    let weight = numbers(1, OUT * IN);
    let uploaded = cuda.upload(&weight).unwrap();
    for rows in 1..=4 {
        let x = cuda.upload(&numbers(2, rows * IN)).unwrap();
        // SAFETY: `uploaded` outlives it, and nothing writes.
        let foreign = || unsafe { CudaBuffer::from_raw(uploaded.device_ptr(), OUT * IN) };
        let expected = product(&cuda, &x, rows, foreign);
        assert!(expected.iter().any(|x| *x != f16::ZERO));
        assert!(product(&cuda, &x, rows, || cuda.upload(&weight).unwrap()) == expected);
        for _ in 0..4 {
            assert!(product(&cuda, &x, rows, || computed(&cuda, &uploaded)) == expected);
        }
    }
}
