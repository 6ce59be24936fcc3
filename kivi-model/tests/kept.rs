//! Texts that are kept: continued, changed, forgotten.

mod models;
mod random;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{
    CacheUse, Engine, EngineConfig, Event, PageUse, Request, SeqId, SequenceError, SubmitError,
};
use kivi_model::model::Model;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};
use models::{cache, config, golden, request};
use random::{SMALL, checkpoint, load, tokens};

type CpuEngine<'a> = Engine<'a, Cpu<f32>>;

const CONTEXT: usize = 600;

fn engine<'a>(backend: &'a Cpu<f32>, model: &'a Model<Cpu<f32>>, cache: KiviConfig) -> CpuEngine<'a> {
    Engine::new(backend, model, config(cache, CONTEXT, 1)).expect("an engine")
}

fn two_bits(residual: usize) -> KiviConfig {
    let config = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, residual).expect("a valid cache");
    config.with_kv_dtype(KvDtype::F16).with_page_tokens(32).expect("a valid page")
}

fn some(name: &str, n: usize) -> Vec<u32> {
    tokens(name, n, SMALL.vocab)
}

/// What came of a request that is kept.
struct Turn {
    id: SeqId,
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
    cache: CacheUse,
}

fn turn(engine: &mut CpuEngine<'_>, prompt: &[u32], max_tokens: usize, past: Option<SeqId>) -> Turn {
    let request = Request { want_logits: true, past, keep: true, ..request(prompt, max_tokens) };
    let id = engine.submit(request).expect("a good request");
    let mut turn = Turn { id, tokens: Vec::new(), logits: Vec::new(), cache: CacheUse::default() };
    while !engine.is_idle() {
        for event in engine.step().expect("the CPU does not fail") {
            match event {
                Event::Token { token, logits, .. } => {
                    turn.tokens.push(token);
                    turn.logits.extend(logits);
                }
                Event::Finished { cache, .. } => turn.cache = cache,
                Event::Failed { error, .. } => panic!("the text failed: {error}"),
            }
        }
    }
    turn
}

/// Five turns, each the text so far and something more: the tokens of each are those of one prompt that says all of it, and
/// nothing is computed twice.
#[test]
fn five_turns_are_as_one_prompt() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut kept = engine(&backend, &model, cache(16, 16));
    let (mut text, mut past) = (Vec::new(), None);
    for n in 0..5 {
        let cached = past.and_then(|id| kept.kept_tokens(id)).map_or(0, |text| text.len() - 1);
        text.extend(some(&format!("turn {n}"), 20 + 17 * n));
        let answer = turn(&mut kept, &text, 12, past);
        assert_eq!(answer.cache.reused, cached);
        let alone = turn(&mut engine(&backend, &model, cache(16, 16)), &text, 12, None);
        assert_eq!(answer.tokens, alone.tokens, "turn {n}");
        text.extend(answer.tokens);
        past = Some(answer.id);
        assert_eq!(kept.kept_tokens(answer.id), Some(&text[..]));
    }
}

/// At 16 bits every earlier state can be restored: what is used is what two texts have in common.
#[test]
fn at_16_bits_another_continuation_uses_the_common_part() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    for common in [1, 31, 32, 100, 149, 150] {
        let mut kept = engine(&backend, &model, cache(16, 16));
        let first = turn(&mut kept, &some("p", 150), 40, None);
        let mut other = some("p", 150)[..common].to_vec();
        other.extend(some("q", 70).into_iter().map(|token| (token + 1) % 64));
        let same =
            kept.kept_tokens(first.id).expect("kept").iter().zip(&other).take_while(|(x, y)| x == y).count();
        let found = turn(&mut kept, &other, 20, Some(first.id));
        assert_eq!(found.cache.reused, same);
        let expected = turn(&mut engine(&backend, &model, cache(16, 16)), &other, 20, None);
        assert_eq!(found.tokens, expected.tokens, "{common} in common");
    }
}

