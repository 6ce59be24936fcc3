//! Texts that come, go on, are changed, cancelled, saved, restored and forgotten in any order, in pools that are too small
//! for all of them: no page is lost or given twice, every text ends, and none is another than it is alone.

mod models;
mod random;
mod runs;

use std::collections::BTreeMap;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, EngineConfig, Event, Request, SeqId};
use kivi_model::model::Model;
use kivi_model::policy::CachePolicy;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};
use models::{golden, request};
use random::{checkpoint, load, noise, tokens};
use runs::CpuEngine;

const CONTEXT: usize = 170;
const SLOTS: usize = 3;
/// Actions of a run.
const ACTIONS: usize = 70;
/// Steps within which any number of texts of these tests ends.
const ENOUGH: usize = 5000;

fn cache(k: u32, v: u32) -> KiviConfig {
    let bits = |b| Bits::try_from(b).expect("a width");
    let config = KiviConfig::new(bits(k), bits(v), GroupSize::G32, 32).expect("a valid cache");
    config.with_kv_dtype(KvDtype::F32).with_page_tokens(32).expect("a valid page")
}

/// Models with a window in every layer, in some and in none, and with positions in three ways.
fn models(backend: &Cpu<f32>) -> Vec<(String, Model<Cpu<f32>>)> {
    let names = [
        "mistral-window-in-prompt",
        "mistral-window-in-decode",
        "qwen2-window-in-some-layers",
        "qwen3",
        "falcon-rw",
    ];
    let golden = golden("random-families.json");
    let case = |name: &&str| {
        golden["cases"]
            .as_array()
            .expect("cases")
            .iter()
            .find(|c| c["name"] == **name)
            .expect("a case")
            .clone()
    };
    names.iter().map(|name| ((*name).to_owned(), load(backend, checkpoint(&case(name)).path()))).collect()
}

/// A text that was asked for, and what came of it so far.
#[derive(Default)]
struct Text {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

/// An engine under random use.
struct Churn<'a> {
    name: String,
    backend: &'a Cpu<f32>,
    model: &'a Model<Cpu<f32>>,
    sizes: EngineConfig,
    engine: CpuEngine<'a>,
    texts: BTreeMap<SeqId, Text>,
    /// All that were ever kept, some of which may be so still.
    kept: Vec<SeqId>,
    drawn: u64,
    /// Texts that were compared, and those that failed.
    counts: (usize, usize),
}

impl<'a> Churn<'a> {
    fn new(name: String, backend: &'a Cpu<f32>, model: &'a Model<Cpu<f32>>, sizes: EngineConfig) -> Self {
        let engine = Engine::new(backend, model, sizes.clone()).expect("an engine");
        let (texts, kept) = (BTreeMap::new(), Vec::new());
        Self { name, backend, model, sizes, engine, texts, kept, drawn: 0, counts: (0, 0) }
    }

    /// A number below `n`.
    fn draw(&mut self, n: usize) -> usize {
        self.drawn += 1;
        (noise(&self.name, self.drawn) % n as u64) as usize
    }

    fn some_kept(&mut self) -> Option<SeqId> {
        let (engine, texts) = (&self.engine, &self.texts);
        self.kept.retain(|id| texts.contains_key(id) || engine.kept_tokens(*id).is_some());
        let kept: Vec<_> = self.kept.iter().copied().filter(|id| !texts.contains_key(id)).collect();
        if kept.is_empty() {
            return None;
        }
        let at = self.draw(kept.len());
        Some(kept[at])
    }

    fn act(&mut self) {
        match self.draw(12) {
            0..=3 => self.submit(),
            4..=7 => {
                for _ in 0..=self.draw(60) {
                    self.step();
                }
            }
            8 => {
                let n = self.draw(4);
                let Some(id) = self.texts.keys().copied().nth(n) else { return };
                self.engine.cancel(id).expect("it is under way");
                self.texts.remove(&id);
            }
            9 => {
                if let Some(id) = self.some_kept() {
                    assert!(self.engine.forget(id));
                }
            }
            _ => {
                let Some(id) = self.some_kept() else { return };
                let saved = self.engine.save(id).expect("the CPU does not fail").expect("it is kept");
                if self.draw(2) == 0 {
                    self.engine.forget(id);
                }
                if let Ok(id) = self.engine.restore(&saved) {
                    let again = self.engine.save(id).expect("the CPU does not fail").expect("it is kept");
                    assert!(again == saved, "{}: another cache", self.name);
                    self.kept.push(id);
                }
            }
        }
        self.check_pages();
    }

