//! The engine as its callers see it: what it refuses, who runs when, how sequences end and what failures look like.

mod models;
mod random;

use std::collections::BTreeMap;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{
    CacheUse, Engine, EngineConfig, EngineError, Event, FinishReason, Request, SeqId, SequenceError,
    SubmitError,
};
use kivi_model::model::Model;
use kivi_quant::KiviConfig;
use models::{cache, config, request, run};
use random::{SMALL, Small, tokens, weight};

type CpuModel = Model<Cpu<f32>>;
type CpuEngine<'a> = Engine<'a, Cpu<f32>>;

/// 16 bits in pages of 32 tokens.
fn pages_of_32() -> KiviConfig {
    cache(16, 16).with_page_tokens(32).expect("a valid page")
}

fn engine<'a>(backend: &'a Cpu<f32>, model: &'a CpuModel, sizes: EngineConfig) -> CpuEngine<'a> {
    Engine::new(backend, model, sizes).expect("an engine")
}

/// A prompt of the small model.
fn prompt(name: &str, n: usize) -> Vec<u32> {
    tokens(name, n, SMALL.vocab)
}

/// What a request gives when nothing else runs.
fn alone(backend: &Cpu<f32>, model: &CpuModel, request: &Request) -> Vec<u32> {
    let mut engine = engine(backend, model, config(pages_of_32(), 256, 1));
    run(&mut engine, vec![request.clone()]).remove(0).0
}

type End = Result<FinishReason, SequenceError>;

/// Tokens and ends of all sequences.
#[derive(Default)]
struct Log {
    tokens: BTreeMap<SeqId, Vec<u32>>,
    ends: BTreeMap<SeqId, End>,
    caches: BTreeMap<SeqId, CacheUse>,
}

impl Log {
    /// One step; returns who got a token.
    fn step(&mut self, engine: &mut CpuEngine<'_>) -> Vec<SeqId> {
        let mut served = Vec::new();
        for event in engine.step().expect("the CPU does not fail") {
            match event {
                Event::Token { id, token, .. } => {
                    assert!(!self.ends.contains_key(&id), "a token after the end");
                    self.tokens.entry(id).or_default().push(token);
                    served.push(id);
                }
                Event::Finished { id, reason, cache } => {
                    assert!(self.ends.insert(id, Ok(reason)).is_none(), "two ends");
                    self.caches.insert(id, cache);
                }
                Event::Failed { id, error } => {
                    assert!(self.ends.insert(id, Err(error)).is_none(), "two ends");
                }
            }
        }
        served
    }

    fn finish(mut self, engine: &mut CpuEngine<'_>) -> Self {
        while !engine.is_idle() {
            self.step(engine);
        }
        self
    }
}

#[test]
fn requests_that_can_never_run_are_refused() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut sizes = config(pages_of_32(), 100, 1);
    sizes.pool_tokens = 64;
    let mut engine = engine(&backend, &model, sizes);
    let good = request(&prompt("p", 10), 5);
    let with = |change: &dyn Fn(&mut Request)| {
        let mut bad = good.clone();
        change(&mut bad);
        bad
    };
    let unknown = |place| SubmitError::UnknownToken { token: 64, place, vocab_size: 64 };
    let cases = [
        (with(&|r| r.prompt.clear()), SubmitError::EmptyPrompt),
        (with(&|r| r.max_tokens = 0), SubmitError::NoTokens),
        (with(&|r| r.prompt = prompt("p", 100)), SubmitError::PromptTooLong { prompt: 100, context: 100 }),
        (with(&|r| r.prompt[3] = 64), unknown(3)),
        (with(&|r| r.forced = vec![0, 64]), unknown(11)),
        (with(&|r| r.prompt = prompt("p", 65)), SubmitError::PoolTooSmall { tokens: 65, pool_tokens: 64 }),
    ];
    for (bad, expected) in cases {
        assert_eq!(engine.submit(bad).unwrap_err(), expected);
        assert!(!expected.to_string().contains('\n'));
    }
    assert!(engine.is_idle() && engine.step().expect("nothing to do").is_empty());
    engine.submit(good).expect("the good one");
}

