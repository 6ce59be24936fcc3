//! How near the quantized values are, and how the arithmetic differs from the authors'.

mod common;

use common::Rng;
use half::{bf16, f16};
use kivi_quant::{Bits, GroupParams, GroupSize, KiviConfig, PageLayout, Side, group, original, page};
use proptest::prelude::*;

const QUANTIZED: [Bits; 3] = [Bits::B2, Bits::B4, Bits::B8];

/// Codes of one group by this crate's arithmetic.
fn quantize(values: &[f16], bits: Bits, codes: &mut [u32]) -> GroupParams {
    let params = group::params(values.iter().copied(), bits);
    codes.iter_mut().zip(values).for_each(|(code, &x)| *code = params.quantize(x, bits));
    params
}

/// Scale, zero and codes of a group.
type Quantizer = fn(&[f16], Bits, &mut [u32]) -> GroupParams;

/// Root-mean-square error, and the largest error as a share of the scale.
fn errors(x: &[f16], bits: Bits, group_size: usize, quantizer: Quantizer) -> (f64, f64) {
    let (mut squares, mut worst) = (0.0, 0.0_f64);
    let mut codes = vec![0; group_size];
    for values in x.chunks_exact(group_size) {
        let params = quantizer(values, bits, &mut codes);
        for (x, &code) in values.iter().zip(&codes) {
            let error = f64::from(params.dequantize(code) - x.to_f32());
            squares += error * error;
            worst = worst.max(error.abs() / params.scale.to_f64());
        }
    }
    ((squares / x.len() as f64).sqrt(), worst)
}

#[test]
fn rmse_of_a_normal_distribution() {
    let x = Rng(1).halves(1 << 19);
    let rows = [
        (Bits::B2, [0.3928, 0.4502, 0.5007]),
        (Bits::B4, [0.0782, 0.0897, 0.0998]),
        (Bits::B8, [0.0047, 0.0054, 0.0060]),
    ];
    for (bits, expected) in rows {
        for (group, expected) in GroupSize::ALL.into_iter().zip(expected) {
            // One percent, and half a unit of the last digit that is known.
            let limit = 0.01 * expected + 5e-5;
            let (theirs, _) = errors(&x, bits, group.get(), original::quantize);
            let (ours, _) = errors(&x, bits, group.get(), quantize);
            assert!((theirs - expected).abs() < limit, "{bits} {group:?}: {theirs}");
            // Fewer roundings help where steps are small.
            assert!(ours < theirs + 1e-5 && ours > 0.95 * expected, "{bits} {group:?}: {ours}");
        }
    }
}

#[test]
fn an_error_is_at_most_half_a_step_and_rounding() {
    let x = Rng(2).halves(1 << 18);
    for (bits, limit) in [(Bits::B2, 0.505), (Bits::B4, 0.515), (Bits::B8, 0.70)] {
        let (_, worst) = errors(&x, bits, 32, original::quantize);
        assert!(worst > 0.49 && worst < limit, "original, {bits} bits: {worst}");
        let (_, worst) = errors(&x, bits, 32, quantize);
        assert!(worst > 0.49 && worst < 0.5002, "{bits} bits: {worst}");
    }
}

#[test]
fn few_codes_differ_from_the_original() {
    let x = Rng(3).halves(1 << 21);
    // Share of codes that differ because they are divided in f32, and because the scale is rounded once, too.
    for (bits, same_scale, own_scale) in [(Bits::B2, 0.000_49, 0.000_56), (Bits::B4, 0.0024, 0.0031)] {
        let mut codes = [0; 32];
        let mut differ = [0, 0];
        for values in x.chunks_exact(32) {
            let original = original::quantize(values, bits, &mut codes);
            let params = group::params(values.iter().copied(), bits);
            assert_eq!(params.zero, original.zero);
            assert!(params.scale.to_bits().abs_diff(original.scale.to_bits()) <= 1);
            for (differ, params) in differ.iter_mut().zip([original, params]) {
                for (&x, &code) in values.iter().zip(&codes) {
                    let ours = params.quantize(x, bits);
                    assert!(ours.abs_diff(code) <= 1);
                    *differ += usize::from(ours != code);
                }
            }
        }
        for (differ, expected) in differ.into_iter().zip([same_scale, own_scale]) {
            let share = differ as f64 / x.len() as f64;
            assert!((share / expected - 1.0).abs() < 0.1, "{bits} bits: {share}, expected {expected}");
        }
    }
}

