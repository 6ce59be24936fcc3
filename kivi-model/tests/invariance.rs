//! What a sequence gets does not depend on who else is in the batch, on how its prompt is cut, or on whose pages it
//! has.

mod models;
mod random;
mod runs;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::Engine;
use models::{cache, config, golden, ids, kivi_tiny};
use random::{SMALL, tokens};
use runs::{Arrival, alone, arrival, assert_same, run, token_by_token, two_bits};

/// Eight prompts of the embedded model: the golden ones, all of them below 1,000 tokens.
fn prompts() -> Vec<Vec<u32>> {
    let golden = golden("kivi-tiny.json");
    let prompts = golden["cases"].as_array().expect("cases").iter().map(|case| ids(&case["prompt_ids"]));
    let prompts: Vec<_> = prompts.filter(|prompt| prompt.len() < 1000).take(8).collect();
    assert_eq!(prompts.len(), 8);
    prompts
}

/// Each of eight sequences, of other lengths, that join and leave at other steps.
#[test]
fn alone_is_as_among_seven_others() {
    let backend = Cpu::<f32>::new();
    let model = kivi_tiny(&backend);
    let prompts = prompts();
    let arrivals: Vec<_> =
        prompts.iter().enumerate().map(|(i, prompt)| arrival(i * 2 % 7, prompt, 24 - 2 * i)).collect();
    let together = {
        let mut engine = Engine::new(&backend, &model, config(cache(16, 16), 1024, 8)).expect("an engine");
        run(&mut engine, &arrivals, false)
    };
    for (i, (together, arrival)) in together.iter().zip(&arrivals).enumerate() {
        let alone = alone(&backend, &model, config(cache(16, 16), 1024, 1), arrival);
        assert_eq!(alone.tokens.len(), 24 - 2 * i);
        assert_same(&format!("sequence {i}"), together, &alone);
    }
}

/// A prompt in steps of any number of rows; of one sequence, and of two that share the steps.
#[test]
fn one_prompt_is_as_any_chunks() {
    let backend = Cpu::<f32>::new();
    let model = kivi_tiny(&backend);
    let prompts = prompts();
    let (long, other) = (&prompts[prompts.len() - 1], &prompts[2]);
    assert!(long.len() > 290, "{}", long.len());
    let arrivals = [arrival(0, long, 8), arrival(0, other, 12)];
    let whole = arrivals.clone().map(|a| alone(&backend, &model, config(cache(16, 16), 1024, 1), &a));
    for rows in [1, 7, 64, 100, 128, 129, long.len() - 1, long.len() + 3] {
        let mut sizes = config(cache(16, 16), 1024, 2);
        sizes.max_batched_tokens = rows;
        let mut engine = Engine::new(&backend, &model, sizes).expect("an engine");
        for (found, expected) in run(&mut engine, &arrivals, false).iter().zip(&whole) {
            assert_same(&format!("{rows} rows a step"), found, expected);
        }
    }
}

/// Steps of up to four rows: the CPU backend computes each row of a product by itself then, so that results are equal
/// to the bit, and so is what is packed. (More rows are a matrix product, whose sums are in another order.)
#[test]
fn packed_bytes_do_not_depend_on_the_batch() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let lens = [(0, 31, 40), (0, 100, 30), (3, 64, 50), (9, 65, 9), (75, 70, 3), (90, 33, 20)];
    let arrivals = lens.map(|(step, n, more)| token_by_token(step, &format!("{step} {n}"), n, more));
    let mut engine = Engine::new(&backend, &model, config(two_bits(), 256, 4)).expect("an engine");
    let together = run(&mut engine, &arrivals, true);
    for (i, (together, arrival)) in together.iter().zip(&arrivals).enumerate() {
        let alone = alone(&backend, &model, config(two_bits(), 256, 1), arrival);
        assert_eq!(alone.caches.len(), arrival.request.max_tokens - 1);
        for (step, (found, expected)) in together.caches.iter().zip(&alone.caches).enumerate() {
            assert!(found == expected, "sequence {i}, step {step}: other bytes than alone");
        }
        assert!(*together == alone, "sequence {i}: other logits than alone");
    }
}

/// The pages, ring and slot of a sequence that is gone, whether it ended or was cancelled, are as new.
#[test]
fn packed_bytes_do_not_depend_on_who_had_the_pages() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut sizes = config(two_bits(), 256, 2);
    sizes.pool_tokens = 288; // nine pages, so that they go round
    let long = arrival(0, &tokens("long", 200, SMALL.vocab), 40);
    let short = arrival(0, &tokens("short", 45, SMALL.vocab), 30);
    let one_by_one = token_by_token(0, "one by one", 70, 50);
    let [expected_long, expected_short, expected_one_by_one] =
        [&long, &short, &one_by_one].map(|a| alone(&backend, &model, sizes.clone(), a));
    let mut engine = Engine::new(&backend, &model, sizes).expect("an engine");
    for _ in 0..3 {
        let cancelled = engine.submit(long.request.clone()).expect("a good request");
        (0..20).for_each(|_| drop(engine.step().expect("the CPU does not fail")));
        engine.cancel(cancelled).expect("it runs");
        assert!(run(&mut engine, std::slice::from_ref(&short), true)[0] == expected_short);
        assert!(run(&mut engine, std::slice::from_ref(&long), true)[0] == expected_long);
        let two = run(&mut engine, &[one_by_one.clone(), Arrival { step: 4, ..one_by_one.clone() }], true);
        assert!(two.iter().all(|run| *run == expected_one_by_one));
    }
}

/// Codes of equal rows are equal however the rows are cut into steps. Through a model, later chunks see a packed past,
/// so that only the first layer's keys and values are equal.
#[test]
fn the_first_layers_bytes_do_not_depend_on_chunks() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let prompt = arrival(0, &tokens("p", 150, SMALL.vocab), 2);
    let first_layer = |rows: usize| {
        let mut sizes = config(two_bits(), 256, 1);
        sizes.max_batched_tokens = rows;
        alone(&backend, &model, sizes, &prompt).caches.remove(0).layers.remove(0)
    };
    let whole = first_layer(150);
    for rows in [149, 97, 64, 33, 32, 31, 10] {
        assert!(first_layer(rows) == whole, "{rows} rows a step");
    }
}
