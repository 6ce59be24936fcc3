//! Writing the cache, and the caches that cases run on.

use kivi_kernels::{Backend, Buffer, DType, Spec, StepError, ops};
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};
use proptest::collection::vec;
use proptest::prelude::{Just, any};
use proptest::sample::select;
use proptest::strategy::{BoxedStrategy, Strategy};

use super::attention::Inputs;
use super::{CacheCase, CacheShape, Case, Data, Outcome, Policy, SeqCase};

/// An append, compared word for word.
#[derive(Clone, Debug)]
pub struct AppendCase(pub CacheCase);

impl Case for AppendCase {
    const OP: &'static str = "append";

    fn by_hand() -> Vec<Self> {
        by_hand(true).into_iter().map(Self).collect()
    }

    fn strategy() -> BoxedStrategy<Self> {
        strategy().prop_map(Self).boxed()
    }

    fn cache(&self) -> Option<CacheShape> {
        Some(self.0.shape())
    }

    fn spec(&self, act: DType) -> Option<Spec> {
        Some(self.0.spec(act))
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let case = &self.0;
        let (mut layer, batch) = (case.layer(backend, act)?, case.batch(backend)?);
        let inputs = Inputs::new(backend, case, act)?;
        let new = (inputs.view(1)?, inputs.view(2)?);
        backend.append(ops::Append::new(new, &mut layer, (&batch, 1))?)?;
        Ok(Outcome { words: case.words(backend, &layer)?, ..Outcome::default() })
    }
}

/// Pages zeroed, others left.
#[derive(Clone, Debug)]
pub struct ClearPagesCase {
    case: CacheCase,
    pages: Vec<u32>,
    n: usize,
}

impl Case for ClearPagesCase {
    const OP: &'static str = "clear_pages";

    fn by_hand() -> Vec<Self> {
        let case = base(Bits::B2, Bits::B4, 32, 32, 64);
        [0, 1, 3].map(|n| Self { case: case.clone(), pages: vec![4, 0, 3, 1], n }).into()
    }

    fn strategy() -> BoxedStrategy<Self> {
        let case = base(Bits::B2, Bits::B2, 32, 32, 64);
        let pages = vec(0..5_u32, 6);
        (Just(case), pages, 0..6_usize).prop_map(|(case, pages, n)| Self { case, pages, n }).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let mut layer = self.case.layer(backend, act)?;
        let pages = backend.upload(&self.pages)?;
        backend.clear_pages(ops::ClearPages::new(&mut layer, &pages, self.n)?)?;
        let mut words = vec![0; layer.pool.len()];
        backend.read(&layer.pool, 0, &mut words)?;
        Ok(Outcome { words, ..Outcome::default() })
    }
}

/// A case with the given cache: two KV heads with two query heads each, and a decode step of five sequences of
/// lengths around the boundaries, one of them not active.
fn base(k_bits: Bits, v_bits: Bits, group: usize, residual: usize, head_dim: usize) -> CacheCase {
    let group_size = GroupSize::try_from(group).expect("a valid group size");
    let config = KiviConfig::new(k_bits, v_bits, group_size, residual).expect("a valid residual length");
    let mut seqs: Vec<SeqCase> = [0, residual - 1, 2 * residual, residual + 1, 2 * residual + 37]
        .map(|len| SeqCase::new(len, 1))
        .into();
    seqs[2].active = false;
    CacheCase {
        config,
        head_dim,
        n_kv_heads: 2,
        gqa: 2,
        seqs,
        window: None,
        alibi: false,
        fused: true,
        q_pad: 0,
        out_pad: 0,
        data: Data::Normal,
        picks: None,
        seed: 1,
    }
}

fn seqs<const N: usize>(lens_and_new: [(usize, usize); N]) -> Vec<SeqCase> {
    lens_and_new.map(|(len, new)| SeqCase::new(len, new)).into()
}