fn layout(bits: Bits, head_dim: usize) -> PageLayout {
    let config = KiviConfig::new(bits, bits, GroupSize::G32, 32).unwrap();
    PageLayout::new(config, head_dim).unwrap()
}

/// The first 32 tokens of a page of keys.
fn read_page(layout: &PageLayout, side: Side, page: &[u32]) -> Vec<f32> {
    let mut rows = vec![0.0; 32 * layout.head_dim()];
    rows.chunks_exact_mut(layout.head_dim())
        .enumerate()
        .for_each(|(token, row)| page::read_row(layout, side, page, token, row));
    rows
}

#[test]
fn outlier_channels_hurt_themselves_alone() {
    let layout = layout(Bits::B2, 64);
    let outlier = |channel: usize| channel % 16 == 3;
    let mut rng = Rng(4);
    let plain: Vec<f32> = (0..32 * 64).map(|_| f16::from_f32(rng.normal()).to_f32()).collect();
    let large: Vec<f32> =
        plain.iter().enumerate().map(|(i, x)| if outlier(i % 64) { 20.0 * x } else { *x }).collect();
    let per_channel = |rows: &[f32]| {
        let mut page = vec![0; layout.page_words()];
        page::pack_keys(&layout, &mut page, 0, rows, 0);
        read_page(&layout, Side::Key, &page)
    };
    let per_token = |rows: &[f32]| {
        let mut page = vec![0; layout.page_words()];
        let tokens = rows.chunks_exact(64).enumerate();
        tokens.for_each(|(token, row)| page::pack_value(&layout, &mut page, token, row));
        read_page(&layout, Side::Value, &page)
    };
    let others = |rows: &[f32]| -> Vec<f32> {
        rows.iter().enumerate().filter(|(i, _)| !outlier(i % 64)).map(|(_, &x)| x).collect()
    };
    assert_eq!(others(&per_channel(&plain)), others(&per_channel(&large)));
    let rmse = |a: &[f32], b: &[f32]| {
        let squares: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
        (squares / a.len() as f32).sqrt()
    };
    let (before, after) = (per_token(&plain), per_token(&large));
    let (before, after) = (rmse(&others(&before), &others(&plain)), rmse(&others(&after), &others(&plain)));
    assert!(after > 3.0 * before, "per token, {before} became {after}");
}

#[test]
fn a_bad_element_spoils_its_own_group_alone() {
    for bits in QUANTIZED {
        let layout = layout(bits, 64);
        let mut rng = Rng(5);
        let rows: Vec<f32> = (0..32 * 64).map(|_| rng.normal()).collect();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
            let mut spoiled = rows.clone();
            spoiled[7 * 64 + 40] = bad;
            let pack = |rows: &[f32]| {
                let mut page = vec![0; layout.page_words()];
                page::pack_keys(&layout, &mut page, 0, rows, 0);
                let tokens = rows.chunks_exact(64).enumerate();
                tokens.for_each(|(token, row)| page::pack_value(&layout, &mut page, token, row));
                [Side::Key, Side::Value].map(|side| read_page(&layout, side, &page))
            };
            let (good, spoiled) = (pack(&rows), pack(&spoiled));
            for i in 0..32 * 64 {
                let (token, channel) = (i / 64, i % 64);
                assert!(spoiled[0][i].is_finite() && spoiled[1][i].is_finite(), "{bits} {bad} {i}");
                assert!(channel == 40 || spoiled[0][i] == good[0][i], "key {token} {channel}");
                assert!(
                    (token == 7 && channel >= 32) || spoiled[1][i] == good[1][i],
                    "value {token} {channel}"
                );
            }
        }
    }
}

