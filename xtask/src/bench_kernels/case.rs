//! What is measured: steps over caches, and the bytes that they must move.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use kivi_kernels::DType;
use kivi_quant::{Bits, CacheBytes, GroupSize, KiviConfig, KvDtype, PageLayout, Side};

use super::shape::{HEAD_DIM, RESIDUAL, Shape};

/// A group of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Reading memory, as many bytes as the others read.
    Read,
    /// Attention of one new token.
    Decode,
    /// What layers share of it, worked out once a step.
    Plan,
    /// Writing the cache.
    Append,
    /// Attention of a prompt.
    Prefill,
}

/// An op in a kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `attend` with one new row a sequence.
    Decode,
    /// `plan_attend` of the same step.
    Plan,
    /// `append` of all tokens to an empty cache.
    Prompt,
    /// `append` of one row a sequence: a value is packed.
    Step,
    /// The same when the window is full: its keys are packed, too.
    Pack,
    /// `attend` of all tokens over an empty cache.
    Prefill,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Plan => "plan",
            Self::Prompt => "append prompt",
            Self::Step => "append step",
            Self::Pack => "append pack",
            Self::Prefill => "prefill",
        }
    }

    /// The group that it belongs to.
    pub fn what(self) -> What {
        match self {
            Self::Decode => What::Decode,
            Self::Plan => What::Plan,
            Self::Prompt | Self::Step | Self::Pack => What::Append,
            Self::Prefill => What::Prefill,
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub kind: Kind,
    pub shape: Shape,
    pub layout: PageLayout,
}

/// The cases of `what`, 16 bits before others, so that these can be compared with it. Reading alone is reading as much as
/// all others.
pub fn cases(
    what: &[What],
    shapes: &[Shape],
    (bits, groups): (&[Bits], &[GroupSize]),
    act: DType,
) -> Result<Vec<Case>> {
    let what = if what == [What::Read] { What::value_variants() } else { what };
    let layouts = layouts(bits, groups, act)?;
    let (step, pack) = (4096, 4096 + RESIDUAL - 1);
    let mut steps: Vec<(Kind, Shape)> = Vec::new();
    if what.contains(&What::Decode) {
        steps.extend(shapes.iter().map(|&shape| (Kind::Decode, shape)));
    }
    if what.contains(&What::Append) {
        steps.push((Kind::Prompt, Shape::new(32, 32, 1, 32_768)));
        for batch in [1, 32] {
            steps.push((Kind::Step, Shape::new(32, 32, batch, step)));
            steps.push((Kind::Pack, Shape::new(32, 32, batch, pack)));
        }
    }
    let with = |(kind, shape): (Kind, Shape)| layouts.iter().map(move |&layout| Case { kind, shape, layout });
    let mut cases: Vec<Case> = steps.into_iter().flat_map(with).collect();
    if let (true, Some(&layout)) = (what.contains(&What::Plan), layouts.last()) {
        cases.extend(shapes.iter().map(|&shape| Case { kind: Kind::Plan, shape, layout }));
    }
    if what.contains(&What::Prefill) {
        // The cache is empty: its bits matter at most for how the kernel was compiled. The widest, and the narrowest.
        let bits = |layout: &PageLayout| layout.config().k_bits();
        let narrowest = layouts.iter().find(|layout| layouts.last().map(bits) == Some(bits(layout)));
        let ends = [layouts.first(), narrowest.filter(|_| layouts.len() > 1)];
        for tokens in [2048, 8192, 32_768] {
            let shape = Shape::new(32, 32, 1, tokens);
            let of = |&layout| Case { kind: Kind::Prefill, shape, layout };
            cases.extend(ends.into_iter().flatten().map(of));
        }
    }
    Ok(cases)
}

/// A layout for each width and group size, widest first; groups are nothing to 16 bits.
fn layouts(bits: &[Bits], groups: &[GroupSize], act: DType) -> Result<Vec<PageLayout>> {
    let kv_dtype = match act {
        DType::F16 => KvDtype::F16,
        DType::Bf16 => KvDtype::Bf16,
        _ => KvDtype::F32,
    };
    let mut bits = bits.to_vec();
    bits.sort_unstable_by(|a, b| b.cmp(a));
    bits.dedup();
    let mut layouts = Vec::new();
    for bits in bits {
        let groups = if bits.is_quantized() { groups } else { &[GroupSize::G32] };
        for &group in groups {
            let config = KiviConfig::new(bits, bits, group, RESIDUAL)?.with_kv_dtype(kv_dtype);
            layouts.push(PageLayout::new(config, HEAD_DIM)?);
        }
    }
    Ok(layouts)
}

impl Case {
    /// Width of codes, keys and values alike.
    pub fn bits(&self) -> Bits {
        self.layout.config().k_bits()
    }

    /// Tokens in the cache before the step.
    pub fn len(&self) -> usize {
        if matches!(self.kind, Kind::Prompt | Kind::Prefill) { 0 } else { self.shape.tokens }
    }

    /// New tokens of a sequence.
    pub fn new_tokens(&self) -> usize {
        if matches!(self.kind, Kind::Prompt | Kind::Prefill) { self.shape.tokens } else { 1 }
    }

    pub fn is_attend(&self) -> bool {
        matches!(self.kind, Kind::Decode | Kind::Prefill)
    }

    /// Bytes that the op must move: the cache for decode steps (packed and residual), lengths for their plan, rows and cache for `append`, queries,
    /// rows and output for prompts.
    pub fn bytes(&self) -> usize {
        let Shape { n_heads, n_kv_heads, batch, .. } = self.shape;
        match self.kind {
            Kind::Decode => CacheBytes::of_head(&self.layout, self.len()).used() * n_kv_heads * batch,
            // 8 words of each sequence and row.
            Kind::Plan => 32 * batch,
            Kind::Prefill => self.new_tokens() * batch * 2 * (n_heads + n_kv_heads) * self.row_bytes(),
            Kind::Prompt | Kind::Step | Kind::Pack => {
                (self.append_bytes(Side::Key) + self.append_bytes(Side::Value)) * n_kv_heads * batch
            }
        }
    }

    /// Bytes of a head's row; new rows are of the cache's type.
    fn row_bytes(&self) -> usize {
        4 * self.layout.row_words()
    }

    /// Bytes that `append` moves for one side of one head of one sequence: new rows, rows of the ring that are packed,
    /// pages, rows for the ring.
    fn append_bytes(&self, side: Side) -> usize {
        let (layout, config) = (&self.layout, self.layout.config());
        let (len, end) = (self.len(), self.len() + self.new_tokens());
        let of = |packed: kivi_quant::Packed| if side == Side::Key { packed.k } else { packed.v };
        let (now, next) = (of(config.packed(len)), of(config.packed(end)));
        let scales = match side {
            _ if !layout.bits(side).is_quantized() => 0,
            Side::Key => (next - now) / config.group_size() * 4 * layout.head_dim(),
            Side::Value => (next - now) * 4 * layout.value_groups(),
        };
        let rows = (end - len) + next.min(len).saturating_sub(now) + (end - next.max(len));
        rows * self.row_bytes() + (next - now) * 4 * layout.token_words(side) + scales
    }

    /// Floating-point operations of a prompt's attention: two products, of pairs of tokens that see each other.
    pub fn flops(&self) -> Option<f64> {
        let n = self.new_tokens() as f64;
        let heads = (self.shape.n_heads * self.shape.batch) as f64;
        (self.kind == Kind::Prefill).then(|| 4.0 * heads * HEAD_DIM as f64 * n * (n + 1.0) / 2.0)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} bits", self.kind.name(), self.shape, self.bits())?;
        let config = self.layout.config();
        if config.is_quantized() { write!(f, " g{}", config.group_size()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(what: What) -> Vec<Case> {
        let shapes = [Shape::new(32, 32, 1, 32_768)];
        cases(&[what], &shapes, (&Bits::ALL, &GroupSize::ALL), DType::F16).unwrap()
    }

    #[test]
    fn wide_caches_come_first_and_groups_are_for_codes() {
        let found: Vec<_> = all(What::Decode)
            .iter()
            .map(|case| (case.bits().get(), case.layout.config().group_size()))
            .collect();
        let groups = [32, 64, 128];
        let expected = [8, 4, 2].into_iter().flat_map(|bits| groups.map(|group| (bits, group)));
        assert_eq!(found, [(16, 32)].into_iter().chain(expected).collect::<Vec<_>>());
        assert_eq!(all(What::Prefill).len(), 6);
        assert_eq!(all(What::Append).len(), 5 * 10);
        assert_eq!(all(What::Plan).len(), 1);
        assert_eq!(all(What::Read).len(), 10 + 1 + 5 * 10 + 6);
    }

    #[test]
    fn bytes_are_those_of_the_formula() {
        let decode = all(What::Decode);
        // K and V, 32 heads, 32,768 tokens, 128 channels of 2 bytes.
        assert_eq!(decode[0].bytes(), 2 * 32 * 32_768 * 256);
        // 2 bits, groups of 32: 32 bytes of codes and 16 of scales a token, the last 128 values whole.
        assert_eq!(decode[7].bytes(), 32 * (2 * 32_768 * 48 - 128 * 48 + 128 * 256));
        // At 16 bits a prompt is read and written.
        let append = all(What::Append);
        assert_eq!(append[0].bytes(), 2 * 2 * 32 * 32_768 * 256);
        // A step: for keys a row in and into the ring; for values also one out of the ring and packed.
        let bytes =
            |kind| append.iter().rfind(|case| case.kind == kind && case.shape.batch == 1).unwrap().bytes();
        let token = 32 + 4; // 2 bits, groups of 128
        assert_eq!(bytes(Kind::Step), 32 * (2 * 256 + 3 * 256 + token));
        assert_eq!(bytes(Kind::Pack), 32 * (128 * 256 + 128 * 32 + 512 + 3 * 256 + token));
    }
}
