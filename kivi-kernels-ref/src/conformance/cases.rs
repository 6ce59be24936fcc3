//! What a case is, and the cases of a cache: ragged batches over scattered pages.

use std::fmt::Debug;

use kivi_kernels::{Backend, DType, GqaRatio, Spec, StepError};
use kivi_quant::{KiviConfig, KvDtype, Packed, PageLayout, Side};
use proptest::strategy::BoxedStrategy;

use super::{Rng, round};

/// One op on given data. A case is host data; it runs on any backend.
pub trait Case: Debug + Sized + Send + Sync + 'static {
    /// The op: the name of its method in [`Backend`].
    const OP: &'static str;

    /// The cases to run always.
    fn by_hand() -> Vec<Self>;

    /// Random cases.
    fn strategy() -> BoxedStrategy<Self>;

    /// What cache it has.
    fn cache(&self) -> Option<CacheShape> {
        None
    }

    /// What the backend must support to run it.
    fn spec(&self, act: DType) -> Option<Spec> {
        let _ = act;
        None
    }

    /// Runs on `backend`, with inputs that `act` holds exactly.
    ///
    /// # Errors
    /// Those of the op.
    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>>;
}

/// What an op gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Numbers, to be compared within a tolerance.
    pub values: Vec<f64>,
    /// Words, to be equal.
    pub words: Vec<u32>,
    /// What was done that must not be.
    pub faults: Vec<String>,
}

/// The settings of a case's cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    /// Width of key codes.
    pub k_bits: u32,
    /// Width of value codes.
    pub v_bits: u32,
    /// Elements to a scale.
    pub group_size: usize,
    /// Tokens in full precision.
    pub residual_length: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Query heads to a KV head.
    pub gqa: usize,
    /// Type of rows in full precision.
    pub kv_dtype: KvDtype,
}

/// How much is packed before and after the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// [`KiviConfig::packed`].
    Default,
    /// All values that the cache holds, as after a reused prefix: more values than keys may be packed.
    ValuesAhead,
    /// As many whole groups of keys as there are.
    KeysEager,
}

/// One sequence of a case.
#[derive(Clone, Copy, Debug)]
pub struct SeqCase {
    /// Tokens in the cache.
    pub len: usize,
    /// New tokens.
    pub new: usize,
    /// Whether it takes part.
    pub active: bool,
    /// What is packed.
    pub policy: Policy,
}

impl SeqCase {
    /// An active sequence under the default policy.
    pub fn new(len: usize, new: usize) -> Self {
        Self { len, new, active: true, policy: Policy::Default }
    }

    /// Tokens after the step.
    pub fn end(&self) -> usize {
        self.len + self.new
    }

    /// What is packed before and after the step.
    pub fn packed(&self, config: &KiviConfig) -> (Packed, Packed) {
        let now = self.policy.packed(config, self.len, self.len);
        let next = self.policy.packed(config, self.len, self.end());
        (now, Packed { k: next.k.max(now.k), v: next.v.max(now.v) })
    }
}

impl Policy {
    fn packed(self, config: &KiviConfig, before: usize, len: usize) -> Packed {
        let packed = config.packed(len);
        match self {
            Self::Default => packed,
            Self::ValuesAhead => Packed { v: packed.v.max(before), ..packed },
            Self::KeysEager if config.k_bits().is_quantized() => {
                Packed { k: len - len % config.group_size(), ..packed }
            }
            Self::KeysEager => packed,
        }
    }
}

/// What keys and values are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Standard normal.
    Normal,
    /// Normal, with one channel twenty times as large.
    Outlier,
    /// Every group is one number: scales are 0.
    Constant,
    /// Values so large that scales and zeros saturate where the type can hold them.
    HugeValues,
    /// Keys and values so large.
    Huge,
}

/// A cache and a step over it: what attend and append run on.
#[derive(Clone, Debug)]
pub struct CacheCase {
    /// The cache's settings.
    pub config: KiviConfig,
    /// Channels of a head.
    pub head_dim: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Query heads to a KV head.
    pub gqa: usize,
    /// The sequences.
    pub seqs: Vec<SeqCase>,
    /// Keys that a token sees.
    pub window: Option<usize>,
    /// Whether slopes are added.
    pub alibi: bool,
    /// Whether queries, keys and values are columns of one buffer.
    pub fused: bool,
    /// Foreign columns before each row of queries, where these have a buffer of their own; with one they are not aligned.
    pub q_pad: usize,
    /// The same of results.
    pub out_pad: usize,
    /// What keys and values are like.
    pub data: Data,
    /// If given, each query is so many times the key of a token at an end of one of attention's ranges, so that the
    /// output is that token's value or nearly so: a wrong end shows also where activations are coarse. Without it
    /// queries are random.
    pub picks: Option<f32>,
    /// Of the random numbers.
    pub seed: u64,
}

