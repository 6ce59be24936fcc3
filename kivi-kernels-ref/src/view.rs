//! Rows of a view as slices.

use kivi_kernels::{Element, Rows, RowsMut, Weight};

use crate::{Accum, Cpu};

/// Row `i` of `x`.
pub(crate) fn row<'a, A: Accum, T: Element>(x: &Rows<'a, Cpu<A>, T>, i: usize) -> &'a [T] {
    &x.buffer().0[x.offset() + i * x.stride()..][..x.cols()]
}

/// Row `i` of `x`, writable.
pub(crate) fn row_mut<'b, A: Accum, T: Element>(x: &'b mut RowsMut<'_, Cpu<A>, T>, i: usize) -> &'b mut [T] {
    let (start, cols) = (x.offset() + i * x.stride(), x.cols());
    &mut x.buffer().0[start..][..cols]
}

/// Element `i` of `weight`, exactly.
pub(crate) fn weight<A: Accum>(weight: &Weight<Cpu<A>>, i: usize) -> A {
    A::from_f64(match weight {
        Weight::F32(x) => x.0[i].to_f64(),
        Weight::F16(x) => x.0[i].to_f64(),
        Weight::Bf16(x) => x.0[i].to_f64(),
    })
}
