//! Every family and variation of `golden/random-families.json`: what a sequence gets does not depend on how its prompt
//! is cut or on who else is in the batch, at 16 bits and at 2; and its cache takes what the formula says.

mod models;
mod random;
mod runs;

use std::collections::BTreeMap;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, EngineConfig, Event};
use kivi_model::model::Model;
use kivi_quant::{CacheBytes, PageLayout};
use models::{cache, config, golden, request};
use random::{SMALL, checkpoint, load, tokens};
use runs::{alone, arrival, assert_same, run, token_by_token, two_bits};

/// Calls `test` with each model and its name.
fn for_each_model(backend: &Cpu<f32>, test: impl Fn(&str, &Model<Cpu<f32>>)) {
    let golden = golden("random-families.json");
    for case in golden["cases"].as_array().expect("cases") {
        test(case["name"].as_str().expect("a name"), &load(backend, checkpoint(case).path()));
    }
}

/// Whether a token is rotated by the length of the step that it comes with.
fn depends_on_steps(model: &Model<Cpu<f32>>) -> bool {
    model.config().rope.is_dynamic()
}

/// What a backend is asked for before a model runs on it: the window of any layer, and biases.
#[test]
fn backends_are_told_of_windows_and_biases() {
    let backend = Cpu::<f32>::new();
    let asked = std::cell::RefCell::new(BTreeMap::new());
    for_each_model(&backend, |name, model| {
        let spec = model.spec(PageLayout::new(two_bits(), model.config().head_dim).expect("a layout"));
        asked.borrow_mut().insert(name.to_owned(), (spec.window, spec.alibi, spec.gqa.0));
    });
    for (name, expected) in [
        ("mistral-window-in-prompt", (true, false, 2)),
        ("mistral-no-window", (false, false, 2)),
        ("qwen2", (false, false, 2)),
        ("qwen2-window-in-some-layers", (true, false, 2)),
        ("falcon-7b", (false, false, 4)),
        ("falcon-40b", (false, false, 2)),
        ("falcon-rw", (false, true, 1)),
    ] {
        assert_eq!(asked.borrow()[name], expected, "{name}");
    }
}

/// Two sequences that share steps of any number of rows, at 16 bits.
#[test]
fn any_chunks_are_as_one_prompt() {
    let backend = Cpu::<f32>::new();
    for_each_model(&backend, |name, model| {
        let arrivals = [("long", 90), ("short", 41)]
            .map(|(seed, n)| arrival(0, &tokens(&format!("{name}/{seed}"), n, model.config().vocab_size), 8));
        let sizes = config(cache(16, 16), 128, 2);
        let whole = arrivals.clone().map(|a| alone(&backend, model, sizes, &a));
        for rows in [1, 7, 33, 64, 89, 200] {
            if depends_on_steps(model) && rows < 200 {
                continue;
            }
            let sizes = EngineConfig { max_batched_tokens: rows, ..sizes };
            let mut engine = Engine::new(&backend, model, sizes).expect("an engine");
            for (found, expected) in run(&mut engine, &arrivals, false).iter().zip(&whole) {
                assert_same(&format!("{name}, {rows} rows a step"), found, expected);
            }
        }
    });
}

/// At 2 bits, bit for bit: tokens, logits and what is packed, of sequences that join and leave. (Steps of up to four
/// rows, as in `invariance.rs`.)
#[test]
fn packed_bytes_do_not_depend_on_the_batch() {
    let backend = Cpu::<f32>::new();
    for_each_model(&backend, |name, model| {
        let lens = [(0, 31, 20), (0, 70, 30), (3, 64, 20), (9, 65, 9), (60, 40, 3)];
        let arrivals =
            lens.map(|(step, n, more)| token_by_token(step, &format!("{name} {step} {n}"), n, more));
        let mut engine = Engine::new(&backend, model, config(two_bits(), 128, 4)).expect("an engine");
        let together = run(&mut engine, &arrivals, true);
        for (i, (together, arrival)) in together.iter().zip(&arrivals).enumerate() {
            let alone = alone(&backend, model, config(two_bits(), 128, 1), arrival);
            assert!(together.caches == alone.caches, "{name}, sequence {i}: other bytes than alone");
            assert!(*together == alone, "{name}, sequence {i}: other logits than alone");
        }
    });
}

/// At 2 bits, however the prompt is cut: later layers see a packed past, the first does not. (No chunk is of less than
/// five rows, whose products are added in another order.)
#[test]
fn the_first_layers_bytes_do_not_depend_on_chunks() {
    let backend = Cpu::<f32>::new();
    for_each_model(&backend, |name, model| {
        let prompt = arrival(0, &tokens("p", 100, SMALL.vocab), 2);
        let first_layer = |rows: usize| {
            let mut sizes = config(two_bits(), 128, 1);
            sizes.max_batched_tokens = rows;
            let contents = alone(&backend, model, sizes, &prompt).caches.remove(0);
            contents[..contents.len() / model.config().n_layers].to_vec()
        };
        let whole = first_layer(100);
        for rows in [95, 64, 40, 31, 10].into_iter().filter(|_| !depends_on_steps(model)) {
            assert!(first_layer(rows) == whole, "{name}: {rows} rows a step");
        }
    });
}

/// What an engine reports is what one KV head takes, times layers and KV heads: one with multi-query attention.
#[test]
fn caches_take_what_the_formula_says() {
    let backend = Cpu::<f32>::new();
    for_each_model(&backend, |name, model| {
        let c = model.config();
        if c.windows.iter().any(Option::is_some) {
            return; // pages behind the window need not stay
        }
        let layout = PageLayout::new(two_bits(), c.head_dim).expect("a layout");
        for len in [1, 31, 32, 33, 64, 65, 100] {
            let mut engine = Engine::new(&backend, model, config(two_bits(), 128, 1)).expect("an engine");
            engine.submit(request(&tokens(name, len, c.vocab_size), 1)).expect("a good request");
            let events = engine.step().expect("the CPU does not fail");
            let Some(Event::Finished { cache, .. }) = events.last() else { panic!("{name}: {events:?}") };
            let heads = c.n_layers * c.n_kv_heads;
            assert_eq!(cache.used, CacheBytes::of_head(&layout, len).times(heads), "{name}, {len} tokens");
            let allocated = CacheBytes::allocated_by_head(&layout, len) * heads;
            assert_eq!(cache.allocated, allocated, "{name}, {len} tokens");
        }
    });
}
