//! Log-probabilities over the packed cache against those of a PyTorch model of KIVI, which `xtask/golden/golden.py` ran.

use anyhow::{Context, Result, ensure};
use kivi_kernels::Backend;
use kivi_model::engine::Engine;
use kivi_model::model::Model;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{log_softmax, logits, request, sizes};

const GOLDEN: &str = include_str!("../../../kivi-model/tests/golden/kivi-nll.json");
/// By how much the mean of a passage may differ, in nats. Rounding activations takes PyTorch's own model over 5e-3 at 2 bits, most in
/// bf16 and where the window is short (docs/numerics.md, "Whole models on CUDA").
fn limit(setting: &str, rows: KvDtype) -> f64 {
    match (setting.starts_with("2:2"), setting.ends_with(" R32") || rows == KvDtype::Bf16) {
        (false, _) => 5e-3,
        (true, false) => 1e-2,
        (true, true) => 2e-2,
    }
}

#[derive(Deserialize)]
struct Golden {
    prefix: usize,
    documents: Vec<Document>,
}

#[derive(Deserialize)]
struct Document {
    ids: Vec<u32>,
    /// By `K:V` or `K:V RN`: bits of keys and values, residual length.
    logprob: BTreeMap<String, Vec<f64>>,
}

/// Compares every passage at every setting of the file, with rows of this type; returns how many settings failed.
pub fn compare<B: Backend>(device: &B, model: &Model<B>, rows: KvDtype) -> Result<usize> {
    let golden: Golden = serde_json::from_str(GOLDEN)?;
    let mut largest: BTreeMap<&str, f64> = BTreeMap::new();
    for document in &golden.documents {
        for (setting, expected) in &document.logprob {
            let cache = setting_of(setting)?.with_kv_dtype(rows);
            let found = log_probabilities(device, model, cache, (&document.ids, golden.prefix))?;
            ensure!(
                found.len() == expected.len(),
                "{setting}: {} tokens, expected {}",
                found.len(),
                expected.len()
            );
            let difference = (mean(&found) - mean(expected)).abs();
            let most = largest.entry(setting).or_default();
            // What is not a number stays.
            if difference > *most || difference.is_nan() {
                *most = difference;
            }
        }
    }
    for (setting, difference) in &largest {
        let verdict = if *difference <= limit(setting, rows) { "pass" } else { "FAIL" };
        println!(
            "{setting} {rows} rows: the mean differs from PyTorch's by {difference:.1e} nats: {verdict}"
        );
    }
    let near = largest.iter().filter(|(setting, difference)| **difference <= limit(setting, rows));
    Ok(largest.len() - near.count())
}

fn setting_of(text: &str) -> Result<KiviConfig> {
    let (bits, residual) = text.split_once(" R").unwrap_or((text, "128"));
    let (k, v) = bits.split_once(':').context("K:V")?;
    let [k, v] = [k, v].map(|bits| Ok::<_, anyhow::Error>(Bits::try_from(bits.parse::<u32>()?)?));
    Ok(KiviConfig::new(k?, v?, GroupSize::G32, residual.parse()?)?)
}

/// Of each token from `prefix` on.
fn log_probabilities<B: Backend>(
    device: &B,
    model: &Model<B>,
    cache: KiviConfig,
    (ids, prefix): (&[u32], usize),
) -> Result<Vec<f64>> {
    let mut engine = Engine::new(device, model, sizes(ids.len(), cache, 1))?;
    engine.submit(request(ids, prefix))?;
    let mut found = Vec::new();
    while !engine.is_idle() {
        for row in logits(engine.step()?)? {
            found.push(log_softmax(&row)[ids[prefix + found.len()] as usize]);
        }
    }
    Ok(found)
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

#[cfg(test)]
mod tests {
    use kivi_kernels_ref::Cpu;
    use kivi_model::source::Source;

    use super::*;

    #[test]
    fn the_cpu_is_as_near_as_a_device_must_be_and_another_text_is_not() {
        let cpu = Cpu::<f32>::new();
        let source = Source::Dir(crate::root().join("kivi-cli/assets/kivi-tiny"));
        let model = Model::load(&cpu, &source, &mut |_, _| {}).unwrap();
        let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
        let [first, second] = &golden.documents[..] else { panic!("two passages") };
        let cache = setting_of("2:2 R128").unwrap();
        let found = log_probabilities(&cpu, &model, cache, (&first.ids, golden.prefix)).unwrap();
        let apart = |document: &Document| (mean(&found) - mean(&document.logprob["2:2 R128"])).abs();
        let limit = limit("2:2 R128", KvDtype::F16);
        assert!(apart(first) <= limit && apart(second) > limit, "{} {}", apart(first), apart(second));
    }
}