#[test]
fn degenerate_groups() {
    for bits in QUANTIZED {
        let constant = group::params([0.75_f32; 32].into_iter(), bits);
        assert_eq!((constant.scale, constant.zero.to_f32()), (f16::ZERO, 0.75));
        assert_eq!(constant.dequantize(constant.quantize(0.75, bits)), 0.75);
        assert_eq!(group::params([f32::NAN; 3].into_iter(), bits), GroupParams::default());
        assert_eq!(group::params([0.0_f32; 0].into_iter(), bits), GroupParams::default());
        // NaN is passed over.
        let params = group::params([f32::NAN, -1.0, 1.0].into_iter(), bits);
        assert_eq!(params, group::params([-1.0_f32, 1.0].into_iter(), bits));
        assert_eq!(params.quantize(f32::NAN, bits), 0);
        // The sign of a zero does not depend on which came first.
        for zeros in [[0.0_f32, -0.0], [-0.0, 0.0], [-0.0, -0.0]] {
            assert_eq!(group::params(zeros.into_iter(), bits).zero.to_bits(), 0);
        }
        // No range, but not finite: as any other that f16 does not hold.
        for (infinity, zero) in [(f32::INFINITY, f16::MAX), (f32::NEG_INFINITY, f16::MIN)] {
            let params = group::params([infinity; 3].into_iter(), bits);
            assert_eq!((params.scale, params.zero), (f16::MAX, zero));
        }
    }
    // A range beyond f16 saturates scale and zero to finite values, in order.
    let huge = group::params([-1e9_f32, 1e9].into_iter(), Bits::B2);
    assert_eq!((huge.scale, huge.zero), (f16::MAX, f16::MIN));
    assert_eq!((huge.quantize(-1e9_f32, Bits::B2), huge.quantize(1e9_f32, Bits::B2)), (0, 3));
    // Ties go to the even code.
    let params = group::params([0.0_f32, 3.0].into_iter(), Bits::B2);
    assert_eq!([0.5, 1.5, 2.5].map(|x: f32| params.quantize(x, Bits::B2)), [0, 2, 2]);
}

#[test]
fn all_three_types_are_read_exactly() {
    let x = [0.5_f32, -1.25, 3.0, 0.0];
    let params = group::params(x.into_iter(), Bits::B4);
    assert_eq!(params, group::params(x.map(f16::from_f32).into_iter(), Bits::B4));
    assert_eq!(params, group::params(x.map(bf16::from_f32).into_iter(), Bits::B4));
}

proptest! {
    /// `|x - x'| <= scale / 2`, plus what rounding zero and scale to f16 costs.
    #[test]
    fn error_bound(x in prop::collection::vec(-30_000.0_f32..30_000.0, 1..129), bits in 0..3_usize, exp in -20..1_i32) {
        let bits = QUANTIZED[bits];
        let x: Vec<f32> = x.iter().map(|x| x * 2.0_f32.powi(exp)).collect();
        let params = group::params(x.iter().copied(), bits);
        let (scale, zero) = (params.scale.to_f64(), params.zero.to_f64());
        let half_ulp = |x: f64| (x.abs() / 2048.0).max(2.0_f64.powi(-25));
        let limit = 0.5001 * scale + half_ulp(zero) + f64::from(bits.max_code()) * half_ulp(scale) + zero.abs() * 1e-6;
        for &x in &x {
            let code = params.quantize(x, bits);
            prop_assert!(code <= bits.max_code());
            let error = (f64::from(params.dequantize(code)) - f64::from(x)).abs();
            prop_assert!(error <= limit, "{x} became code {code}, error {error}, limit {limit}");
        }
    }

    /// A larger value never has a smaller code.
    #[test]
    fn codes_are_monotonic(mut x in prop::collection::vec(-1e3_f32..1e3, 2..65), bits in 0..3_usize) {
        let bits = QUANTIZED[bits];
        x.sort_by(f32::total_cmp);
        let params = group::params(x.iter().copied(), bits);
        let codes: Vec<u32> = x.iter().map(|&x| params.quantize(x, bits)).collect();
        prop_assert!(codes.is_sorted());
    }
}
