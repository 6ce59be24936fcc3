//! Perplexity and divergence against a PyTorch model of the cache, which `xtask/golden/perplexity.py` ran.

mod models;

use std::collections::BTreeSet;

use kivi_kernels_ref::Cpu;
use kivi_model::perplexity::{Cut, PerplexityError, Scores, Setting, compare};
use kivi_model::policy::CachePolicy;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};
use models::{golden, ids, kivi_tiny};
use serde_json::Value;

/// The text of the golden file: the documents of another one without their first tokens, one after the other.
fn text() -> Vec<u32> {
    let golden = golden("kivi-nll.json");
    let documents = golden["documents"].as_array().expect("documents").iter();
    documents.flat_map(|document| ids(&document["ids"]).split_off(1)).collect()
}

fn setting(case: &Value) -> Setting {
    let number = |field: &str| case[field].as_u64().expect("a number");
    let bits = |field| Bits::try_from(number(field) as u32).expect("a width");
    let residual = number("residual") as usize;
    let config = KiviConfig::new(bits("k_bits"), bits("v_bits"), GroupSize::G32, residual);
    CachePolicy::from(config.expect("a valid cache").with_kv_dtype(KvDtype::F32)).into()
}

#[test]
fn scores_are_those_of_pytorch() {
    let backend = Cpu::<f32>::new();
    let model = kivi_tiny(&backend);
    let golden = golden("perplexity.json");
    let cases = golden["cases"].as_array().expect("cases");
    let size = |field: &str| golden[field].as_u64().expect("a number") as usize;
    let cut = Cut { ctx_size: size("ctx_size"), stride: size("stride") };
    let windows = cut.windows(&[0], &text());
    let settings: Vec<_> = cases.iter().map(setting).collect();
    // Fewer windows at a time than there are, and a batch that is not full at the end.
    let scores = compare(&backend, &model, &settings, (cut, &windows), 5, &mut |_| {}).expect("scores");
    for (case, scores) in cases.iter().zip(&scores) {
        let expected = |field: &str| case[field].as_f64().expect("a number");
        assert_eq!(scores.nll.len(), size("scored"));
        let limit = if case["k_bits"] == 16 { 1e-4 } else { 1e-3 };
        let found = [scores.mean_nll().0, scores.mean_kld().0, scores.same_top_share()];
        let wanted = ["nll", "kld", "same_top"].map(expected);
        let limits = [limit, limit, 5e-3];
        for ((found, wanted), limit) in found.into_iter().zip(wanted).zip(limits) {
            assert!((found - wanted).abs() <= limit, "{case}: {found}, not {wanted}");
        }
        assert!((scores.kld_quantile(0.5) - expected("kld_median")).abs() <= 1e-3, "{case}");
    }
    assert_eq!((scores[0].mean_kld(), scores[0].same_top_share()), ((0.0, 0.0), 1.0), "against itself");
    assert!(scores[3].mean_kld().0 > scores[2].mean_kld().0, "2 bits are worse than 4");
    for scores in &scores {
        let places: BTreeSet<usize> = scores.places.iter().copied().collect();
        assert_eq!(places, (cut.ctx_size - cut.stride..cut.ctx_size).collect());
        assert!(places.iter().all(|p| scores.places.iter().filter(|q| *q == p).count() == windows.len()));
    }
    assert!(scores[3].cache.used.used() < scores[2].cache.used.used());
}

#[test]
fn texts_are_cut_as_the_protocol_says() {
    let cut = Cut { ctx_size: 5, stride: 2 };
    let windows = |n: u32| cut.windows(&[9], &(0..n).collect::<Vec<_>>());
    assert_eq!(windows(3), Vec::<Vec<u32>>::new(), "too short for one");
    assert_eq!(windows(4), [[9, 0, 1, 2, 3]]);
    assert_eq!(windows(7), [[9, 0, 1, 2, 3], [9, 2, 3, 4, 5]], "the last token is left over");
    assert_eq!(Cut { ctx_size: 3, stride: 2 }.windows(&[], &[1, 2, 3, 4, 5]), [[1, 2, 3], [3, 4, 5]]);
    let backend = Cpu::<f32>::new();
    let model = kivi_tiny(&backend);
    for stride in [0, 5, 6] {
        let cut = Cut { ctx_size: 5, stride };
        let error =
            compare(&backend, &model, &[], (cut, &[]), 1, &mut |_| {}).expect_err("an impossible stride");
        assert!(matches!(error, PerplexityError::Stride { most: 4, .. }), "{error}");
    }
}

#[test]
fn quantiles_and_errors() {
    let scores = Scores { kld: vec![4.0, 1.0, 3.0, 2.0], nll: vec![1.0, 2.0, 3.0, 4.0], ..Scores::default() };
    assert_eq!(
        [0.0, 0.25, 0.5, 0.51, 0.99, 1.0].map(|q| scores.kld_quantile(q)),
        [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]
    );
    let (mean, error) = scores.mean_nll();
    // The variance of 1, 2, 3, 4 is 5/3.
    assert!(mean == 2.5 && (error - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    assert_eq!(Scores::default().kld_quantile(0.5), 0.0);
}

/// Windows that run at the same time come in turns, and one that is alone does not.
#[test]
fn divergence_by_place() {
    let (places, kld) =
        (vec![8, 8, 9, 9, 10, 10, 8, 9, 10], vec![1.0, 2.0, 4.0, 5.0, 7.0, 8.0, 3.0, 6.0, 9.0]);
    let scores = Scores { places, kld, ..Scores::default() };
    assert_eq!(scores.kld_by_position(32), [(8, 2.0), (9, 5.0), (10, 8.0)]);
    assert_eq!(scores.kld_by_position(2), [(8, 3.5), (10, 8.0)]);
    assert_eq!(scores.kld_by_position(0), [(8, 5.0)]);
    assert!(Scores::default().kld_by_position(32).is_empty());
}
