//! What the model asks of a backend, in which order, with which shapes.

mod models;
mod random;
mod recorder;

use kivi_kernels::{DType, ErrorKind, GqaRatio, KernelError, StepError};
use kivi_model::engine::{Engine, EngineError, Event};
use kivi_model::model::{Model, ModelError};
use kivi_model::source::Source;
use kivi_quant::Bits;
use models::{cache, config, request};
use random::{SMALL, tokens, weight};
use recorder::{Call, Recorder};

fn prompt(n: usize) -> Vec<u32> {
    tokens("p", n, SMALL.vocab)
}

fn texts(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.text.as_str()).collect()
}

/// One step and its calls.
fn step(backend: &Recorder, engine: &mut Engine<'_, Recorder>) -> Vec<Call> {
    backend.take();
    let events = engine.step().expect("the recorder does not fail");
    assert!(!events.iter().any(|event| matches!(event, Event::Failed { .. })));
    backend.take()
}

/// The calls of a step of `seqs` sequences with `rows` rows in all: 2 layers, 32 columns, 4 query heads and 2 KV heads
/// of 16 channels, a feed-forward of 48, 64 logits.
fn forward(seqs: usize, rows: usize) -> Vec<String> {
    let hidden = |n: usize| format!("[{n}, 32]");
    let (h, q, k) = (hidden(rows), format!("[{rows}, 0+64 of 128]"), format!("[{rows}, 64+32 of 128]"));
    let v = format!("[{rows}, 96+32 of 128]");
    let layer = [
        format!("rms_norm {h} of {h}"),
        format!("linear [{rows}, 128] of {h}"),
        format!("rope [{rows}, 0+96 of 128], 16 of 16"),
        format!("attend [{rows}, 64] of {q} over {k} {v}"),
        format!("append {k} {v}"),
        format!("linear {h} of [{rows}, 64]"),
        format!("add {h} to {h}"),
        format!("rms_norm {h} of {h}"),
        format!("linear [{rows}, 96] of {h}"),
        format!("activate [{rows}, 48] of [{rows}, 0+48 of 96] and [{rows}, 48+48 of 96]"),
        format!("linear {h} of [{rows}, 48]"),
        format!("add {h} to {h}"),
    ];
    let mut calls = vec![
        format!("record {seqs} sequences, {rows} rows, decode: {}", rows == seqs),
        format!("embed {h} from 2048"),
    ];
    calls.extend(layer.iter().chain(&layer).cloned());
    let last = hidden(seqs);
    calls.extend([
        format!("gather {last} of {h}"),
        format!("rms_norm {last} of {last}"),
        format!("linear [{seqs}, 64] of {last}"),
    ]);
    calls
}

/// How a step ends that chooses greedy tokens.
fn argmax(seqs: usize) -> [String; 4] {
    choice("argmax", seqs)
}

/// How a step ends that draws tokens.
fn sample(seqs: usize) -> [String; 4] {
    choice("sample", seqs)
}

fn choice(op: &str, seqs: usize) -> [String; 4] {
    let choice = format!("{op} of [{seqs}, 64]");
    [choice, "recorded".into(), format!("read later {seqs} u32"), format!("wait for {seqs}")]
}

/// How a step ends that chooses none.
fn recorded() -> [String; 1] {
    ["recorded".into()]
}

#[test]
fn a_step_asks_for_these_ops_in_this_order() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 64, 2)).expect("an engine");
    engine.submit(request(&prompt(10), 9)).expect("a good request");
    engine.submit(request(&prompt(7), 9)).expect("a good request");
    let expected = [forward(2, 17).as_slice(), &argmax(2)].concat();
    assert_eq!(texts(&step(&backend, &mut engine)), expected, "two prompts");
    let expected = [forward(2, 2).as_slice(), &argmax(2)].concat();
    assert_eq!(texts(&step(&backend, &mut engine)), expected, "two decode rows");
}

