//! ALiBi: positions as linear biases on the logits of attention (Press et al., arXiv 2108.12409).

use half::bf16;

/// What each of `n_heads` query heads adds to a logit for each token of distance, in the units of the scaled product.
///
/// With `p` the largest power of two up to `n_heads`, head `h < p` has the slope `2^(-8 (h + 1) / p)` and head
/// `p + i` has `2^(-4 (2 i + 1) / p)`, as `build_alibi_tensor` of transformers' Falcon computes them: powers in f32,
/// rounded to bf16. Falcon adds the bias before it divides by `sqrt(head_dim)`, so that divides the slopes too.
///
/// transformers also rounds slope times position to bf16; here the product is exact. Both are equal where slopes are
/// powers of two (1, 2, 4 and 8 heads) and positions have 8 bits: up to 256 tokens.
pub fn slopes(n_heads: usize, head_dim: usize) -> Vec<f32> {
    let whole = 1 << n_heads.max(1).ilog2();
    let base = |n: usize| (-8.0 / n as f64).exp2() as f32;
    let power = |base: f32, exponent: usize| f64::from(base).powi(exponent as i32) as f32;
    let first = (1..=whole.min(n_heads)).map(|exponent| power(base(whole), exponent));
    let more = (whole..n_heads).map(|head| power(base(2 * whole), 2 * (head - whole) + 1));
    let scale = 1.0 / (head_dim as f32).sqrt();
    first.chain(more).map(|slope| bf16::from_f32(slope).to_f32() * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_divided_as_the_product_is() {
        let expected = [0.25, 0.0625, 0.015625, 0.00390625].map(|slope: f32| slope / 4.0);
        assert_eq!(slopes(4, 16), expected);
    }
}