#[test]
fn an_engine_that_could_not_run_is_refused() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let sizes = config(pages_of_32(), 100, 1);
    for empty in [
        EngineConfig { max_seqs: 0, ..sizes.clone() },
        EngineConfig { max_batched_tokens: 0, ..sizes.clone() },
    ] {
        assert!(matches!(Engine::new(&backend, &model, empty), Err(EngineError::Empty { .. })));
    }
    let odd = Small { head_dim: 8, ..SMALL }.load(&backend);
    let quantized = config(cache(2, 2), 100, 1);
    assert!(matches!(Engine::new(&backend, &odd, quantized), Err(EngineError::Config(_))));
}

#[test]
fn more_requests_than_slots_wait_for_their_turn() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut engine = engine(&backend, &model, config(pages_of_32(), 256, 2));
    let requests: Vec<_> = (0..5).map(|i| request(&prompt(&format!("{i}"), 5 + 9 * i), 4 + i)).collect();
    let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).expect("a good request")).collect();
    let mut log = Log::default();
    while !engine.is_idle() {
        assert!(log.step(&mut engine).len() <= 2);
    }
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(log.tokens[id], alone(&backend, &model, request));
        assert_eq!(log.ends[id], Ok(FinishReason::Length));
    }
}

#[test]
fn cancelled_requests_make_room_and_leave_others_alone() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut engine = engine(&backend, &model, config(pages_of_32(), 256, 2));
    let requests = ["a", "b", "c", "d"].map(|name| request(&prompt(name, 40), 30));
    let [a, b, c, d] = requests.clone().map(|r| engine.submit(r).expect("a good request"));
    let mut log = Log::default();
    (0..3).for_each(|_| assert_eq!(log.step(&mut engine), [a, b]));
    let used = engine.cancel(a).expect("it runs");
    assert_eq!((used.tokens, used.allocated > 0), (42, true));
    let waited = engine.cancel(c).expect("it waits");
    assert_eq!((waited.tokens, waited.allocated), (0, 0));
    assert!(engine.cancel(a).is_none() && engine.cancel(c).is_none(), "they are gone");
    let log = log.finish(&mut engine);
    assert_eq!(log.tokens[&a].len(), 3);
    assert!(!log.tokens.contains_key(&c));
    assert_eq!(log.ends.keys().collect::<Vec<_>>(), [&b, &d]);
    assert_eq!(log.tokens[&b], alone(&backend, &model, &requests[1]));
    assert_eq!(log.tokens[&d], alone(&backend, &model, &requests[3]));
}

/// Three pages for two sequences that grow: the older one gets them all, and who waits starts when it is done.
#[test]
fn the_youngest_gives_way_when_pages_run_out() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut sizes = config(pages_of_32(), 128, 2);
    sizes.pool_tokens = 96;
    let mut engine = engine(&backend, &model, sizes);
    let old = request(&prompt("old", 30), 50);
    let young = request(&prompt("young", 30), 50);
    let waiting = request(&prompt("waiting", 20), 30);
    let [a, b, c] = [&old, &young, &waiting].map(|r| engine.submit(r.clone()).expect("a good request"));
    let log = Log::default().finish(&mut engine);
    assert_eq!(log.ends[&a], Ok(FinishReason::Length));
    assert_eq!(log.tokens[&a], alone(&backend, &model, &old));
    assert_eq!(log.ends[&b], Err(SequenceError::OutOfPages { tokens: 33, pool_tokens: 96 }));
    assert_eq!(log.tokens[&b], alone(&backend, &model, &young)[..3]);
    assert_eq!(log.ends[&c], Ok(FinishReason::Length), "it must not take a page that the old one waits for");
    assert_eq!(log.tokens[&c], alone(&backend, &model, &waiting));
}

