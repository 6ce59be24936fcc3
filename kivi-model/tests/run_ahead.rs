//! An engine that queues a step before it knows the tokens of the one before gives what one gives that waits.

mod models;
mod random;

use std::collections::BTreeMap;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, EngineConfig, Event, FinishReason, Request, SeqId, SequenceError};
use kivi_model::model::Model;
use kivi_model::sampler::SamplingParams;
use models::{cache, config, request};
use random::{SMALL, noise, tokens};

type CpuEngine<'a> = Engine<'a, Cpu<f32>>;

/// What came of a text: its tokens, its end, the tokens of its cache, and the bytes that these take.
type Text = (Vec<u32>, Option<Result<FinishReason, SequenceError>>, usize, usize);

/// Runs requests that arrive in the given steps, and cancels those that have as many tokens as is said.
fn run(engine: &mut CpuEngine<'_>, arrivals: &[(usize, Request)], cancel: &[Option<usize>]) -> Vec<Text> {
    let mut ids: BTreeMap<SeqId, usize> = BTreeMap::new();
    let mut texts: Vec<Text> = vec![Text::default(); arrivals.len()];
    for step in 0..2000 {
        for (i, (_, request)) in arrivals.iter().enumerate().filter(|(_, (at, _))| *at == step) {
            ids.insert(engine.submit(request.clone()).expect("a good request"), i);
        }
        for event in engine.step().expect("the CPU does not fail") {
            match event {
                Event::Token { id, token, .. } => {
                    let text = &mut texts[ids[&id]];
                    assert!(text.1.is_none(), "a token after the end");
                    text.0.push(token);
                    if cancel[ids[&id]] == Some(text.0.len()) {
                        let used = engine.cancel(id).expect("it is under way");
                        (text.1, text.2) = (Some(Ok(FinishReason::Cancelled)), used.tokens);
                    }
                }
                Event::Finished { id, reason, cache } => {
                    let text = &mut texts[ids[&id]];
                    (text.1, text.2, text.3) = (Some(Ok(reason)), cache.tokens, cache.used.used());
                }
                Event::Failed { id, error } => texts[ids[&id]].1 = Some(Err(error)),
            }
        }
        assert!(engine.page_use().iter().all(|group| group.free + group.owned == group.all));
        if engine.is_idle() && ids.len() == arrivals.len() {
            assert!(engine.page_use().iter().all(|group| group.owned == 0));
            return texts;
        }
    }
    panic!("some text does not end");
}

fn draw(name: &str, i: usize, n: usize) -> usize {
    (noise(name, i as u64) % n as u64) as usize
}

/// Texts of any length, some of which end by a token of their own, are forced, draw, or want logits.
fn arrivals(name: &str, model: &Model<Cpu<f32>>, backend: &Cpu<f32>) -> Vec<(usize, Request)> {
    let one = |i: usize| {
        let draw = |what: &str, n: usize| draw(&format!("{name} {what}"), i, n);
        let prompt = tokens(&format!("{name} {i}"), 1 + draw("prompt", 60), SMALL.vocab);
        let mut request = request(&prompt, 1 + draw("tokens", 80));
        match draw("kind", 8) {
            0 => request.sampling.temperature = 0.7,
            4 | 5 => {
                let (temperature, top_k, top_p, min_p) = (1.3, 30, 0.9, 0.01);
                let seed = i as u64;
                request.sampling =
                    SamplingParams { temperature, top_k, top_p, min_p, seed, ..SamplingParams::default() };
                request.forced = tokens("forced", draw("forced", 3), SMALL.vocab);
            }
            1 => request.forced = tokens("forced", 5, SMALL.vocab),
            2 => request.want_logits = true,
            3 => {
                request.sampling.repetition_penalty = 1.3;
                request.sampling.temperature = draw("drawn", 2) as f32;
            }
            _ => {}
        }
        if draw("ends", 2) == 0 {
            let mut alone = Engine::new(backend, model, config(cache(2, 2), 256, 1)).expect("an engine");
            let text = run(&mut alone, &[(0, request.clone())], &[None]).remove(0).0;
            request.eos = vec![text[draw("end", text.len())]];
        }
        (draw("arrival", 60), request)
    };
    (0..12).map(one).collect()
}