/// Quantized, a text goes back to where nothing was packed since, or to its last prompt's end, or beginning. From there on it
/// is, to the bit, as if it had never gone further.
#[test]
fn at_2_bits_a_text_goes_back_to_where_it_can_exactly() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    // Lengths of the first prompt, its answer, the second prompt's new part and its answer; how far back; what is reused.
    // Prompts of up to four new tokens: more rows are a matrix product, whose sums are in another order.
    let (first, second) = (150, 3);
    let cases = [
        ("the last answer is replaced", 32, 90, 60, 60, "end"),
        ("the last prompt, too", 32, 90, 60, 61 + second, "start"),
        ("all of it", 32, 90, 60, 300, "zero"),
        ("nothing was packed yet", 512, 20, 30, 29 + second, "exact"),
    ];
    for (what, residual, answer1, answer2, back, to) in cases {
        let run = |further: bool| {
            let mut kept = engine(&backend, &model, two_bits(residual));
            let mut text = some("p", first);
            let one = turn(&mut kept, &text, answer1, None);
            text.extend(&one.tokens);
            let start = text.len() - 1;
            text.extend(some("q", second));
            let end = text.len();
            // Without going further: one token of the answer, which is chosen but not in the cache.
            let two = turn(&mut kept, &text, if further { answer2 } else { 1 }, Some(one.id));
            text.extend(&two.tokens);
            (kept, two.id, text, start, end)
        };
        let (mut kept, id, text, start, end) = run(true);
        let mut other = text[..text.len().saturating_sub(back)].to_vec();
        let at = other.len();
        other.extend(text.get(at).map(|token| (token + 1) % 64));
        let found = turn(&mut kept, &other, 50, Some(id));
        let reused = match to {
            "end" => end,
            "start" => start,
            "exact" => at,
            _ => 0,
        };
        assert_eq!(found.cache.reused, reused, "{what}");
        if to == "end" {
            assert_eq!(at, end, "{what}: the case is what it says");
            let (mut kept, id, ..) = run(false);
            let expected = turn(&mut kept, &other, 50, Some(id));
            assert_eq!(expected.cache.reused, end);
            assert_eq!((found.tokens, found.logits), (expected.tokens, expected.logits), "{what}");
        } else if to == "start" {
            let mut kept = engine(&backend, &model, two_bits(residual));
            let one = turn(&mut kept, &some("p", first), answer1, None);
            let expected = turn(&mut kept, &other, 50, Some(one.id));
            assert_eq!(expected.cache.reused, start);
            assert_eq!((found.tokens, found.logits), (expected.tokens, expected.logits), "{what}");
        } else {
            let expected = turn(&mut engine(&backend, &model, two_bits(residual)), &other, 50, None);
            assert_eq!(found.tokens, expected.tokens, "{what}");
            // From nothing, the steps are the same, too.
            assert!(to != "zero" || found.logits == expected.logits, "{what}");
        }
    }
}

/// Going back gives pages to others, and forgetting gives all of them.
#[test]
fn places_are_given_back() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    for cache in [cache(16, 16), two_bits(32)] {
        let mut kept = engine(&backend, &model, cache);
        for n in 0..20 {
            let first = turn(&mut kept, &some(&format!("{n}"), 400), 30, None);
            let changed = [&some(&format!("{n}"), 20)[..], &some("x", 9)].concat();
            let second = turn(&mut kept, &changed, 5, Some(first.id));
            assert!(kept.kept_tokens(first.id).is_none(), "its cache is the second one's");
            assert!(second.cache.allocated < first.cache.allocated);
            assert!(kept.forget(second.id) && !kept.forget(second.id) && !kept.forget(first.id));
        }
    }
}

#[test]
fn a_past_must_be_there_and_must_not_be_in_the_way() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut kept = engine(&backend, &model, two_bits(32));
    let first = turn(&mut kept, &some("p", 50), 5, None);
    let with = |past, keep| Request { past, keep, ..request(&some("p", 60), 5) };
    // The only slot is taken by a text at rest.
    let refused = kept.submit(with(None, false)).expect("it may have to wait");
    let events = kept.step().expect("the CPU does not fail");
    let no_room = SequenceError::NoRoom { kept: 1 };
    assert!(matches!(&events[..], [Event::Failed { id, error }] if *id == refused && *error == no_room));
    assert!(kept.is_idle());
    // A cancelled request hands its past on, or drops it.
    let waiting = kept.submit(with(Some(first.id), true)).expect("a good request");
    assert_eq!(kept.submit(with(Some(first.id), true)), Err(SubmitError::UnknownPast));
    kept.cancel(waiting).expect("it waits");
    let before = some("p", 50);
    assert_eq!(kept.kept_tokens(waiting).map(|tokens| tokens[..50] == before), Some(true));
    let running = kept.submit(with(Some(waiting), true)).expect("a good request");
    (0..3).for_each(|_| drop(kept.step().expect("the CPU does not fail")));
    let used = kept.cancel(running).expect("it runs");
    assert_eq!((used.tokens, kept.kept_tokens(running).map(<[u32]>::len)), (62, Some(63)));
    let dropped = kept.submit(with(Some(running), false)).expect("a good request");
    kept.cancel(dropped).expect("it waits");
    turn(&mut kept, &some("p", 60), 5, None);
}