#[test]
fn a_prompt_longer_than_a_step_is_cut_and_decoding_goes_on_meanwhile() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut sizes = config(pages_of_32(), 256, 2);
    sizes.max_batched_tokens = 8;
    let mut engine = engine(&backend, &model, sizes);
    let (short, long) = (request(&prompt("short", 3), 20), request(&prompt("long", 40), 4));
    let a = engine.submit(short.clone()).expect("a good request");
    let mut log = Log::default();
    assert_eq!(log.step(&mut engine), [a]);
    let b = engine.submit(long.clone()).expect("a good request");
    for step in 1..=5 {
        assert_eq!(log.step(&mut engine), [a], "7 of 8 rows are for the long prompt");
        assert_eq!(engine.prompt_tokens_done(), 3 + 7 * step);
    }
    assert_eq!(log.step(&mut engine), [a, b]);
    let log = log.finish(&mut engine);
    assert_eq!(log.tokens[&a], alone(&backend, &model, &short));
    assert_eq!(log.tokens[&b], alone(&backend, &model, &long));
}

/// `max_tokens`, the context, the pool, an end token: whatever comes first.
#[test]
fn sequences_end_for_the_reason_that_comes_first() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let base = request(&prompt("p", 10), 40);
    let all = alone(&backend, &model, &base);
    let eos = all[6];
    let until_eos = all.iter().position(|t| *t == eos).expect("it is there") + 1;
    let cases = [
        (40, 64, 64, vec![], 40, FinishReason::Length),
        (40, 30, 64, vec![], 20, FinishReason::Length),
        (40, 64, 32, vec![], 23, FinishReason::Length),
        (40, 64, 64, vec![63, eos], until_eos, FinishReason::Stop),
        (until_eos, 64, 64, vec![eos], until_eos, FinishReason::Stop),
    ];
    for (max_tokens, context, pool_tokens, eos, n, reason) in cases {
        let mut sizes = config(pages_of_32(), context, 1);
        sizes.pool_tokens = pool_tokens;
        let mut engine = engine(&backend, &model, sizes);
        let id = engine.submit(Request { max_tokens, eos, ..base.clone() }).expect("a good request");
        let log = Log::default().finish(&mut engine);
        assert_eq!((log.tokens[&id].len(), log.ends[&id].clone()), (n, Ok(reason)));
        assert_eq!(log.tokens[&id], all[..n]);
        // The last token is chosen, but never read.
        assert_eq!(log.caches[&id].tokens, 10 + n - 1);
    }
}

/// Forced tokens are taken as they are; logits are what would have been chosen from; then choice goes on from there.
#[test]
fn forced_tokens_replace_the_choice() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let forced = prompt("forced", 12);
    let mut teacher = request(&prompt("p", 10), 20);
    teacher.forced = forced.clone();
    assert_eq!(alone(&backend, &model, &teacher)[..12], forced);
    let longer = request(&[teacher.prompt.as_slice(), &forced].concat(), 8);
    assert_eq!(alone(&backend, &model, &teacher)[12..], alone(&backend, &model, &longer));
    let first = alone(&backend, &model, &request(&teacher.prompt, 1))[0];
    teacher.want_logits = true;
    let mut engine = engine(&backend, &model, config(pages_of_32(), 256, 1));
    let (tokens, logits) = run(&mut engine, vec![teacher]).remove(0);
    assert_eq!((logits.len(), tokens[0]), (20, forced[0]));
    assert_eq!(likeliest(&logits[0]), first);
}

/// The index of the largest; equals do not occur.
fn likeliest(logits: &[f32]) -> u32 {
    let largest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    largest.expect("there are logits") as u32
}

/// A repetition penalty counts prompt and text, each token once; reported logits are those before it.
#[test]
fn a_penalty_counts_prompt_and_text() {
    const PENALTY: f32 = 1.5;
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut penalised = request(&prompt("p", 10), 40);
    penalised.sampling.repetition_penalty = PENALTY;
    penalised.want_logits = true;
    let requests = vec![penalised.clone(), request(&prompt("q", 5), 40)];
    let mut engine = engine(&backend, &model, config(pages_of_32(), 256, 2));
    let out = run(&mut engine, requests);
    let (tokens, logits) = &out[0];
    let mut text = penalised.prompt.clone();
    for (&token, logits) in tokens.iter().zip(logits) {
        let mut scores = logits.clone();
        for (id, score) in (0..).zip(&mut scores).filter(|(id, _)| text.contains(id)) {
            assert_eq!(*score, logits[id as usize]);
            *score = if *score < 0.0 { *score * PENALTY } else { *score / PENALTY };
        }
        assert_eq!(token, likeliest(&scores));
        text.push(token);
    }
    assert_eq!(out[1].0, alone(&backend, &model, &request(&prompt("q", 5), 40)));
}