#[test]
fn texts_are_those_of_an_engine_that_waits() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    for case in 0..12 {
        let name = format!("case {case}");
        let arrivals = arrivals(&name, &model, &backend);
        let cancel: Vec<_> = (0..arrivals.len())
            .map(|i| (draw(&name, i, 4) == 0).then_some(1 + draw("cancel", i, 20)))
            .collect();
        let cache = cache(2, [2, 16][case % 2]).with_page_tokens(32).expect("a valid page");
        let sizes = EngineConfig {
            pool_tokens: [512, 1024][case / 2 % 2],
            max_batched_tokens: [7, 40, 300][case % 3],
            ..config(cache, 256, 3)
        };
        let mut waits = Engine::new(&backend, &model, sizes.clone()).expect("an engine");
        let mut ahead = Engine::new(&backend, &model, sizes).expect("an engine");
        ahead.set_run_ahead(true);
        let expected = run(&mut waits, &arrivals, &cancel);
        assert_eq!(run(&mut ahead, &arrivals, &cancel), expected, "{name}");
    }
}

/// Tokens come one step later, and as many steps are run as without, but for one row where a text ends by a token. Those that are
/// drawn do, too, unless they are penalised.
#[test]
fn tokens_come_with_the_next_step() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let cases = [(0.0, 1.0, [0, 1, 1, 2, 0]), (0.8, 1.0, [0, 1, 1, 2, 0]), (0.8, 1.1, [1, 1, 2, 0, 0])];
    for (temperature, repetition_penalty, expected) in cases {
        let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 64, 1)).expect("an engine");
        engine.set_run_ahead(true);
        let mut asked = request(&tokens("p", 9, SMALL.vocab), 3);
        (asked.sampling.temperature, asked.sampling.repetition_penalty) = (temperature, repetition_penalty);
        engine.submit(asked).expect("a good request");
        let mut step = || engine.step().expect("the CPU does not fail").len();
        assert_eq!([step(), step(), step(), step(), step()], expected);
    }
}

/// A text that is kept is never run beyond its end: its cache is what it would be.
#[test]
fn kept_texts_are_waited_for() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut saved = [false, true].map(|on| {
        let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 256, 1)).expect("an engine");
        engine.set_run_ahead(on);
        let asked = Request { keep: true, ..request(&tokens("p", 100, SMALL.vocab), 100) };
        let mut text = Vec::new();
        let id = engine.submit(asked.clone()).expect("a good request");
        while !engine.is_idle() {
            text.extend(engine.step().expect("the CPU does not fail").into_iter().filter_map(|e| match e {
                Event::Token { token, .. } => Some(token),
                _ => None,
            }));
        }
        assert_eq!(text.len(), 100);
        engine.save(id).expect("the CPU does not fail").expect("it is kept")
    });
    let [waits, ahead] = &mut saved;
    assert!(waits == ahead);
}

/// Damage is noticed one step later and costs nobody else anything.
#[test]
fn a_text_that_fails_in_flight_leaves_the_others_alone() {
    let backend = Cpu::<f32>::new();
    let damaged = |name: &str, i: usize| {
        let value = random::weight(name, i);
        // The row of the embedding of token 7.
        if name == "model.embed_tokens.weight" && i / 32 == 7 { f32::NAN } else { value }
    };
    let model = random::load(&backend, SMALL.write(&damaged).path());
    let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 64, 2)).expect("an engine");
    engine.set_run_ahead(true);
    let requests = [request(&[1, 2, 3], 12), request(&[1, 7, 3], 12)];
    let arrivals: Vec<_> = requests.into_iter().map(|request| (0, request)).collect();
    let texts = run(&mut engine, &arrivals, &[None, None]);
    assert!(matches!(texts[1].1, Some(Err(SequenceError::NotFinite { .. }))));
    assert_eq!((texts[0].0.len(), &texts[0].1), (12, &Some(Ok(FinishReason::Length))));
}
