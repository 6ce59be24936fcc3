//! What must hold of a cache whatever is in it.

mod common;

use common::{Shape, World, dense, distance, shape};
use kivi_kernels::{Backend, DType, ErrorKind, KernelError, KvLayer};
use kivi_kernels_ref::conformance::{AppendCase, Case};
use kivi_kernels_ref::{Accum, Cpu};
use kivi_quant::{Bits, CacheBytes, GroupSize, KiviConfig, KvDtype, PageLayout, Side};
use proptest::prelude::*;

/// The contents of a sequence of `n` tokens that came in steps of these sizes.
fn contents<A: Accum>(cpu: Cpu<A>, shape: Shape, n: usize, cuts: &[usize]) -> Vec<u32> {
    let mut world = World::single(cpu, shape, &shape.tokens(n, 11));
    for &cut in cuts {
        let left = n - world.lens[0];
        if left > 0 {
            world.step(&[cut.min(left)]);
        }
    }
    let left = n - world.lens[0];
    if left > 0 {
        world.step(&[left]);
    }
    world.contents(0)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// The bytes are the same for every way of cutting rows into calls.
    #[test]
    fn split_invariance(
        bits in (0..4_usize, 0..4_usize),
        sizes in prop::sample::select(vec![(32, 32), (32, 96), (64, 64), (64, 128)]),
        options in (0..3_usize, prop::sample::select(vec![0, 3, 40]), 1..4_usize),
        n in 1..330_usize,
        cuts in prop::collection::vec(1..90_usize, 0..12),
    ) {
        let mut shape = shape(Bits::ALL[bits.0], Bits::ALL[bits.1], sizes.0, sizes.1);
        let config = shape.config.with_kv_dtype(KvDtype::ALL[options.0]).with_sink_tokens(options.1).unwrap();
        shape.config = config.with_page_tokens(options.2 * sizes.0).unwrap();
        let whole = contents(Cpu::<f64>::new(), shape, n, &[]);
        prop_assert_eq!(&whole, &contents(Cpu::<f64>::new(), shape, n, &cuts));
        prop_assert_eq!(&whole, &contents(Cpu::<f32>::new(), shape, n, &cuts));
    }
}

/// One token at a time, one call across several flushes, and calls that stop at boundaries.
#[test]
fn several_flushes_in_one_call() {
    for (k_bits, v_bits) in [(Bits::B2, Bits::B2), (Bits::B4, Bits::B8), (Bits::B2, Bits::B16)] {
        let shape = shape(k_bits, v_bits, 32, 32);
        let n = 5 * 32 + 3;
        let whole = contents(Cpu::<f32>::new(), shape, n, &[]);
        for cuts in [vec![1; n], vec![31, n], vec![31, 1, 1, 64, 63], vec![32; 6], vec![33; 5]] {
            assert_eq!(whole, contents(Cpu::<f32>::new(), shape, n, &cuts), "{cuts:?}");
        }
    }
}

/// What is packed once never changes.
#[test]
fn packed_tokens_never_change() {
    let shape = shape(Bits::B2, Bits::B4, 32, 64);
    let mut world = World::single(Cpu::<f32>::new(), shape, &shape.tokens(300, 5));
    let mut before = Vec::new();
    for take in [1, 62, 1, 1, 70, 3, 100, 1, 61] {
        world.step(&[take]);
        let packed = world.packed(0);
        let keys = (0..packed.k).map(|t| (Side::Key, t));
        let sides = keys.chain((0..packed.v).map(|t| (Side::Value, t)));
        let now: Vec<_> =
            sides.map(|(side, t)| (side == Side::Value, t, world.packed_row(0, side, 1, t))).collect();
        let kept = |(value, t, row): &(bool, usize, Vec<f64>)| {
            now.iter().any(|x| (x.0, x.1) == (*value, *t) && x.2 == *row)
        };
        assert!(before.iter().all(kept), "after {} tokens", world.lens[0]);
        before = now;
    }
}