/// Equal keys: the same ops over the same buffers, so that a recorded step can be replayed.
#[test]
fn decode_steps_are_equal_down_to_their_buffers() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    // The steps cross page boundaries and packing.
    let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 400, 1)).expect("an engine");
    engine.submit(request(&prompt(100), 250)).expect("a good request");
    step(&backend, &mut engine);
    let first = step(&backend, &mut engine);
    for _ in 0..200 {
        assert_eq!(step(&backend, &mut engine), first);
    }
}

/// Each layer attends to and appends to a cache of its own, the rows that the projections before it made.
#[test]
fn a_layer_attends_to_its_own_cache_before_it_appends() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    let mut engine = Engine::new(&backend, &model, config(cache(4, 2), 64, 1)).expect("an engine");
    engine.submit(request(&prompt(10), 9)).expect("a good request");
    let calls = step(&backend, &mut engine);
    let of = |op: &str| calls.iter().filter(|call| call.text.starts_with(op)).collect::<Vec<_>>();
    let (attend, append, rope) = (of("attend"), of("append"), of("rope"));
    let pools: Vec<_> = attend.iter().map(|call| call.buffers[4]).collect();
    assert_ne!(pools[0], pools[1]);
    assert_eq!(pools, append.iter().map(|call| call.buffers[2]).collect::<Vec<_>>());
    for ((attend, append), rope) in attend.iter().zip(&append).zip(rope) {
        assert_eq!(attend.buffers[1..4], [rope.buffers[0]; 3]);
        assert_eq!(append.buffers[..2], [rope.buffers[0]; 2]);
    }
}

/// A step draws all its tokens if one is drawn, and is recorded likewise: the random numbers are data.
#[test]
fn a_step_that_draws_is_recorded_as_one_that_does_not() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 400, 2)).expect("an engine");
    let mut drawn = request(&prompt(5), 60);
    drawn.sampling.temperature = 1.0;
    drawn.sampling.top_k = 3;
    engine.submit(drawn).expect("a good request");
    engine.submit(request(&prompt(7), 200)).expect("a good request");
    assert_eq!(texts(&step(&backend, &mut engine)), [forward(2, 12).as_slice(), &sample(2)].concat());
    let first = step(&backend, &mut engine);
    assert_eq!(texts(&first), [forward(2, 2).as_slice(), &sample(2)].concat());
    for _ in 0..58 {
        assert_eq!(step(&backend, &mut engine), first);
    }
    // The one that draws has ended.
    assert_eq!(texts(&step(&backend, &mut engine)), [forward(1, 1).as_slice(), &argmax(1)].concat());
}

/// Logits are read for those that want them, and for a penalty, after which tokens are chosen again.
#[test]
fn logits_are_read_only_for_those_that_need_them() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 64, 3)).expect("an engine");
    let mut requests = [(); 3].map(|()| request(&prompt(5), 2));
    requests[0].sampling.repetition_penalty = 1.5;
    requests[2].want_logits = true;
    for request in requests.clone() {
        engine.submit(request).expect("a good request");
    }
    let calls = step(&backend, &mut engine);
    let logits = ["read 64 f32 at 128".to_owned(), "read 64 f32 at 0".to_owned()];
    let [again, _, later, wait] = argmax(3);
    let expected = [forward(3, 15).as_slice(), &argmax(3), &logits, &[again, later, wait]].concat();
    assert_eq!(texts(&calls), expected);

    requests[0].sampling.temperature = 1.0;
    let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 64, 1)).expect("an engine");
    engine.submit(requests[0].clone()).expect("a good request");
    let [again, _, later, wait] = sample(1);
    let expected = [forward(1, 5).as_slice(), &sample(1), &logits[1..], &[again, later, wait]].concat();
    assert_eq!(texts(&step(&backend, &mut engine)), expected);
}

/// The steps of a prompt that is cut ask for no token until the last one.
#[test]
fn nothing_is_read_in_the_middle_of_a_prompt() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    let mut sizes = config(cache(2, 2), 64, 1);
    sizes.max_batched_tokens = 8;
    let mut engine = Engine::new(&backend, &model, sizes).expect("an engine");
    engine.submit(request(&prompt(20), 2)).expect("a good request");
    assert_eq!(texts(&step(&backend, &mut engine)), [forward(1, 8).as_slice(), &recorded()].concat());
    assert_eq!(texts(&step(&backend, &mut engine)), [forward(1, 8).as_slice(), &recorded()].concat());
    assert_eq!(texts(&step(&backend, &mut engine)), [forward(1, 4).as_slice(), &argmax(1)].concat());
}

