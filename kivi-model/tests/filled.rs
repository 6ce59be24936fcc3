//! Random weights, and caches that were filled rather than computed: what measuring stands on.

use kivi_kernels_ref::Cpu;
use kivi_model::config::ModelConfig;
use kivi_model::engine::{Engine, EngineConfig, Event, Request};
use kivi_model::model::Model;
use kivi_quant::{Bits, GroupSize, KiviConfig};

/// A small model of each family, some with a window.
const CONFIGS: [&str; 3] = [
    r#"{"model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1}"#,
    r#"{"model_type": "mistral", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 200}"#,
    r#"{"model_type": "falcon", "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "multi_query": true, "parallel_attn": true, "new_decoder_architecture": false, "bias": false, "alibi": false}"#,
];

fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 31 % 96) as u32).collect()
}

fn sizes(cache: KiviConfig, len: usize, n: usize) -> EngineConfig {
    EngineConfig {
        pool_tokens: n * cache.pages(len) * cache.page_tokens(),
        cache: cache.into(),
        max_context: len,
        max_seqs: n,
        max_batched_tokens: 256,
    }
}

/// The tokens that all sequences get until the engine is idle; fails if a sequence does.
fn run(engine: &mut Engine<'_, Cpu<f32>>) -> usize {
    let mut n = 0;
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            assert!(!matches!(event, Event::Failed { .. }), "{event:?}");
            n += usize::from(matches!(event, Event::Token { .. }));
        }
    }
    n
}

#[test]
fn random_models_generate_over_filled_caches() {
    let backend = Cpu::<f32>::new();
    for config in CONFIGS {
        let config = ModelConfig::parse("config.json", config.as_bytes()).unwrap();
        let model = Model::random(&backend, &config, &mut |done, all| assert!(done <= all)).unwrap();
        for (bits, depth) in [(Bits::B16, 700), (Bits::B2, 700), (Bits::B4, 40)] {
            let cache = KiviConfig::new(bits, bits, GroupSize::G32, 32).unwrap().with_sink_tokens(0).unwrap();
            let mut engine = Engine::new(&backend, &model, sizes(cache, depth + 9, 3)).unwrap();
            let pattern = Request { keep: true, ..Request::new(tokens(depth.min(300)), 1) };
            let pattern = engine.submit(pattern).unwrap();
            run(&mut engine);
            assert!(engine.fill(pattern).unwrap());
            // Twice, so that pages and slots change hands.
            for _ in 0..2 {
                for i in 0..3 {
                    let past = engine.keep_filled(tokens(depth)).expect("room for three");
                    let prompt = [tokens(depth), vec![i]].concat();
                    engine.submit(Request { past: Some(past), ..Request::new(prompt, 8) }).unwrap();
                }
                assert_eq!(run(&mut engine), 3 * 8);
            }
            assert!(engine.page_use().iter().all(|pages| pages.owned == 0));
        }
    }
}

#[test]
fn a_filled_cache_has_the_pages_and_rings_of_its_pattern() {
    let backend = Cpu::<f32>::new();
    let config = ModelConfig::parse("config.json", CONFIGS[0].as_bytes()).unwrap();
    let model = Model::random(&backend, &config, &mut |_, _| {}).unwrap();
    let cache = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 32).unwrap();
    let mut engine = Engine::new(&backend, &model, sizes(cache, 600, 1)).unwrap();
    let pattern = engine.submit(Request { keep: true, ..Request::new(tokens(300), 1) }).unwrap();
    run(&mut engine);
    let computed = engine.cache_state(pattern).unwrap().expect("it is kept");
    assert!(engine.fill(pattern).unwrap());
    let filled = engine.keep_filled(tokens(300)).expect("room");
    let filled = engine.cache_state(filled).unwrap().expect("it is kept");
    assert_eq!(filled.len, computed.len);
    for (filled, computed) in filled.layers.iter().zip(&computed.layers) {
        assert_eq!(filled.rows, computed.rows);
        assert_eq!(filled.pages.len(), computed.pages.len());
        // The first two pages are whole, and are what is repeated.
        let page = filled.pages.len() / 3;
        assert_eq!(filled.pages[..2 * page], computed.pages[..2 * page]);
        assert_eq!(filled.pages[2 * page..], computed.pages[..page]);
    }
}

#[test]
fn only_one_kept_text_can_fill() {
    let backend = Cpu::<f32>::new();
    let config = ModelConfig::parse("config.json", CONFIGS[0].as_bytes()).unwrap();
    let model = Model::random(&backend, &config, &mut |_, _| {}).unwrap();
    let cache = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 32).unwrap();
    let mut engine = Engine::new(&backend, &model, sizes(cache, 100, 1)).unwrap();
    let gone = engine.submit(Request::new(tokens(50), 1)).unwrap();
    assert!(!engine.fill(gone).unwrap(), "it runs");
    run(&mut engine);
    assert!(!engine.fill(gone).unwrap(), "it was not kept");
    assert!(engine.keep_filled(tokens(5000)).is_none());
    assert!(model.bytes() > 0);
}