/// A sequence's cache and results do not depend on who else is in the batch.
#[test]
fn batch_invariance() {
    fn check<A: Accum>(cpu: fn() -> Cpu<A>) {
        let shape = shape(Bits::B2, Bits::B2, 32, 32);
        let all: Vec<_> =
            [150, 77, 200, 40].iter().zip(0..).map(|(&n, seed)| shape.tokens(n, seed)).collect();
        let mut together = World::new(cpu(), shape, all.clone());
        let mut alone: Vec<_> = all.iter().map(|tokens| World::single(cpu(), shape, tokens)).collect();
        for takes in [[100, 30, 0, 1], [1, 1, 90, 38], [0, 46, 1, 1], [49, 0, 109, 0]] {
            let outputs = together.step(&takes);
            let single: Vec<f64> =
                (0..4).filter(|&s| takes[s] > 0).flat_map(|s| alone[s].step(&[takes[s]])).collect();
            assert_eq!(outputs, single);
        }
        for (s, alone) in alone.iter().enumerate() {
            assert_eq!(together.contents(s), alone.contents(0), "sequence {s}");
        }
    }
    check(Cpu::<f64>::new);
    check(Cpu::<f32>::new);
}

/// Nothing is packed in a short sequence: a 2-bit cache gives what an unquantized one gives, also with grouped
/// queries.
#[test]
fn short_prompts_are_exact() {
    for n in [1, 30, 63] {
        let of = |bits| {
            let mut shape = shape(bits, bits, 32, 64);
            shape.gqa = 4;
            let mut world = World::single(Cpu::<f64>::new(), shape, &shape.tokens(n + 1, 3));
            (world.step(&[n]), world.step(&[1]))
        };
        assert_eq!(of(Bits::B2), of(Bits::B16));
    }
}

/// Without quantization, chunks give what the whole prompt gives.
#[test]
fn chunks_of_an_exact_cache_agree() {
    let mut shape = shape(Bits::B16, Bits::B16, 32, 32);
    shape.config = shape.config.with_kv_dtype(KvDtype::F32);
    let tokens = shape.tokens(200, 9);
    let whole = World::single(Cpu::<f32>::new(), shape, &tokens).step(&[200]);
    let mut world = World::single(Cpu::<f32>::new(), shape, &tokens);
    let chunks: Vec<f64> = [1, 99, 37, 63].iter().flat_map(|&n| world.step(&[n])).collect();
    assert!(distance(&whole, &chunks) < 1e-5);
}

/// Swapping key/value heads swaps the outputs of their query heads.
#[test]
fn heads_are_independent() {
    let shape = shape(Bits::B2, Bits::B2, 32, 32);
    let swap = |x: &[f64], cols: usize| -> Vec<f64> {
        x.chunks(cols).flat_map(|row| [&row[cols / 2..], &row[..cols / 2]].concat()).collect()
    };
    let tokens = shape.tokens(140, 21);
    let swapped = common::Tokens {
        q: swap(&tokens.q, shape.q_cols()),
        k: swap(&tokens.k, shape.kv_cols()),
        v: swap(&tokens.v, shape.kv_cols()),
    };
    let mut world = World::single(Cpu::<f32>::new(), shape, &tokens);
    let mut other = World::single(Cpu::<f32>::new(), shape, &swapped);
    for take in [100, 1, 39] {
        let out = world.step(&[take]);
        assert_eq!(swap(&out, shape.q_cols()), other.step(&[take]));
        let (a, b) = out.split_at(shape.q_cols() / 2);
        assert_ne!(a, &b[..a.len()]);
    }
}

/// Each key alone finds its own value, in whichever range it lies: tokens are in order of time everywhere.
#[test]
fn every_token_is_found_where_it_is() {
    let mut shape = shape(Bits::B8, Bits::B8, 32, 32);
    (shape.n_kv_heads, shape.gqa) = (1, 1);
    let (n, d) = (100, shape.head_dim);
    let mut tokens = shape.tokens(n + 1, 31);
    // Keys of signs are nearly orthogonal: a large query that is one of them picks its token.
    tokens.k.iter_mut().for_each(|x| *x = x.signum());
    for target in 0..n {
        let (from, last) = (target * d, n * d);
        (0..d).for_each(|c| tokens.q[last + c] = 16.0 * tokens.k[from + c]);
        let mut world = World::single(Cpu::<f32>::new(), shape, &tokens);
        world.step(&[n]);
        let out = world.step(&[1]);
        let error = distance(&out, &tokens.v[from..from + d]);
        assert!(error < 0.05, "token {target}: {error}");
    }
}

