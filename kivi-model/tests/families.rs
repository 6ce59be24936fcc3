//! Every family and variation of `golden/random-families.json`: what a sequence gets does not depend on how its prompt
//! is cut or on who else is in the batch, at 16 bits and at 2; and its cache takes what the formula says.

mod models;
mod random;
mod runs;

use std::collections::BTreeMap;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{CacheUse, Engine, EngineConfig, Event, Request};
use kivi_model::model::Model;
use kivi_quant::{CacheBytes, PageLayout};
use models::{cache, config, golden, request};
use random::{SMALL, checkpoint, load, tokens};
use runs::{alone, arrival, assert_same, run, token_by_token, two_bits};

/// Calls `test` with each model and its name.
fn for_each_model(backend: &Cpu<f32>, mut test: impl FnMut(&str, &Model<Cpu<f32>>)) {
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
        let whole = arrivals.clone().map(|a| alone(&backend, model, sizes.clone(), &a));
        for rows in [1, 7, 33, 64, 89, 200] {
            if depends_on_steps(model) && rows < 200 {
                continue;
            }
            let sizes = EngineConfig { max_batched_tokens: rows, ..sizes.clone() };
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
            alone(&backend, model, sizes, &prompt).caches.remove(0).layers.remove(0)
        };
        let whole = first_layer(100);
        for rows in [95, 64, 40, 31, 10].into_iter().filter(|_| !depends_on_steps(model)) {
            assert!(first_layer(rows) == whole, "{name}: {rows} rows a step");
        }
    });
}

/// Pages of 32 tokens that no token after `len` others reads or packs: a window of `w` shows the last `w - 1` and the new one, keys
/// are packed 32 at a time, the last 32 values are not.
fn left(window: Option<usize>, len: usize) -> usize {
    let Some(window) = window else { return 0 };
    let unseen = (len + 1).saturating_sub(window);
    unseen.min(len - len % 32).min(len.saturating_sub(32)) / 32
}

/// What an engine reports is what one KV head takes, times layers and KV heads: one with multi-query attention. Behind a window,
/// pages are gone: 32 tokens of 16 channels at 2 bits and 4 bytes a group, for keys and for values.
#[test]
fn caches_take_what_the_formula_says() {
    let backend = Cpu::<f32>::new();
    let mut gone = 0;
    for_each_model(&backend, |name, model| {
        let c = model.config();
        let layout = PageLayout::new(two_bits(), c.head_dim).expect("a layout");
        for len in [1, 31, 32, 33, 64, 65, 100, 127] {
            let mut engine = Engine::new(&backend, model, config(two_bits(), 128, 1)).expect("an engine");
            let prompt = &tokens(name, len, c.vocab_size);
            let forced = prompt[1..].to_vec();
            engine.submit(Request { forced, ..request(&prompt[..1], len) }).expect("a good request");
            let mut found = CacheUse::default();
            while !engine.is_idle() {
                for event in engine.step().expect("the CPU does not fail") {
                    match event {
                        Event::Finished { cache, .. } => found = cache,
                        Event::Failed { error, .. } => panic!("{name}: {error}"),
                        Event::Token { .. } => {}
                    }
                }
            }
            let (mut used, mut allocated) = (CacheBytes::default(), 0);
            for window in &c.windows {
                let (all, left) = (CacheBytes::of_head(&layout, len), left(*window, len));
                let page = 2 * (32 * c.head_dim * 2 / 8);
                let scales = c.head_dim * 4 + 32 * c.head_dim.div_ceil(32) * 4;
                used += CacheBytes {
                    codes: all.codes - left * page,
                    scales: all.scales - left * scales,
                    fp16: all.fp16 - left * 32 * c.head_dim * 4,
                    ..all
                }
                .times(c.n_kv_heads);
                let pages = two_bits().pages(len) - left;
                allocated +=
                    (pages * layout.page_bytes() + CacheBytes::outside_pages(&layout)) * c.n_kv_heads;
                gone += left;
            }
            assert_eq!((found.tokens, found.used), (len, used), "{name}, {len} tokens");
            assert_eq!(found.allocated, allocated, "{name}, {len} tokens");
        }
    });
    assert!(gone > 0, "no page left a window");
}

/// A model whose layers all have a window takes no more memory for a longer context, and its sequences go on in it.
#[test]
fn a_window_bounds_the_memory() {
    let backend = Cpu::<f32>::new();
    let mut tested = 0;
    for_each_model(&backend, |name, model| {
        let windows = &model.config().windows;
        if !windows.iter().all(|window| window.is_some_and(|w| w < 64)) {
            return;
        }
        let sizes =
            |context: usize| EngineConfig { max_batched_tokens: 32, ..config(cache(2, 2), context, 2) };
        let before = backend.allocated_bytes();
        let allocated = |context| {
            let engine = Engine::new(&backend, model, sizes(context)).expect("an engine");
            let bytes = backend.allocated_bytes() - before;
            drop(engine);
            bytes
        };
        // Page tables grow, by a word a page, sequence and group.
        assert!(allocated(1 << 14) - allocated(1 << 12) <= 2 * 4 * (1 << 14) / 128, "{name}");
        let mut engine = Engine::new(&backend, model, sizes(2000)).expect("an engine");
        let prompt = &tokens(name, 500, model.config().vocab_size);
        let runs = run(&mut engine, &[arrival(0, prompt, 900), arrival(3, &prompt[..7], 600)], false);
        assert_eq!([runs[0].tokens.len(), runs[1].tokens.len()], [900, 600], "{name}");
        tested += 1;
    });
    assert!(tested > 0, "no model with a window in every layer");
}