/// The cases of attend, and of append (`exact`: their results are words, so that keys may be huge too).
pub(super) fn by_hand(exact: bool) -> Vec<CacheCase> {
    let mut cases = Vec::new();
    for k_bits in Bits::ALL {
        for v_bits in Bits::ALL {
            cases.push(base(k_bits, v_bits, 32, 32, 64));
        }
    }
    cases.extend(widths());
    cases.extend(geometries());
    cases.extend(steps());
    cases.extend(masks());
    cases.extend(contents());
    if exact {
        cases.extend(crowds());
    } else {
        cases.extend(picks());
    }
    cases.iter_mut().zip(1..).for_each(|(case, seed)| case.seed = seed);
    if exact {
        for case in &mut cases {
            (case.window, case.alibi) = (None, false);
            case.data = if case.data == Data::HugeValues { Data::Huge } else { case.data };
        }
    }
    cases
}

/// Every width with every group size in the heads that most models have: a prompt, a chunk over a packed past, and single rows.
fn widths() -> Vec<CacheCase> {
    let mut cases = Vec::new();
    for bits in [Bits::B2, Bits::B4, Bits::B8] {
        for group in [32, 64, 128] {
            for head_dim in [64, 128] {
                let seqs = seqs([(0, 41), (2 * group + 5, 35), (3 * group + 1, 1), (7, 2)]);
                cases.push(CacheCase { n_kv_heads: 1, seqs, ..base(bits, bits, group, group, head_dim) });
            }
        }
    }
    cases.push(CacheCase { seqs: seqs([(150, 50), (0, 33)]), ..base(Bits::B16, Bits::B16, 32, 32, 128) });
    for head_dim in [80, 96, 144, 256] {
        let seqs = seqs([(150, 50), (0, 33)]);
        cases.push(CacheCase { n_kv_heads: 1, seqs, ..base(Bits::B4, Bits::B2, 32, 64, head_dim) });
    }
    cases
}

/// Groups, windows and heads.
fn geometries() -> Vec<CacheCase> {
    let (b2, b4, b8) = (Bits::B2, Bits::B4, Bits::B8);
    let mut cases = Vec::new();
    for (group, residual) in
        [(32, 96), (32, 128), (32, 256), (64, 64), (64, 128), (64, 256), (128, 128), (128, 256)]
    {
        cases.push(base(b2, b2, group, residual, 128));
    }
    for head_dim in [16, 80, 96, 128, 144, 256] {
        cases.push(base(b2, b2, 32, 32, head_dim));
        cases.push(base(b4, b2, 64, 64, head_dim));
        cases.push(base(b8, b8, 128, 128, head_dim));
    }
    for (n_kv_heads, gqa) in [(4, 1), (2, 4), (1, 8), (1, 1), (1, 5), (1, 9), (1, 17)] {
        cases.push(CacheCase { n_kv_heads, gqa, ..base(b2, b2, 32, 64, 64) });
    }
    // Heads that no code fits, but rows do.
    cases.push(base(Bits::B16, Bits::B16, 32, 32, 50));
    for page_tokens in [32, 64, 96, 256] {
        let case = base(b2, b4, 32, 64, 64);
        let config = case.config.with_page_tokens(page_tokens).expect("a multiple of 32");
        cases.push(CacheCase { config, ..case });
    }
    cases
}

