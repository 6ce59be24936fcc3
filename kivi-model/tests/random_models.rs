//! Small random checkpoints, one for each variation of config.json, against Hugging Face transformers.

mod models;
mod random;

use kivi_kernels_ref::Cpu;
use kivi_model::alibi::slopes;
use kivi_model::engine::{CacheUse, Engine, Event, FinishReason};
use kivi_model::generation_config::GenerationConfig;
use kivi_model::model::Model;
use kivi_model::source::Source;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};
use models::{Output, cache, config, floats, golden, ids, request, run};
use random::{checkpoint, load, noise, stored, weight};
use serde_json::Value;

/// Tokens that transformers generated.
const STEPS: usize = 32;

/// The files and how many cases each has.
const FILES: [(&str, usize); 2] = [("random-llama.json", 26), ("random-families.json", 26)];

/// All cases by name.
fn cases() -> Vec<(String, Value)> {
    let of_file = |(file, n): (&str, usize)| {
        let mut golden = golden(file);
        let Value::Array(cases) = golden["cases"].take() else { panic!("{file}: cases") };
        assert_eq!(cases.len(), n, "{file}");
        cases
    };
    let cases = FILES.into_iter().flat_map(of_file);
    cases.map(|case| (case["name"].as_str().expect("a name").to_owned(), case)).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let close = (f64::from(found) - expected).abs() <= 1e-4 * expected.abs().max(1.0);
        assert!(close, "{what}: logit {i} is {found}, not {expected}");
    }
}

/// The prompt in one call, then its tokens and one more, with the logits that each was chosen from.
fn continuation(backend: &Cpu<f32>, model: &Model<Cpu<f32>>, case: &Value, cache: KiviConfig) -> Output {
    let prompt = ids(&case["prompt_ids"]);
    let sizes = config(cache, prompt.len() + STEPS + 1, 1);
    let mut engine = Engine::new(backend, model, sizes).expect("an engine");
    let mut request = request(&prompt, STEPS + 1);
    request.want_logits = true;
    run(&mut engine, vec![request]).remove(0)
}

/// The test's own formula is that of the golden file.
#[test]
fn weights_follow_the_formula() {
    let checks = FILES.map(|(file, _)| golden(file)["weight_checks"].take());
    for check in checks.iter().flat_map(|checks| checks.as_array().expect("checks")) {
        let (name, i) = (check["name"].as_str().expect("a name"), check["index"].as_u64().expect("an index"));
        assert_eq!(format!("{:016x}", noise(name, i)), check["noise"], "{name}[{i}]");
        for (dtype, field) in [("float32", "f32"), ("float16", "f16"), ("bfloat16", "bf16")] {
            let bytes = stored(weight(name, i as usize), dtype);
            let bits: String = bytes.iter().rev().map(|b| format!("{b:02x}")).collect();
            assert_eq!(bits, check[field], "{name}[{i}]");
        }
    }
}

/// Slopes are those of transformers, bit for bit.
#[test]
fn alibi_slopes_are_those_of_transformers() {
    let golden = golden("random-families.json");
    for (heads, expected) in golden["alibi_slopes"].as_object().expect("slopes") {
        let found = slopes(heads.parse().expect("a number of heads"), 1);
        assert_eq!(
            found.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(),
            floats(expected),
            "{heads} heads"
        );
    }
}

/// Greedy tokens at 16 bits in f32 are those of transformers, and so are the logits.
#[test]
fn greedy_tokens_are_those_of_transformers() {
    let backend = Cpu::<f32>::new();
    for (name, case) in &cases() {
        let model = load(&backend, checkpoint(case).path());
        let (tokens, logits) = continuation(&backend, &model, case, cache(16, 16));
        assert_close(&format!("{name}, prompt"), &logits[0], &floats(&case["logits_prompt"]));
        assert_eq!(tokens[..STEPS], ids(&case["tokens"]), "{name}");
        assert_close(&format!("{name}, end"), &logits[STEPS], &floats(&case["logits_end"]));
    }
}

/// The first of several end tokens ends the text and is part of it.
#[test]
fn end_tokens_of_the_generation_config_end_the_text() {
    let backend = Cpu::<f32>::new();
    let mut tested = 0;
    for (name, case) in &cases() {
        let Some(length) = case["tokens_until_eos"].as_u64() else { continue };
        let dir = checkpoint(case);
        let model = load(&backend, dir.path());
        let source = Source::Dir(dir.path().to_path_buf());
        let eos = GenerationConfig::load(&source, model.config()).expect("a configuration").eos_token_ids;
        assert!(eos.len() > 1, "{name}");
        let prompt = ids(&case["prompt_ids"]);
        let mut engine = Engine::new(&backend, &model, config(cache(16, 16), 128, 1)).expect("an engine");
        let mut request = request(&prompt, STEPS);
        request.eos = eos;
        engine.submit(request).expect("a good request");
        let (tokens, reason, _) = to_the_end(&mut engine);
        assert_eq!(tokens, ids(&case["tokens"])[..length as usize], "{name}");
        assert_eq!(reason, FinishReason::Stop, "{name}");
        tested += 1;
    }
    assert_eq!(tested, 1, "cases with end tokens");
}

/// The tokens of the only request, why it ended, and what its cache took.
fn to_the_end(engine: &mut Engine<'_, Cpu<f32>>) -> (Vec<u32>, FinishReason, CacheUse) {
    let mut tokens = Vec::new();
    loop {
        for event in engine.step().expect("the CPU does not fail") {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished { reason, cache, .. } => return (tokens, reason, cache),
                Event::Failed { error, .. } => panic!("the sequence failed: {error}"),
            }
        }
    }
}

/// At 2 bits: the prompt is read in full precision, and so is everything within the residual window; then the cache
/// makes a difference, but no havoc.
#[test]
fn two_bits_differ_only_behind_the_residual_window() {
    let backend = Cpu::<f32>::new();
    let two = |residual| {
        let config = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, residual).expect("a valid cache");
        config.with_kv_dtype(KvDtype::F32)
    };
    for (name, case) in &cases() {
        let model = load(&backend, checkpoint(case).path());
        if !model.config().head_dim.is_multiple_of(16) {
            assert!(Engine::new(&backend, &model, config(two(32), 128, 1)).is_err(), "{name}: head_dim");
            continue;
        }
        let (tokens, logits) = continuation(&backend, &model, case, two(160));
        assert_eq!(tokens[..STEPS], ids(&case["tokens"]), "{name}: all is within the window");
        assert_close(&format!("{name}, within the window"), &logits[STEPS], &floats(&case["logits_end"]));

        let (_, packed) = continuation(&backend, &model, case, two(32));
        assert_close(&format!("{name}, prompt"), &packed[0], &floats(&case["logits_prompt"]));
        assert!(packed.iter().flatten().all(|x| x.is_finite()), "{name}");
        assert!(packed[1..] != logits[1..], "{name}: nothing was packed");
    }
}
