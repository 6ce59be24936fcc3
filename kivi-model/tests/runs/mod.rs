//! Runs of an engine whose requests arrive at given steps, and what came of each.
#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeMap;

use kivi_kernels_ref::Cpu;
use kivi_model::cache::SequenceState;
use kivi_model::engine::{Engine, EngineConfig, Event, Request, SeqId};
use kivi_model::model::Model;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};

use crate::models::request;
use crate::random::{SMALL, tokens};

pub type CpuEngine<'a> = Engine<'a, Cpu<f32>>;

/// A request that joins when so many steps are done.
#[derive(Clone)]
pub struct Arrival {
    pub step: usize,
    pub request: Request,
}

/// Tokens of a sequence, the logits that each was chosen from, and what its cache held then.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    pub tokens: Vec<u32>,
    pub logits: Vec<Vec<f32>>,
    pub caches: Vec<SequenceState>,
}

/// Runs all arrivals to their ends. Caches are those that a sequence had after each of its steps but the last.
pub fn run(engine: &mut CpuEngine<'_>, arrivals: &[Arrival], caches: bool) -> Vec<Run> {
    let mut ids: BTreeMap<SeqId, usize> = BTreeMap::new();
    let mut runs = vec![Run::default(); arrivals.len()];
    let mut step = 0;
    while ids.len() < arrivals.len() || !engine.is_idle() {
        for (i, arrival) in arrivals.iter().enumerate().filter(|(_, a)| a.step == step) {
            ids.insert(engine.submit(arrival.request.clone()).expect("a good request"), i);
        }
        for event in engine.step().expect("the CPU does not fail") {
            if let Event::Token { id, token, logits } = event {
                let run = &mut runs[ids[&id]];
                run.tokens.push(token);
                run.logits.extend(logits);
                let cache =
                    if caches { engine.cache_state(id).expect("the CPU does not fail") } else { None };
                run.caches.extend(cache);
            }
        }
        step += 1;
    }
    runs
}

pub fn arrival(step: usize, prompt: &[u32], max_tokens: usize) -> Arrival {
    let request = Request { want_logits: true, ..request(prompt, max_tokens) };
    Arrival { step, request }
}

/// Alone in an engine of these sizes.
pub fn alone(backend: &Cpu<f32>, model: &Model<Cpu<f32>>, sizes: EngineConfig, arrival: &Arrival) -> Run {
    let mut engine = Engine::new(backend, model, sizes).expect("an engine");
    run(&mut engine, &[Arrival { step: 0, ..arrival.clone() }], true).remove(0)
}

/// Tokens equal and logits within 1e-4.
pub fn assert_same(what: &str, found: &Run, expected: &Run) {
    assert_eq!(found.tokens, expected.tokens, "{what}");
    assert_eq!(found.logits.len(), expected.logits.len(), "{what}");
    for (row, (found, expected)) in found.logits.iter().zip(&expected.logits).enumerate() {
        for (x, y) in found.iter().zip(expected) {
            assert!((x - y).abs() <= 1e-4 * y.abs().max(1.0), "{what}: logits {row} have {x}, not {y}");
        }
    }
}

/// 2 bits, groups of 32, a window of 32 tokens: packs often.
pub fn two_bits() -> KiviConfig {
    let config = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 32).expect("a valid cache");
    config.with_kv_dtype(KvDtype::F16).with_page_tokens(32).expect("a valid page")
}

/// A sequence of `n` given tokens and some more, read one token a step.
pub fn token_by_token(step: usize, name: &str, n: usize, more: usize) -> Arrival {
    let tokens = tokens(name, n, SMALL.vocab);
    let mut arrival = arrival(step, &tokens[..1], n - 1 + more);
    arrival.request.forced = tokens[1..].to_vec();
    arrival
}