/// One new row, many, a prompt, a chunk; lengths around the boundaries; other policies.
fn steps() -> Vec<CacheCase> {
    let mut cases = Vec::new();
    for (k_bits, v_bits) in
        [(Bits::B2, Bits::B2), (Bits::B4, Bits::B8), (Bits::B16, Bits::B2), (Bits::B16, Bits::B16)]
    {
        let case = base(k_bits, v_bits, 32, 64, 64);
        let with = |seqs| CacheCase { seqs, fused: false, ..case.clone() };
        cases.push(with(seqs([(0, 1), (1, 1), (63, 1), (64, 1), (65, 1), (127, 1), (128, 1), (300, 1)])));
        cases.push(with(seqs([(0, 200)])));
        cases.push(with(seqs([(0, 63), (0, 64), (0, 65), (0, 128)])));
        cases.push(with(seqs([(10, 150), (64, 64), (100, 28), (129, 70), (70, 1)])));
        for policy in [Policy::ValuesAhead, Policy::KeysEager] {
            let mut seqs = seqs([(100, 1), (127, 2), (64, 100), (33, 31), (190, 1)]);
            seqs.iter_mut().for_each(|seq| seq.policy = policy);
            seqs[1].active = false;
            cases.push(with(seqs));
        }
        cases.push(CacheCase { q_pad: 1, ..with(seqs([(130, 1), (70, 40)])) });
        cases.push(CacheCase { out_pad: 1, ..with(seqs([(130, 1), (70, 40)])) });
    }
    // More than there are multiprocessors, and than there are warps on a device that is small enough.
    for (gqa, residual, step) in [(1, 32, 1), (4, 32, 1), (1, 128, 7)] {
        let case = base(Bits::B2, Bits::B2, 32, residual, 64);
        let seqs = (0..40).map(|i| SeqCase::new(60 + step * i, 1)).collect();
        cases.push(CacheCase { seqs, gqa, n_kv_heads: 4, ..case });
    }
    // Long enough to be cut into parts, few and many of them, or to lie on a line.
    for (k_bits, v_bits, n_kv_heads) in
        [(Bits::B2, Bits::B2, 1), (Bits::B2, Bits::B2, 3), (Bits::B16, Bits::B16, 1)]
    {
        let case = CacheCase { n_kv_heads, ..base(k_bits, v_bits, 32, 128, 64) };
        cases.push(CacheCase { seqs: seqs([(4200, 1), (2047, 1), (2049, 3)]), ..case.clone() });
        cases.push(CacheCase { seqs: seqs([(2060, 9), (0, 400)]), ..case });
    }
    for gqa in [1, 5] {
        let case = base(Bits::B2, Bits::B2, 32, 128, 64);
        cases.push(CacheCase { n_kv_heads: 1, gqa, seqs: seqs([(4200, 1)]), ..case });
    }
    cases
}

/// Steps of more heads than a device writes at a time: keys of neighbours are due, of one or several groups, and one of them
/// is not active.
fn crowds() -> Vec<CacheCase> {
    let of = |group, residual, n_kv_heads, head_dim| {
        let len = |i: usize| 2 * residual - 4 + i / 3 % residual;
        let seqs = (0..140).map(|i| SeqCase { active: i % 29 != 10, ..SeqCase::new(len(i), 1) }).collect();
        CacheCase { seqs, n_kv_heads, gqa: 1, ..base(Bits::B2, Bits::B2, group, residual, head_dim) }
    };
    vec![of(32, 32, 8, 64), of(32, 128, 5, 128), of(64, 64, 5, 128)]
}

/// Windows, slopes, sinks.
fn masks() -> Vec<CacheCase> {
    let case = |new| {
        let case = base(Bits::B2, Bits::B4, 32, 64, 64);
        CacheCase { seqs: seqs([(0, new), (70, new), (200, new)]), ..case }
    };
    let mut cases = Vec::new();
    for new in [1, 40] {
        for window in [1, 17, 64, 150] {
            cases.push(CacheCase { window: Some(window), ..case(new) });
        }
        cases.push(CacheCase { alibi: true, ..case(new) });
        cases.push(CacheCase { alibi: true, window: Some(50), ..case(new) });
        for sinks in [1, 4, 40, 64] {
            let config = case(new).config.with_sink_tokens(sinks).expect("few sinks");
            cases.push(CacheCase { config, ..case(new) });
        }
    }
    let case = base(Bits::B16, Bits::B2, 32, 64, 64);
    let config = case.config.with_sink_tokens(4).expect("few sinks");
    cases.push(CacheCase { config, ..case });
    cases
}