    /// A new text; or an old one, or a part of it, and something more.
    fn submit(&mut self) {
        let vocab_size = self.model.config().vocab_size;
        let past = if self.draw(3) > 0 { self.some_kept() } else { None };
        let mut prompt = match past.and_then(|past| self.engine.kept_tokens(past)) {
            Some(text) => text.to_vec(),
            None => tokens("shared", 60, vocab_size),
        };
        let cut = [0, 0, 1, 1 + self.draw(10), self.draw(prompt.len())][self.draw(5)];
        prompt.truncate(prompt.len() - cut);
        let (more, seed) = ([1, 3, 30, 90][self.draw(4)], self.drawn);
        prompt.extend(tokens(&format!("{seed}"), 1 + self.draw(more), vocab_size));
        let (n, keep) = ([1, 5, 40][self.draw(3)], self.draw(4) > 0);
        let request = Request { want_logits: true, past, keep, ..request(&prompt, n) };
        let Ok(id) = self.engine.submit(request) else { return };
        self.texts.insert(id, Text { prompt, ..Text::default() });
        self.kept.push(id);
    }

    fn step(&mut self) {
        for event in self.engine.step().expect("the CPU does not fail") {
            match event {
                Event::Token { id, token, logits } => {
                    let text = self.texts.get_mut(&id).expect("it is under way");
                    text.tokens.push(token);
                    text.logits.extend(logits);
                }
                Event::Finished { id, .. } => {
                    let text = self.texts.remove(&id).expect("it is under way");
                    self.compare(&text);
                }
                Event::Failed { id, .. } => {
                    self.texts.remove(&id);
                    self.counts.1 += 1;
                }
            }
        }
        self.check_pages();
    }

    fn check_pages(&self) {
        for group in self.engine.page_use() {
            assert_eq!(group.free + group.owned, group.all, "{}", self.name);
        }
    }

    /// The text is what it is alone. Steps of one row have their sums in one order: then it is that to the bit.
    fn compare(&mut self, text: &Text) {
        self.counts.0 += 1;
        let exact = self.sizes.max_batched_tokens == 1;
        let sizes = EngineConfig { max_seqs: 1, pool_tokens: 1000, ..self.sizes.clone() };
        let mut engine = Engine::new(self.backend, self.model, sizes).expect("an engine");
        let asked = Request { want_logits: true, ..request(&text.prompt, text.tokens.len()) };
        let (tokens, logits) = models::run(&mut engine, vec![asked]).remove(0);
        assert_eq!(text.tokens, tokens, "{}", self.name);
        assert!(!exact || text.logits == logits, "{}: other logits", self.name);
    }

    /// Lets all texts end, forgets them, and finds every page free and every slot of use.
    fn end(mut self) -> (usize, usize) {
        for _ in 0..ENOUGH {
            self.step();
            if self.engine.is_idle() {
                break;
            }
        }
        assert!(self.engine.is_idle() && self.texts.is_empty(), "{}: some text does not end", self.name);
        while let Some(id) = self.some_kept() {
            self.engine.forget(id);
        }
        assert!(self.engine.page_use().iter().all(|group| group.owned == 0 && group.free == group.all));
        let all = (0..SLOTS).map(|_| request(&[1, 2, 3], 2)).collect();
        models::run(&mut self.engine, all);
        self.counts
    }
}

#[test]
fn nothing_is_lost_and_no_text_is_another() {
    let backend = Cpu::<f32>::new();
    let mixed = CachePolicy::from(cache(2, 2)).with_layer(0, cache(16, 16));
    let sinks = cache(2, 4).with_sink_tokens(5).expect("sinks");
    let policies = [
        (cache(16, 16).into(), &[1, 7, 40, 300][..]),
        (cache(2, 2).into(), &[1]),
        (cache(2, 16).into(), &[1]),
        (mixed, &[1]),
        (sinks.into(), &[1]),
    ];
    for (model_name, model) in &models(&backend) {
        for (policy, rows) in &policies {
            let (mut compared, mut failed) = (0, 0);
            let pools = [192, 320, 1000];
            for (&rows, pool_tokens) in rows.iter().flat_map(|rows| pools.map(|pool| (rows, pool))) {
                let sizes = EngineConfig {
                    cache: policy.clone(),
                    max_context: CONTEXT,
                    max_seqs: SLOTS,
                    max_batched_tokens: rows,
                    pool_tokens,
                };
                let name = format!("{model_name}, {}, {rows} rows, pool of {pool_tokens}", policy.base());
                let mut churn = Churn::new(name, &backend, model, sizes);
                (0..ACTIONS).for_each(|_| churn.act());
                let counts = churn.end();
                (compared, failed) = (compared + counts.0, failed + counts.1);
            }
            assert!(
                compared > 10,
                "{model_name}, {}: {compared} texts ended, {failed} failed",
                policy.base()
            );
        }
    }
}
