//! Texts from prompts: how a run is ended, by a stop string and by its caller.

mod models;

use std::ops::ControlFlow;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, FinishReason};
use kivi_model::generate::{GenerateError, Generation, Progress, TextRequest, generate};
use kivi_model::model::Model;
use kivi_model::tokenizer::Tokenizer;
use models::{cache, config, kivi_tiny, kivi_tiny_source, request};

const PROMPT: &str = "Once upon a time there was a king who";

struct World {
    backend: Cpu<f32>,
    model: Model<Cpu<f32>>,
    tokenizer: Tokenizer,
}

impl World {
    fn new() -> Self {
        let backend = Cpu::<f32>::new();
        let model = kivi_tiny(&backend);
        let tokenizer = Tokenizer::load(&kivi_tiny_source(), model.config().vocab_size).expect("a tokenizer");
        Self { backend, model, tokenizer }
    }

    fn engine(&self, n_seqs: usize) -> Engine<'_, Cpu<f32>> {
        Engine::new(&self.backend, &self.model, config(cache(2, 2), 64, n_seqs)).expect("an engine")
    }

    fn request(&self, max_tokens: usize, stop: &[&str]) -> TextRequest {
        let prompt = self.tokenizer.encode(PROMPT, true).expect("tokens");
        let stop = stop.iter().map(|s| (*s).to_owned()).collect();
        TextRequest { request: request(&prompt, max_tokens), stop }
    }

    fn run(&self, requests: Vec<TextRequest>) -> Vec<Generation> {
        let go_on = &mut |_: Progress<'_>| ControlFlow::Continue(());
        generate(&mut self.engine(2), &self.tokenizer, requests, go_on).expect("a run")
    }
}

/// The text that is handed out piece by piece is the text, and a stop string ends it before the other reasons do.
#[test]
fn a_stop_string_ends_the_text_even_in_its_last_token() {
    let world = World::new();
    let whole = world.run(vec![world.request(20, &[])]).remove(0);
    let words: Vec<&str> = whole.text.split_inclusive(' ').collect();
    let stop = words[5];
    let at = whole.text.find(stop).expect("it is there");
    let stopped = world.run(vec![world.request(20, &[stop])]).remove(0);
    assert_eq!((stopped.text.as_str(), &stopped.end), (&whole.text[..at], &Ok(FinishReason::Stop)));
    assert_eq!(stopped.token_ids, whole.token_ids[..stopped.token_ids.len()]);

    // Now the token with the stop string is the last one that there may be.
    let n = stopped.token_ids.len();
    let last = world.run(vec![world.request(n, &[stop])]).remove(0);
    assert_eq!((last.text, last.end), (stopped.text, Ok(FinishReason::Stop)));
    assert_eq!(last.cache.tokens, last.prompt_tokens + n - 1);
    assert_eq!(last.cache.used, stopped.cache.used);
}

#[test]
fn the_caller_can_end_a_run() {
    let world = World::new();
    let mut engine = world.engine(2);
    let requests = vec![world.request(3, &[]), world.request(30, &[]), world.request(30, &[])];
    let mut texts = vec![String::new(); 3];
    let mut steps = 0;
    let generations = generate(&mut engine, &world.tokenizer, requests, &mut |progress| {
        match progress {
            Progress::Text { index, text } => texts[index] += text,
            Progress::Step { .. } => steps += 1,
        }
        if steps == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let generations = generations.expect("a run");
    assert!(engine.is_idle(), "what was left is cancelled");
    let ends: Vec<_> = generations.iter().map(|g| g.end.clone().expect("no failure")).collect();
    assert_eq!(ends, [FinishReason::Length, FinishReason::Cancelled, FinishReason::Cancelled]);
    let lens: Vec<_> = generations.iter().map(|g| (g.token_ids.len(), g.cache.tokens > 0)).collect();
    assert_eq!(lens, [(3, true), (6, true), (3, true)]);
    assert!(texts[1].len() > 5 && generations[1].text.starts_with(&texts[1]));
}

#[test]
fn a_run_ends_at_the_first_text_if_the_caller_wants() {
    let world = World::new();
    let mut engine = world.engine(1);
    let mut texts = 0;
    let generations =
        generate(&mut engine, &world.tokenizer, vec![world.request(30, &[])], &mut |progress| {
            let is_text = matches!(progress, Progress::Text { .. });
            texts += usize::from(is_text);
            if is_text { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("a run");
    assert_eq!((texts, generations[0].token_ids.len(), engine.is_idle()), (1, 1, true));
}

/// Nothing runs if one request is refused.
#[test]
fn a_refused_request_takes_the_others_with_it() {
    let world = World::new();
    let mut engine = world.engine(1);
    let requests = vec![world.request(3, &[]), world.request(0, &[])];
    let refused =
        generate(&mut engine, &world.tokenizer, requests, &mut |_| panic!("nothing runs")).map(|_| ());
    assert!(matches!(refused, Err(GenerateError::Submit { index: 1, .. })));
    assert!(engine.is_idle());
}