/// A model with one weight replaced.
fn damaged(backend: &Cpu<f32>, tensor: &str, place: usize, value: f32) -> CpuModel {
    let weights = |name: &str, i: usize| if name == tensor && i == place { value } else { weight(name, i) };
    random::load(backend, SMALL.write(&weights).path())
}

/// The same prompt three times: greedy, with logits, sampled. All of them must fail, at `place`.
fn assert_not_finite(model: &CpuModel, backend: &Cpu<f32>, bits: u32, place: &str) {
    let mut engine = engine(backend, model, config(cache(bits, bits), 256, 3));
    let mut requests = [(); 3].map(|()| request(&prompt("p", 20), 5));
    requests[1].want_logits = true;
    requests[2].sampling.temperature = 1.0;
    let ids = requests.map(|r| engine.submit(r).expect("a good request"));
    let log = Log::default().finish(&mut engine);
    assert!(log.tokens.is_empty(), "{bits} bits, {place}: {:?}", log.tokens);
    for id in ids {
        let error = log.ends[&id].clone().expect_err("the weights are damaged");
        let SequenceError::NotFinite { place: found } = &error else { panic!("{error}") };
        assert!(found.contains(place), "{error}");
        assert!(error.to_string().starts_with("logits are not finite"));
    }
}

#[test]
fn damaged_weights_are_found_where_they_are() {
    let backend = Cpu::<f32>::new();
    let everywhere = [
        ("model.layers.0.self_attn.v_proj.weight", "layer 0 is"),
        ("model.layers.1.input_layernorm.weight", "layer 1 is"),
        ("model.layers.1.self_attn.k_proj.weight", "layer 1 is"),
        ("model.layers.1.mlp.down_proj.weight", "layer 1 is"),
        ("model.norm.weight", "output head's is not"),
    ];
    for (tensor, place) in everywhere {
        for (bits, value) in [(16, f32::NAN), (2, f32::NAN), (2, f32::INFINITY)] {
            println!("{tensor}: {value} at {bits} bits");
            assert_not_finite(&damaged(&backend, tensor, 5, value), &backend, bits, place);
        }
    }
}

/// One logit of 64: the largest when it is infinite, never chosen when it is NaN or minus infinity.
#[test]
fn a_single_damaged_logit_is_noticed() {
    let backend = Cpu::<f32>::new();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let model = damaged(&backend, "lm_head.weight", 40 * 32 + 7, value);
        assert_not_finite(&model, &backend, 16, "output head's is not");
    }
}

/// Who never reads the damaged row of the embedding is not harmed by a neighbour that does.
#[test]
fn a_failed_sequence_leaves_its_neighbours_alone() {
    let backend = Cpu::<f32>::new();
    let sound = SMALL.load(&backend);
    let good = request(&prompt("good", 20), 12);
    let read = [good.prompt.clone(), alone(&backend, &sound, &good)].concat();
    let bad_token = (0..64).find(|t| !read.contains(t)).expect("a token that is not there");
    let model = damaged(&backend, "model.embed_tokens.weight", bad_token as usize * 32, f32::NAN);
    for bits in [16, 2] {
        let sizes = config(cache(bits, bits).with_page_tokens(32).expect("a valid page"), 256, 2);
        let mut engine = engine(&backend, &model, sizes);
        let mut bad = good.clone();
        bad.prompt[10] = bad_token;
        let [fine, bad] = [good.clone(), bad].map(|r| engine.submit(r).expect("a good request"));
        let log = Log::default().finish(&mut engine);
        let Err(SequenceError::NotFinite { place }) = &log.ends[&bad] else { panic!("{:?}", log.ends[&bad]) };
        assert!(place.starts_with("the embedding"), "{place}");
        assert_eq!(log.ends[&fine], Ok(FinishReason::Length));
        assert_eq!(log.tokens[&fine], alone(&backend, &sound, &good));
        // The next one gets the slot and the pages that NaN was in.
        let again = engine.submit(good.clone()).expect("a good request");
        let log = Log::default().finish(&mut engine);
        assert_eq!(log.tokens[&again], alone(&backend, &sound, &good));
    }
}
