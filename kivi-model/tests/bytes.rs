//! Bytes of the cache: what is in use by the formula, what is allocated by the allocator's count.

mod models;
mod random;

use std::collections::BTreeSet;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{CacheUse, Engine, EngineConfig, Event};
use kivi_model::model::Model;
use kivi_quant::{Bits, CacheBytes, GroupSize, KiviConfig, KvDtype};
use models::{config, request};
use random::{SMALL, Small, tokens};

/// `(k_bits, v_bits)`.
const WIDTHS: [(usize, usize); 7] = [(2, 2), (4, 4), (8, 8), (4, 2), (2, 8), (16, 2), (2, 16)];
/// Layers times KV heads of the models below.
const HEADS: usize = 2 * 2;

/// One cache: widths, group size, residual length, channels.
#[derive(Clone, Copy, Debug)]
struct Case {
    k: usize,
    v: usize,
    g: usize,
    r: usize,
    d: usize,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for d in [64, 80, 128] {
            for g in [32, 64, 128] {
                for r in [32, 96, 128, 256].into_iter().filter(|r| r % g == 0) {
                    cases.extend(WIDTHS.map(|(k, v)| Self { k, v, g, r, d }));
                }
            }
        }
        cases
    }

    fn config(&self) -> KiviConfig {
        let bits = |b: usize| Bits::try_from(b as u32).expect("a width");
        let group = GroupSize::try_from(self.g).expect("a group size");
        KiviConfig::new(bits(self.k), bits(self.v), group, self.r).expect("a valid cache")
    }

    /// Lengths at which anything changes, and their neighbours.
    fn lengths(&self, longest: usize) -> BTreeSet<usize> {
        let edges = [1, self.r, 2 * self.r, 128, 256, 128 + self.r, 256 + self.r];
        let around = edges.into_iter().flat_map(|edge| [edge - 1, edge, edge + 1]);
        around.filter(|len| (1..=longest).contains(len)).collect()
    }

    /// Packed keys and values of `len` tokens.
    fn packed(&self, len: usize) -> (usize, usize) {
        let k = if self.k == 16 { len } else { self.r * (len / self.r) };
        let v = if self.v == 16 { len } else { len.saturating_sub(self.r) };
        (k, v)
    }

    /// What one KV head takes: `D b / 8` bytes of codes and 4 bytes for each of its groups a packed token, `2 D` a
    /// token in full precision. Groups of keys are columns of `g` tokens; those of values are rows, the last of which
    /// may be shorter.
    fn used(&self, len: usize) -> CacheBytes {
        let (d, g, (k, v)) = (self.d, self.g, self.packed(len));
        let k_scales = if self.k == 16 { 0 } else { k / g * d * 4 };
        let v_scales = if self.v == 16 { 0 } else { v * d.div_ceil(g) * 4 };
        CacheBytes {
            codes: k * d * self.k / 8 + v * d * self.v / 8,
            scales: k_scales + v_scales,
            residual: (len - k) * 2 * d + (len - v) * 2 * d,
            fp16: len * 4 * d,
        }
    }

    /// Bytes of a page of 128 tokens, of one KV head.
    fn page(&self) -> usize {
        let (d, g) = (self.d, self.g);
        let k_scales = if self.k == 16 { 0 } else { 128 / g * d * 4 };
        let v_scales = if self.v == 16 { 0 } else { 128 * d.div_ceil(g) * 4 };
        128 * d * (self.k + self.v) / 8 + k_scales + v_scales
    }

    /// Bytes of the rings of one KV head of a sequence.
    fn rings(&self) -> usize {
        let sides = [self.k, self.v].into_iter().filter(|bits| *bits < 16).count();
        sides * self.r * 2 * self.d
    }

    fn pages(&self, len: usize) -> usize {
        let (k, v) = self.packed(len);
        k.max(v).div_ceil(128)
    }
}

/// The published figures, for one KV head of 128 channels: 48 bytes for a token of 2-bit keys or values at group size
/// 32, 80 at 4 bits; the formula above must give them.
#[test]
fn the_formula_gives_the_published_figures() {
    for (bits, per_token) in [(2, [48, 40, 36]), (4, [80, 72, 68]), (8, [144, 136, 132])] {
        for (g, bytes) in [32, 64, 128].into_iter().zip(per_token) {
            let case = Case { k: bits, v: bits, g, r: 128, d: 128 };
            assert_eq!(case.used(2 * 128).used(), 2 * 128 * bytes + 128 * (bytes + 256), "{case:?}");
        }
    }
    // Llama-2-7B at 498 tokens, residual 32: 56.84 MiB of 249.
    let case = Case { k: 2, v: 2, g: 32, r: 32, d: 128 };
    let mib = |bytes: usize| (32 * 32 * bytes) as f64 / f64::from(1 << 20);
    assert!((mib(case.used(498).used()) - 56.84).abs() < 0.005);
    assert_eq!(mib(case.used(498).fp16), 249.0);
}