/// Pages that had an owner are zeroed in every layer before the step that uses them; new ones are zero already.
#[test]
fn pages_are_cleared_when_they_are_handed_on() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    let sizes = config(cache(16, 16).with_page_tokens(32).expect("a valid page"), 96, 1);
    let mut engine = Engine::new(&backend, &model, sizes).expect("an engine");
    let cleared = |calls: &[Call]| calls.iter().filter(|c| c.text.starts_with("clear_pages")).count();
    engine.submit(request(&prompt(40), 2)).expect("a good request");
    (0..2).for_each(|_| assert_eq!(cleared(&step(&backend, &mut engine)), 0, "the first owner"));
    assert!(engine.is_idle());

    engine.submit(request(&prompt(64), 3)).expect("a good request");
    let calls = step(&backend, &mut engine);
    assert_eq!(
        texts(&calls)[..3],
        ["clear_pages 2", "clear_pages 2", "record 1 sequences, 64 rows, decode: false"]
    );
    assert_ne!(calls[0].buffers, calls[1].buffers, "two layers");
    assert_eq!(cleared(&step(&backend, &mut engine)), 0, "the third page is new");
}

/// A backend is asked once an engine whether it has kernels, before anything runs.
#[test]
fn a_backend_without_kernels_is_found_at_the_start() {
    let mut backend = Recorder::default();
    backend.supported = false;
    let model = SMALL.load(&backend);
    backend.take();
    let refused = Engine::new(&backend, &model, config(cache(2, 4), 64, 1)).map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, EngineError::Unsupported { backend, .. } if backend == "recorder"),
        "{refused}"
    );
    assert!(backend.take().is_empty());
    let specs = backend.specs.take();
    let [spec] = specs.as_slice() else { panic!("asked {} times", specs.len()) };
    assert_eq!((spec.gqa, spec.act, spec.window, spec.alibi), (GqaRatio(2), DType::F32, false, false));
    assert_eq!((spec.layout.config().k_bits(), spec.layout.config().v_bits()), (Bits::B2, Bits::B4));
    assert_eq!(spec.layout.head_dim(), 16);
}

#[test]
fn an_allocation_that_fails_is_out_of_memory() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    let dir = SMALL.write(&weight);
    backend.largest.set(1000);
    let failed = Engine::new(&backend, &model, config(cache(2, 2), 64, 1)).map(|_| ()).unwrap_err();
    assert!(matches!(&failed, EngineError::Device(e) if e.kind() == ErrorKind::OutOfMemory), "{failed}");
    let failed = Model::load(&backend, &Source::Dir(dir.path().to_path_buf()), &mut |_, _| {}).map(|_| ());
    let failed = failed.unwrap_err();
    assert!(matches!(&failed, ModelError::Device(e) if e.kind() == ErrorKind::OutOfMemory), "{failed}");
}

/// Whichever op fails, the step does.
#[test]
fn a_failure_of_any_op_fails_the_step() {
    let backend = Recorder::default();
    let model = SMALL.load(&backend);
    let ops = "record embed rms_norm linear rope attend append activate add gather argmax sample read wait";
    for op in ops.split(' ') {
        let mut engine = Engine::new(&backend, &model, config(cache(2, 2), 64, 1)).expect("an engine");
        let mut asked = request(&prompt(5), 2);
        asked.sampling.temperature = if op == "sample" { 1.0 } else { 0.0 };
        engine.submit(asked).expect("a good request");
        backend.failing.set(op);
        let failed = engine.step().expect_err(op);
        backend.failing.set("");
        assert!(
            matches!(&failed, StepError::Device(e) if e.kind() == ErrorKind::DeviceLost),
            "{op}: {failed}"
        );
    }
}