/// Unusual rows, in every type that they may have.
fn contents() -> Vec<CacheCase> {
    let mut cases = Vec::new();
    for kv_dtype in KvDtype::ALL {
        for data in [Data::Normal, Data::Outlier, Data::Constant, Data::HugeValues] {
            for bits in [Bits::B2, Bits::B4] {
                let case = base(bits, bits, 32, 32, 64);
                let config = case.config.with_kv_dtype(kv_dtype);
                cases.push(CacheCase { config, data, ..case });
            }
        }
        let case = base(Bits::B16, Bits::B16, 32, 32, 80);
        cases.push(CacheCase { config: case.config.with_kv_dtype(kv_dtype), ..case });
    }
    cases
}

/// Queries that find the tokens at the ends of the ranges.
fn picks() -> Vec<CacheCase> {
    let mut cases = Vec::new();
    for (k_bits, v_bits) in
        [(Bits::B2, Bits::B2), (Bits::B4, Bits::B2), (Bits::B16, Bits::B2), (Bits::B2, Bits::B16)]
    {
        let base = base(k_bits, v_bits, 32, 64, 64);
        // So sharp that one token is nearly all there is, and so that the others count as much.
        for factor in [2.0, 0.75] {
            let case = CacheCase { gqa: 5, picks: Some(factor), ..base.clone() };
            let mut steps = seqs([(100, 1), (127, 1), (128, 1), (205, 1), (64, 2), (150, 11), (0, 12)]);
            cases.push(CacheCase { seqs: steps.clone(), ..case.clone() });
            cases.push(CacheCase { seqs: steps.clone(), window: Some(90), ..case.clone() });
            let config = case.config.with_sink_tokens(5).expect("few sinks");
            cases.push(CacheCase { seqs: steps.clone(), config, ..case.clone() });
            for policy in [Policy::ValuesAhead, Policy::KeysEager] {
                steps.iter_mut().for_each(|seq| seq.policy = policy);
                cases.push(CacheCase { seqs: steps.clone(), ..case.clone() });
            }
        }
    }
    cases
}

/// Any small cache and step.
pub(super) fn strategy() -> impl Strategy<Value = CacheCase> {
    let bits = || select(Bits::ALL.to_vec());
    let shape =
        (bits(), bits(), select(vec![(32, 32), (32, 96), (64, 64), (64, 128)]), select(vec![16, 48, 64, 80]));
    let policy = select(vec![Policy::Default, Policy::ValuesAhead, Policy::KeysEager]);
    let seq = (0..220_usize, 1..60_usize, any::<bool>(), 0..8, policy).prop_map(
        |(len, new, decode, active, policy)| SeqCase {
            len,
            new: if decode { 1 } else { new },
            active: active > 0,
            policy,
        },
    );
    let window = select(vec![None, Some(9), Some(100)]);
    let picks = select(vec![None, None, Some(0.75), Some(2.0)]);
    let options = (window, any::<bool>(), any::<bool>(), 0..40_usize, any::<bool>(), picks);
    let heads = (1..3_usize, select(vec![1, 2, 3, 4]), select(KvDtype::ALL.to_vec()), select(vec![1, 2, 4]));
    (shape, vec(seq, 1..4), options, heads, any::<u16>()).prop_map(
        |(
            (k_bits, v_bits, (group, residual), head_dim),
            seqs,
            (window, alibi, fused, sinks, few, picks),
            heads,
            seed,
        )| {
            let case = base(k_bits, v_bits, group, residual, head_dim);
            let (n_kv_heads, gqa, kv_dtype, pages) = heads;
            let config = case.config.with_kv_dtype(kv_dtype).with_page_tokens(pages * group);
            let config = config.and_then(|c| c.with_sink_tokens(if few { 0 } else { sinks }));
            let config = config.expect("valid settings");
            let seed = seed.into();
            CacheCase { config, n_kv_heads, gqa, seqs, window, alibi, fused, picks, seed, ..case }
        },
    )
}