/// A model of `golden/random-families.json`.
fn family(backend: &Cpu<f32>, name: &str) -> Model<Cpu<f32>> {
    let golden = golden("random-families.json");
    let case = golden["cases"].as_array().expect("cases").iter().find(|case| case["name"] == name);
    load(backend, checkpoint(case.expect("a case")).path())
}

/// Runs all that there is, and tells what failed.
fn failures(engine: &mut CpuEngine<'_>) -> Vec<(SeqId, SequenceError)> {
    let mut failures = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().expect("the CPU does not fail") {
            if let Event::Failed { id, error } = event {
                failures.push((id, error));
            }
        }
    }
    failures
}

/// A text that waits behind one that cannot begin, and has what that lacks, goes first.
#[test]
fn a_text_that_waits_for_the_next_ones_past_does_not_fail() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut kept = engine(&backend, &model, two_bits(32));
    let first = turn(&mut kept, &some("p", 50), 5, None);
    kept.submit(request(&some("q", 60), 5)).expect("it has to wait");
    kept.submit(Request { past: Some(first.id), ..request(&some("p", 60), 5) }).expect("a good request");
    assert_eq!(failures(&mut kept), []);
}

/// Behind a window, a text that begins otherwise needs its first pages once more: it waits for them, or is told that kept
/// texts have them, and its past is still there.
#[test]
fn a_text_that_starts_again_has_room_for_all_of_it() {
    let backend = Cpu::<f32>::new();
    let model = family(&backend, "mistral-window-in-prompt");
    let cache = cache(16, 16).with_page_tokens(32).expect("a valid page");
    let mut kept = Engine::new(&backend, &model, EngineConfig { pool_tokens: 192, ..config(cache, 170, 2) })
        .expect("an engine");
    let first = turn(&mut kept, &some("p", 100), 2, None);
    let other = turn(&mut kept, &some("q", 100), 2, None);
    assert_eq!(kept.page_use(), [PageUse { free: 2, owned: 4, all: 6 }]);
    let again = |past| Request { past, keep: true, ..request(&some("r", 160), 2) };
    let id = kept.submit(again(Some(first.id))).expect("a good request");
    assert_eq!(failures(&mut kept), [(id, SequenceError::NoRoom { kept: 2 })]);
    assert_eq!(kept.kept_tokens(id).map(<[u32]>::len), Some(102));
    assert!(kept.forget(other.id));
    turn(&mut kept, &some("r", 160), 2, Some(id));
}

/// Where a key is rotated by the length that its text has by then, what was longer than the trained context is of no use
/// to a text that begins alike and is not.
#[test]
fn keys_of_longer_texts_are_not_those_of_shorter_ones() {
    let backend = Cpu::<f32>::new();
    let model = family(&backend, "falcon-7b-dynamic");
    for (prompt, answer, common, reused) in [(60, 5, 40, 0), (30, 30, 45, 30), (30, 15, 40, 40)] {
        let mut kept = engine(&backend, &model, cache(16, 16));
        let first = turn(&mut kept, &some("p", prompt), answer, None);
        let mut other = kept.kept_tokens(first.id).expect("kept")[..common].to_vec();
        other.extend([(kept.kept_tokens(first.id).expect("kept")[common] + 1) % 64, 3]);
        let alone = turn(&mut engine(&backend, &model, cache(16, 16)), &other, 9, None);
        let found = turn(&mut kept, &other, 9, Some(first.id));
        assert_eq!((found.cache.reused, found.tokens), (reused, alone.tokens));
        for (found, alone) in found.logits.iter().flatten().zip(alone.logits.iter().flatten()) {
            assert!((found - alone).abs() < 1e-4, "{found} is not {alone}");
        }
    }
}
