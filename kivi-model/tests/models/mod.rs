//! What the tests of whole models share: kivi-tiny on the CPU, and runs of an engine.
#![allow(dead_code)] // each test file uses a part

use std::path::PathBuf;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, EngineConfig, Event, Request};
use kivi_model::model::Model;
use kivi_model::source::Source;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};

/// The checkpoint that is embedded in kivi-cli.
pub fn kivi_tiny_source() -> Source {
    Source::Dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../kivi-cli/assets/kivi-tiny"))
}

pub fn kivi_tiny(backend: &Cpu<f32>) -> Model<Cpu<f32>> {
    Model::load(backend, &kivi_tiny_source(), &mut |_, _| {}).expect("kivi-tiny loads")
}

/// A golden file, made by `cargo xtask golden`.
pub fn golden(name: &str) -> serde_json::Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).expect("a golden file")).expect("golden files are JSON")
}

pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|x| x.as_u64().expect("an id") as u32).collect()
}

pub fn floats(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// Group size 32, residual length 128, rows in f32.
pub fn cache(k_bits: u32, v_bits: u32) -> KiviConfig {
    let bits = |b| Bits::try_from(b).expect("a width");
    KiviConfig::new(bits(k_bits), bits(v_bits), GroupSize::G32, 128)
        .expect("a valid cache")
        .with_kv_dtype(KvDtype::F32)
}

/// An engine for `n_seqs` sequences of up to `context` tokens each.
pub fn config(cache: KiviConfig, context: usize, n_seqs: usize) -> EngineConfig {
    let pages = cache.pages(context) * n_seqs;
    EngineConfig {
        cache: cache.into(),
        max_context: context,
        max_seqs: n_seqs,
        max_batched_tokens: 8192,
        pool_tokens: pages * cache.page_tokens(),
    }
}

/// Greedy, without end tokens.
pub fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request::new(prompt.to_vec(), max_tokens)
}

/// The tokens of each request, and the logits that each was chosen from (where asked for).
pub type Output = (Vec<u32>, Vec<Vec<f32>>);

/// Runs all requests to their ends.
pub fn run(engine: &mut Engine<'_, Cpu<f32>>, requests: Vec<Request>) -> Vec<Output> {
    let ids: Vec<_> = requests.into_iter().map(|r| engine.submit(r).expect("a good request")).collect();
    let mut out = vec![Output::default(); ids.len()];
    while !engine.is_idle() {
        for event in engine.step().expect("the CPU does not fail") {
            match event {
                Event::Token { id, token, logits } => {
                    let place = ids.iter().position(|x| *x == id).expect("one of ours");
                    out[place].0.push(token);
                    out[place].1.extend(logits);
                }
                Event::Finished { .. } => {}
                Event::Failed { error, .. } => panic!("a sequence failed: {error}"),
            }
        }
    }
    out
}
