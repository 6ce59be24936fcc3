//! Each filter by hand, the law of large numbers, and hostile numbers, as the CPU backend draws.

use kivi_kernels::{Backend, Rows, ops};
use kivi_kernels_ref::Cpu;

use super::*;

fn params(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, seed: 1, ..SamplingParams::default() }
}

/// The next token; `u32::MAX` if there is none.
fn sample(sampler: &mut Sampler, logits: &[f32], history: &[u32]) -> u32 {
    let cpu = Cpu::<f32>::new();
    let mut scores = logits.to_vec();
    sampler.penalise(&mut scores, history);
    let logits = cpu.upload(&scores).expect("memory");
    let draws = cpu.upload(&sampler.draw().to_words()).expect("memory");
    let mut token = cpu.upload(&[0]).expect("memory");
    let rows = Rows::new(&logits, 1, scores.len()).expect("a row");
    cpu.sample(ops::Sample::new(&mut token, rows, &draws).expect("they fit")).expect("the CPU does not fail");
    let mut read = [0];
    cpu.read(&token, 0, &mut read).expect("one word");
    read[0]
}

/// Which tokens ever come out of 2,000 draws.
fn reachable(params: &SamplingParams, logits: &[f32]) -> Vec<u32> {
    let mut sampler = Sampler::new(params);
    let mut seen: Vec<u32> = (0..2000).map(|_| sample(&mut sampler, logits, &[])).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Logits of these probabilities.
fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

#[test]
fn greedy_takes_the_first_of_equals() {
    assert_eq!(sample(&mut Sampler::new(&params(0.0)), &[1.0, 3.0, 3.0, 2.0], &[]), 1);
}

#[test]
fn top_k_keeps_ties() {
    let p = SamplingParams { top_k: 2, ..params(1.0) };
    assert_eq!(reachable(&p, &[1.0, 2.0, 1.0, 0.5]), [0, 1, 2]);
    let p = SamplingParams { top_k: 1, ..params(1.0) };
    assert_eq!(reachable(&p, &[1.0, 2.0, 1.0, 0.5]), [1]);
}

#[test]
fn top_p_keeps_the_fewest_that_reach_it() {
    let logits = logits(&[0.1, 0.5, 0.25, 0.15]);
    for (top_p, expected) in [(0.0, &[1u32][..]), (0.45, &[1]), (0.6, &[1, 2]), (0.8, &[1, 2, 3])] {
        assert_eq!(reachable(&SamplingParams { top_p, ..params(1.0) }, &logits), expected, "{top_p}");
    }
}

#[test]
fn top_p_counts_what_top_k_left() {
    // Of 0.5 and 0.25 alone, 0.5 is two thirds: it reaches 0.6 by itself.
    let p = SamplingParams { top_k: 2, top_p: 0.6, ..params(1.0) };
    assert_eq!(reachable(&p, &logits(&[0.1, 0.5, 0.25, 0.15])), [1]);
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    let p = SamplingParams { min_p: 0.4, ..params(1.0) };
    assert_eq!(reachable(&p, &logits(&[0.1, 0.5, 0.25, 0.15])), [1, 2]);
}

#[test]
fn temperature_sharpens() {
    assert_eq!(reachable(&params(0.01), &[1.0, 2.0, 1.5]), [1]);
    assert_eq!(reachable(&params(100.0), &[1.0, 2.0, 1.5]), [0, 1, 2]);
}

#[test]
fn repetition_penalty_counts_a_token_once() {
    let p = SamplingParams { repetition_penalty: 2.0, ..params(0.0) };
    let mut sampler = Sampler::new(&p);
    assert_eq!(sample(&mut sampler, &[3.0, 2.0, 1.0], &[0, 0, 0, 99]), 1);
    assert_eq!(sample(&mut sampler, &[3.0, 1.0, 0.0], &[0, 0, 0]), 0, "3 / 2 and not 3 / 8");
    assert_eq!(sample(&mut sampler, &[-1.0, -1.5], &[0]), 1, "negative logits are multiplied");
}

#[test]
fn frequencies_are_the_probabilities() {
    let probabilities = [0.1f32, 0.5, 0.25, 0.15];
    let mut sampler = Sampler::new(&params(1.0));
    let mut counts = [0u32; 4];
    for _ in 0..40_000 {
        counts[sample(&mut sampler, &logits(&probabilities), &[]) as usize] += 1;
    }
    for (count, probability) in counts.iter().zip(probabilities) {
        assert!((*count as f32 / 40_000.0 - probability).abs() < 0.01, "{counts:?}");
    }
}

/// The stream belongs to the format of reproducible runs: a change here changes every seeded text.
#[test]
fn a_seed_gives_the_same_tokens_for_ever() {
    let mut sampler = Sampler::new(&SamplingParams { seed: 42, ..params(1.0) });
    let tokens: Vec<u32> = (0..8).map(|_| sample(&mut sampler, &[0.0; 1000], &[])).collect();
    assert_eq!(tokens, SEED_42);
}

const SEED_42: [u32; 8] = [315, 59, 83, 166, 834, 437, 441, 884];

/// Every token's number follows from its id: none is favoured, in any order of the logits.
#[test]
fn frequencies_are_the_probabilities_of_many() {
    let logits: Vec<f32> = (0..500).map(|i| (i as f32 * 0.7).sin()).collect();
    let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
    let mut sampler = Sampler::new(&params(1.0));
    let mut counts = [0.0; 500];
    for _ in 0..50_000 {
        counts[sample(&mut sampler, &logits, &[]) as usize] += 1.0;
    }
    let expected = weights.iter().map(|w| 50_000.0 * w / weights.iter().sum::<f64>());
    let chi_square: f64 = counts.iter().zip(expected).map(|(n, e)| (n - e).powi(2) / e).sum();
    // 499 degrees of freedom: a mean of 499, a standard deviation of 31.6.
    assert!((499.0 - 130.0..499.0 + 130.0).contains(&chi_square), "{chi_square}");
}

/// What else runs in a step changes logits by rounding; a text should not depend on that.
#[test]
fn rounding_changes_no_token() {
    let exact: Vec<f32> = (0..4096).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
    let rounded: Vec<f32> = (0..4096).map(|i| exact[i] + 1e-5 * (i as f32 / 600.0).sin()).collect();
    let [mut a, mut b] = [(); 2].map(|()| Sampler::new(&params(1.0)));
    let changed = (0..3000).filter(|_| sample(&mut a, &exact, &[]) != sample(&mut b, &rounded, &[])).count();
    assert_eq!(changed, 0, "of 3,000");
}

#[test]
fn hostile_logits_never_panic() {
    for (logits, finite) in [
        (&[f32::NAN; 4][..], false),
        (&[f32::NEG_INFINITY; 4], false),
        (&[0.0, f32::INFINITY, f32::NAN], false),
        (&[f32::MAX, f32::MIN, 0.0], true),
    ] {
        for temperature in [0.0, 1e-30, 1.0, 1e30] {
            let p = SamplingParams { top_k: 2, top_p: 0.5, min_p: 0.1, ..params(temperature) };
            let id = sample(&mut Sampler::new(&p), logits, &[0, 1, 7]);
            assert_eq!((id as usize) < logits.len(), finite, "{logits:?} at {temperature}");
        }
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let message = SamplingParams { temperature: -1.0, ..params(0.0) }.validate().unwrap_err().to_string();
    assert_eq!(message, "temperature: expected a number from 0 (greedy) on, found -1");
    for bad in [
        SamplingParams { temperature: f32::NAN, ..params(0.0) },
        SamplingParams { top_p: 1.1, ..params(0.0) },
        SamplingParams { min_p: -0.1, ..params(0.0) },
        SamplingParams { repetition_penalty: 0.0, ..params(0.0) },
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
    }
    params(0.7).validate().unwrap();
}