/// `CacheBytes` for every setting and length.
#[test]
fn used_and_allocated_follow_the_formula() {
    for case in Case::all() {
        let layout = kivi_quant::PageLayout::new(case.config(), case.d).expect("a layout");
        for len in [0].into_iter().chain(case.lengths(1024)) {
            assert_eq!(CacheBytes::of_head(&layout, len), case.used(len), "{case:?}, {len} tokens");
            let allocated = case.pages(len) * case.page() + case.rings();
            assert_eq!(CacheBytes::allocated_by_head(&layout, len), allocated, "{case:?}, {len} tokens");
        }
    }
}

/// Rows in f32 take twice as much outside pages, and nothing else does.
#[test]
fn rows_in_f32_take_twice_as_much() {
    for case in Case::all().into_iter().filter(|case| case.k < 16 && case.v < 16) {
        let wide = kivi_quant::PageLayout::new(case.config().with_kv_dtype(KvDtype::F32), case.d);
        let used = CacheBytes::of_head(&wide.expect("a layout"), 700);
        let expected = CacheBytes { residual: 2 * case.used(700).residual, ..case.used(700) };
        assert_eq!(used, expected, "{case:?}");
    }
}

fn model(backend: &Cpu<f32>, head_dim: usize) -> Model<Cpu<f32>> {
    Small { head_dim, ..SMALL }.load(backend)
}

/// What the cache of a sequence took when it held `len` tokens.
fn cache_of(backend: &Cpu<f32>, model: &Model<Cpu<f32>>, sizes: EngineConfig, len: usize) -> CacheUse {
    let mut engine = Engine::new(backend, model, sizes).expect("an engine");
    engine.submit(request(&tokens("p", len, SMALL.vocab), 1)).expect("a good request");
    let events = engine.step().expect("the CPU does not fail");
    let finished = events.into_iter().find_map(|event| match event {
        Event::Finished { cache, .. } => Some(cache),
        _ => None,
    });
    finished.expect("one token was asked for")
}

/// What an engine reports of its sequences, at every edge of their lengths.
#[test]
fn engines_report_what_their_sequences_take() {
    let backend = Cpu::<f32>::new();
    for d in [64, 80, 128] {
        let model = model(&backend, d);
        for (k, v, g, r) in
            [(2, 2, 32, 32), (2, 2, 32, 128), (4, 2, 32, 96), (8, 4, 64, 128), (2, 2, 128, 256)]
        {
            let case = Case { k, v, g, r, d };
            for len in case.lengths(270) {
                let sizes = config(case.config(), len + 1, 1);
                let found = cache_of(&backend, &model, sizes, len);
                assert_eq!(found.tokens, len);
                assert_eq!(found.used, case.used(len).times(HEADS), "{case:?}, {len} tokens");
                let allocated = case.pages(len) * case.page() + case.rings();
                assert_eq!(found.allocated, HEADS * allocated, "{case:?}, {len} tokens");
            }
        }
    }
}

/// The allocator's count: engines that differ in their pools alone differ by so many pages, engines that differ in
/// their residual length alone by so many rows of rings.
#[test]
fn the_allocator_counts_what_is_reported() {
    let backend = Cpu::<f32>::new();
    let before = backend.allocated_bytes();
    for d in [64, 80, 128] {
        let model = model(&backend, d);
        let idle = backend.allocated_bytes();
        let counted = |case: Case, pages: usize| {
            let sizes = EngineConfig { pool_tokens: pages * 128, ..config(case.config(), 1024, 3) };
            let engine = Engine::new(&backend, &model, sizes).expect("an engine");
            let counted = backend.allocated_bytes() - idle;
            drop(engine);
            assert_eq!(backend.allocated_bytes(), idle, "an engine gives all of it back");
            counted
        };
        for case in Case::all().into_iter().filter(|case| case.d == d && case.r == 128) {
            let small = counted(case, 1);
            assert_eq!(counted(case, 7) - small, 6 * HEADS * case.page(), "{case:?}");
            let longer = Case { r: 256, ..case };
            assert_eq!(counted(longer, 1) - small, 3 * HEADS * (longer.rings() - case.rings()), "{case:?}");
        }
    }
    assert_eq!(backend.allocated_bytes(), before, "models give all of it back");
}
