//! Passkey retrieval over a 2-bit cache: a number hidden in up to 7,900 tokens of prose is found again.

mod models;
mod random;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::Engine;
use kivi_model::tokenizer::Tokenizer;
use kivi_quant::{Bits, GroupSize, KiviConfig};
use models::{config, golden, ids, kivi_tiny, kivi_tiny_source, request, run};
use random::{fnv1a, noise};
use serde_json::Value;

/// Greedy tokens of an answer.
const ANSWER: usize = 7;

/// The texts that prompts are made of.
struct Texts<'a> {
    golden: &'a Value,
    tokenizer: &'a Tokenizer,
}

impl Texts<'_> {
    fn text(&self, part: &str) -> &str {
        self.golden[part].as_str().expect("a text")
    }

    fn count(&self, text: &str) -> usize {
        self.tokenizer.encode(text, false).expect("tokens").len()
    }

    /// A prompt of at most `n_tokens` tokens with `key` behind `depth` thousandths of the filler.
    fn prompt(&self, n_tokens: usize, depth: usize, key: u64) -> Vec<u32> {
        let [head, filler, question] = ["head", "filler", "question"].map(|part| self.text(part));
        let needle = self.text("needle").replace("{key}", &key.to_string());
        let fixed = 1 + self.count(head) + self.count(&needle) + self.count(question);
        let lines = (n_tokens - fixed) / self.count(filler);
        let before = lines * depth / 1000;
        let text = [head, &filler.repeat(before), &needle, &filler.repeat(lines - before), question].concat();
        self.tokenizer.encode(&text, true).expect("tokens")
    }

    /// Keys and prompts of a set; they must be those of the golden file.
    fn prompts(&self, set: &Value) -> Vec<(String, Vec<u32>)> {
        let n_tokens = set["n_tokens"].as_u64().expect("a length") as usize;
        let cases = set["cases"].as_array().expect("cases").iter().enumerate();
        let prompts = cases.map(|(i, case)| {
            let key = 10_000 + noise(&format!("passkey/{n_tokens}"), i as u64) % 90_000;
            let prompt = self.prompt(n_tokens, 25 + 50 * i, key);
            let bytes: Vec<u8> = prompt.iter().flat_map(|id| id.to_le_bytes()).collect();
            assert_eq!(key.to_string(), case["key"], "case {i}");
            assert_eq!(format!("{:016x}", fnv1a(&bytes)), case["prompt_ids_fnv1a"], "case {i}");
            (key.to_string(), prompt)
        });
        prompts.collect()
    }
}

/// How many of 20 prompts are answered with their key, `batch` prompts at a time.
fn answered(set: usize, batch: usize) -> usize {
    let (golden, source) = (golden("passkey.json"), kivi_tiny_source());
    let backend = Cpu::<f32>::new();
    let model = kivi_tiny(&backend);
    let tokenizer = Tokenizer::load(&source, model.config().vocab_size).expect("a tokenizer");
    let set = &golden["sets"][set];
    let prompts = Texts { golden: &golden, tokenizer: &tokenizer }.prompts(set);
    assert_eq!(prompts.len(), 20);

    let two_bits = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 128).expect("a valid cache");
    let mut sizes = config(two_bits, 8000, batch);
    // Whole prompts, as many as run at a time, in one step: then all of a prompt is read in full precision.
    sizes.max_batched_tokens = 8000;
    let mut engine = Engine::new(&backend, &model, sizes).expect("an engine");
    let requests = prompts.iter().map(|(_, prompt)| request(prompt, ANSWER)).collect();
    let answers = run(&mut engine, requests);
    let mut correct = 0;
    for ((key, _), ((tokens, _), case)) in
        prompts.iter().zip(answers.iter().zip(set["cases"].as_array().expect("cases")))
    {
        let answer = tokenizer.decode(tokens, false).expect("text");
        correct += usize::from(answer.contains(key));
        if *tokens != ids(&case["answer_ids"]) {
            println!("{key}: {answer:?}, at full precision {}", case["answer"]);
        }
    }
    println!("{correct} of 20");
    correct
}

/// Whether this is no optimised build, in which the whole prompts would take minutes.
fn skipped() -> bool {
    if cfg!(debug_assertions) {
        println!("skipped: needs a release build");
    }
    cfg!(debug_assertions)
}

#[test]
fn about_2000_tokens() {
    assert!(skipped() || answered(0, 4) >= 19);
}

#[test]
fn about_7900_tokens() {
    assert!(skipped() || answered(1, 1) >= 19);
}
