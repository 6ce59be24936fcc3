//! Shapes of attention.

use std::fmt;
use std::str::FromStr;

/// Channels of a head, in every shape.
pub const HEAD_DIM: usize = 128;
/// Tokens in full precision, in every quantized cache.
pub const RESIDUAL: usize = 128;

/// Heads, sequences, and tokens of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub batch: usize,
    pub tokens: usize,
}

/// What is measured unless something else is asked for: the decode steps at which kivi is compared with others.
pub const DEFAULT: &str = "32/8:8:32768,32/32:8:32768,32/8:1:32768,32/32:1:32768,32/8:32:4096,32/32:32:4096,\
                           32/8:1:131072,32/32:1:131072,32/8:1:4096,32/32:1:4096,32/8:8:131072,32/32:8:131072,\
                           32/8:8:4096,32/32:8:4096,32/8:32:32768,32/32:32:32768,32/8:32:131072";

impl Shape {
    pub const fn new(n_heads: usize, n_kv_heads: usize, batch: usize, tokens: usize) -> Self {
        Self { n_heads, n_kv_heads, batch, tokens }
    }
}

impl FromStr for Shape {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || -> Option<[usize; 4]> {
            let (heads, rest) = text.split_once(':')?;
            let (batch, tokens) = rest.split_once(':')?;
            let (n_heads, n_kv_heads) = heads.split_once('/')?;
            let number = |text: &str, most| text.parse().ok().filter(|n| (1..=most).contains(n));
            // So that no number of bytes is too large for 64 bits.
            let heads = [number(n_heads, 1 << 10)?, number(n_kv_heads, 1 << 10)?];
            Some([heads[0], heads[1], number(batch, 1 << 14)?, number(tokens, 1 << 24)?])
        };
        let shape =
            parts().map(|[n_heads, n_kv_heads, batch, tokens]| Self::new(n_heads, n_kv_heads, batch, tokens));
        let shape = shape.filter(|shape| shape.n_heads.is_multiple_of(shape.n_kv_heads));
        shape.ok_or(
            "expected heads/kv_heads:sequences:tokens, such as 32/8:1:4096 (at most 1024:16384:16777216)",
        )
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}:{}", self.n_heads, self.n_kv_heads, self.batch, self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_as_they_are_written() {
        let shapes: Vec<Shape> = DEFAULT.split(',').map(|text| text.parse().unwrap()).collect();
        assert_eq!(shapes.len(), 17);
        assert_eq!(shapes[0], Shape::new(32, 8, 8, 32768));
        assert_eq!(shapes.iter().map(Shape::to_string).collect::<Vec<_>>().join(","), DEFAULT);
        for wrong in [
            "",
            "32:1:4096",
            "32/0:1:4096",
            "32/5:1:4096",
            "32/8:20000:1",
            "32/8:1",
            "32/8:1:4096:1",
            "32/8:-1:4096",
        ] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }
}
