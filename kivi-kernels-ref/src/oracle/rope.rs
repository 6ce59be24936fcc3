//! Rotary position embedding.

use kivi_kernels::ops::RopeParts;

use crate::view::row_mut;
use crate::{Accum, Cpu};

/// Channels `j` and `j + d` of each head turn by `positions[i] * inv_freq[j]`, `d = rotary_dim / 2`.
pub(crate) fn rope<A: Accum>(cpu: &Cpu<A>, mut op: RopeParts<'_, Cpu<A>>) {
    let d = op.rotary_dim / 2;
    let scaling = A::from_f64(op.scaling.into());
    for i in 0..op.x.rows() {
        let position = A::from_f64(op.positions.0[i].into());
        let table = op.table_of_row.map_or(0, |rows| rows.0[i] as usize);
        for head in row_mut(&mut op.x, i).chunks_exact_mut(op.head_dim) {
            for j in 0..d {
                let angle = position * A::from_f64(op.inv_freq.0[table * d + j].into());
                let (c, s) = (scaling * angle.cos(), scaling * angle.sin());
                let (a, b) = (head[j], head[j + d]);
                head[j] = cpu.output(a * c - b * s);
                head[j + d] = cpu.output(b * c + a * s);
            }
        }
    }
}