/// The bytes that the formula says are the bytes that the allocator counts.
#[test]
fn allocated_bytes_are_the_formula() {
    for bits in [Bits::B2, Bits::B4, Bits::B8] {
        for group in GroupSize::ALL {
            for r in [32, 96, 128, 256].into_iter().filter(|r| r % group.get() == 0) {
                for head_dim in [64, 80, 128] {
                    let config = KiviConfig::new(bits, bits, group, r).unwrap();
                    let layout = PageLayout::new(config, head_dim).unwrap();
                    for len in [0, 1, r - 1, r, r + 1, 2 * r, 5 * r + 3] {
                        let cpu = Cpu::<f32>::new();
                        let layer = KvLayer::new(&cpu, layout, 3, config.pages(len), 1).unwrap();
                        let bytes = CacheBytes::of_head(&layout, len).times(3).used();
                        assert_eq!(cpu.allocated_bytes(), 3 * CacheBytes::allocated_by_head(&layout, len));
                        assert!(bytes <= cpu.allocated_bytes());
                        drop(layer);
                        assert_eq!(cpu.allocated_bytes(), 0);
                    }
                }
            }
        }
    }
}

#[test]
fn impossible_requests_are_errors() {
    let cpu = Cpu::<f32>::new();
    for len in [usize::MAX, usize::MAX / 4, 1 << 60] {
        let error = cpu.zeros::<u32>(len).err().expect("no machine has this");
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains(&format!("{len} elements of u32")), "{error}");
    }
    let mut buffer = cpu.zeros::<f32>(4).unwrap();
    assert!(cpu.write(&mut buffer, 2, &[0.0; 3]).is_err());
    assert!(cpu.read(&buffer, usize::MAX, &mut [0.0; 2]).is_err());
    cpu.write(&mut buffer, 1, &[1.0; 3]).unwrap();
}

/// The oracle's append leaves what the definition of the state says, built on the host from all rows at once.
#[test]
fn append_is_the_definition() {
    let oracle = Cpu::<f64>::new();
    for AppendCase(case) in AppendCase::by_hand() {
        let got = AppendCase(case.clone()).run(&oracle, DType::F32).unwrap().words;
        let expected = case.words(&oracle, &case.layer_after(&oracle, DType::F32).unwrap()).unwrap();
        assert!(got == expected, "{case:?}");
    }
}

/// Attention over the cache is attention over its dequantized rows.
#[test]
fn fused_is_dequantize_then_attend() {
    let shape = shape(Bits::B2, Bits::B4, 32, 64);
    let (n, d) = (205, shape.head_dim);
    let tokens = shape.tokens(n + 1, 8);
    let mut world = World::single(Cpu::<f64>::new(), shape, &tokens);
    world.step(&[n]);
    let mut expected = Vec::new();
    for head in 0..shape.gqa * shape.n_kv_heads {
        let kv_head = head / shape.gqa;
        let rows = |side, packed: usize, full: &[f64]| -> Vec<Vec<f64>> {
            let exact = |t: usize| full[t * shape.kv_cols() + kv_head * d..][..d].to_vec();
            let row = |t| if t < packed { world.packed_row(0, side, kv_head, t) } else { exact(t) };
            (0..=n).map(row).collect()
        };
        let packed = world.packed(0);
        let (keys, values) = (rows(Side::Key, packed.k, &tokens.k), rows(Side::Value, packed.v, &tokens.v));
        expected.extend(dense(&tokens.q[n * shape.q_cols() + head * d..][..d], &keys, &values));
    }
    assert!(distance(&world.step(&[1]), &expected) < 1e-6);
}
