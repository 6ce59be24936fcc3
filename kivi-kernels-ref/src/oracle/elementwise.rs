//! Elementwise operations.

use core::f64::consts::{PI, SQRT_2};

use kivi_kernels::ops::{ActivateParts, Activation, AddParts};

use crate::view::{row, row_mut};
use crate::{Accum, Cpu};

/// `out = activation(x) * up`.
pub(crate) fn activate<A: Accum>(cpu: &Cpu<A>, mut op: ActivateParts<'_, Cpu<A>>) {
    for i in 0..op.x.rows() {
        let (x, up) = (row(&op.x, i), op.up.map(|up| row(&up, i)));
        for (j, (out, &x)) in row_mut(&mut op.out, i).iter_mut().zip(x).enumerate() {
            let y = activation(op.activation, x);
            *out = cpu.output(up.map_or(y, |up| y * up[j]));
        }
    }
}

/// `out = out + x`.
pub(crate) fn add<A: Accum>(cpu: &Cpu<A>, mut op: AddParts<'_, Cpu<A>>) {
    for i in 0..op.x.rows() {
        for (out, &x) in row_mut(&mut op.out, i).iter_mut().zip(row(&op.x, i)) {
            *out = cpu.output(*out + x);
        }
    }
}

fn activation<A: Accum>(kind: Activation, x: A) -> A {
    let num = A::from_f64;
    let (zero, one, half) = (num(0.0), num(1.0), num(0.5));
    match kind {
        Activation::Silu => x / (one + (-x).exp()),
        Activation::Gelu => x * half * (one + num(erf(x.to_f64() / SQRT_2))),
        Activation::GeluTanh => {
            let cubic = x + num(0.044715) * x * x * x;
            x * half * (one + (num((2.0 / PI).sqrt()) * cubic).tanh())
        }
        Activation::Relu if x > zero => x,
        Activation::Relu => zero,
    }
}

/// The error function: `2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n + 1) / (2n + 1)!!` (DLMF 7.6.2; no term cancels
/// another).
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::erf;

    /// Abramowitz and Stegun, table 7.1.
    #[test]
    fn erf_is_the_tables() {
        for (x, expected) in
            [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)]
        {
            assert!((erf(x) - expected).abs() < 1e-10, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!((erf(7.0), erf(f64::NEG_INFINITY)), (1.0, -1.0));
        assert!((erf(5.9) - 1.0).abs() < 1e-14);
    }
}