impl CacheCase {
    /// Layout of a page.
    ///
    /// # Panics
    /// If the case has a head that no layout holds.
    pub fn layout(&self) -> PageLayout {
        PageLayout::new(self.config, self.head_dim).expect("cases have valid heads")
    }

    /// Elements of a key or value row of all heads.
    pub fn kv_cols(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Elements of a query row.
    pub fn q_cols(&self) -> usize {
        self.gqa * self.kv_cols()
    }

    /// The tokens at the ends of the ranges that sequence `s`'s new token at position `at` sees.
    pub fn ends(&self, s: usize, at: usize) -> Vec<usize> {
        let seq = &self.seqs[s];
        let (packed, sinks) = (seq.packed(&self.config).0, self.config.sink_tokens());
        let first = self.window.map_or(0, |window| (at + 1).saturating_sub(window));
        let starts = [sinks, packed.v, packed.k, seq.len, at];
        let mut ends: Vec<usize> = starts.iter().flat_map(|&t| [t.wrapping_sub(1), t]).collect();
        ends.push(first);
        ends.retain(|t| (first..=at).contains(t));
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// The first row of each sequence, and the number of rows.
    pub fn row_starts(&self) -> Vec<usize> {
        let mut rows = 0;
        let ends = self.seqs.iter().map(|seq| {
            rows += seq.new;
            rows
        });
        [0].into_iter().chain(ends).collect()
    }

    /// All keys or values of sequence `s`, old and new, `[len + new][n_kv_heads * head_dim]`, exact in `act` and in
    /// the cache's type.
    pub fn rows(&self, s: usize, side: Side, act: DType) -> Vec<f64> {
        let side_seed = if side == Side::Key { 1 } else { 2 };
        let mut rng = Rng::new(self.seed.wrapping_mul(1009).wrapping_add(3 * s as u64 + side_seed));
        let (n, cols) = (self.seqs[s].end(), self.kv_cols());
        let mut row: Vec<f64> = Vec::new();
        let mut rows = Vec::with_capacity(n * cols);
        for t in 0..n {
            let same_key =
                self.data == Data::Constant && side == Side::Key && t % self.config.group_size() > 0;
            if !same_key {
                row = (0..cols).map(|c| self.element(c, side, &mut rng)).collect();
            }
            if self.data == Data::Constant && side == Side::Value {
                row.chunks_mut(self.head_dim).for_each(|head| self.flatten(head));
            }
            rows.extend(row.iter().map(|&x| self.exact(x, act)));
        }
        rows
    }

    /// Makes each group of a head's channels one number.
    fn flatten(&self, head: &mut [f64]) {
        head.chunks_mut(self.config.group_size()).for_each(|group| group.fill(group[0]));
    }

    fn element(&self, channel: usize, side: Side, rng: &mut Rng) -> f64 {
        let x = rng.normal();
        match (self.data, side) {
            (Data::Outlier, _) if channel % self.head_dim == 5 => 20.0 * x,
            (Data::HugeValues, Side::Value) | (Data::Huge, _) => 1e6 * x,
            _ => x,
        }
    }

    /// `x` rounded to what `act` and the cache's type both hold, and not beyond f16 if either is f16.
    fn exact(&self, x: f64, act: DType) -> f64 {
        let kv = match self.config.kv_dtype() {
            KvDtype::F16 => DType::F16,
            KvDtype::Bf16 => DType::Bf16,
            KvDtype::F32 => DType::F32,
        };
        let limit = if act == DType::F16 || kv == DType::F16 { 57_344.0 } else { f64::MAX };
        round(act, round(kv, x.clamp(-limit, limit)))
    }

    /// What is reported of the cache.
    pub fn shape(&self) -> CacheShape {
        CacheShape {
            k_bits: self.config.k_bits().get(),
            v_bits: self.config.v_bits().get(),
            group_size: self.config.group_size(),
            residual_length: self.config.residual_length(),
            head_dim: self.head_dim,
            gqa: self.gqa,
            kv_dtype: self.config.kv_dtype(),
        }
    }

    /// What a backend must support.
    pub fn spec(&self, act: DType) -> Spec {
        Spec {
            layout: self.layout(),
            gqa: GqaRatio(self.gqa),
            act,
            window: self.window.is_some(),
            alibi: self.alibi,
        }
    }
}
