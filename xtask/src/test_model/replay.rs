//! Whether recorded steps, and steps that are queued before the tokens of the ones before are known, give the same texts as
//! steps that are run and waited for one by one.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use kivi_kernels::Backend;
use kivi_model::engine::{Engine, EngineConfig, Event, Request, SeqId};
use kivi_model::model::Model;
use kivi_quant::KiviConfig;

/// Texts of a run.
const TEXTS: usize = 5;

/// How steps are run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    OneByOne,
    Recorded,
    Ahead,
}

/// Greedy texts that begin one after the other and end at different times, the longest after `n` tokens; their words are
/// those of `window`. Returns how many ways of running them differ, after a line that says so.
pub fn compare<B: Backend>(
    device: &B,
    model: &Model<B>,
    cache: KiviConfig,
    window: &[u32],
    n: usize,
) -> Result<usize> {
    let expected = texts(device, model, cache, (window, n), Mode::OneByOne)?;
    let tokens: usize = expected.iter().map(Vec::len).sum();
    let mut failed = 0;
    for mode in [Mode::Recorded, Mode::Ahead] {
        let same = texts(device, model, cache, (window, n), mode)? == expected;
        failed += usize::from(!same);
        let verdict = if same { "pass" } else { "FAIL" };
        println!("{cache}: {TEXTS} texts, {tokens} tokens, {mode:?} against {:?}: {verdict}", Mode::OneByOne);
    }
    Ok(failed)
}

/// The request of text `i` and the step that it comes in.
fn arrival(window: &[u32], n: usize, i: usize) -> (usize, Request) {
    let prompt = window.iter().copied().cycle().skip(3 * i).take(2 + 3 * i).collect();
    (n * i / (2 * TEXTS), Request::new(prompt, (n * (TEXTS - i) / TEXTS).max(1)))
}

fn texts<B: Backend>(
    device: &B,
    model: &Model<B>,
    cache: KiviConfig,
    (window, n): (&[u32], usize),
    mode: Mode,
) -> Result<Vec<Vec<u32>>> {
    let context = n + 3 * TEXTS;
    let config = EngineConfig {
        pool_tokens: TEXTS * cache.pages(context).max(1) * cache.page_tokens(),
        cache: cache.into(),
        max_context: context,
        max_seqs: TEXTS,
        max_batched_tokens: TEXTS * context,
    };
    let mut engine = Engine::new(device, model, config)?;
    engine.set_recorded(mode != Mode::OneByOne);
    engine.set_run_ahead(mode == Mode::Ahead);
    let mut texts: BTreeMap<SeqId, Vec<u32>> = BTreeMap::new();
    for step in 0.. {
        for (_, request) in (0..TEXTS).map(|i| arrival(window, n, i)).filter(|(at, _)| *at == step) {
            texts.insert(engine.submit(request)?, Vec::new());
        }
        for event in engine.step()? {
            match event {
                Event::Token { id, token, .. } => texts.entry(id).or_default().push(token),
                Event::Failed { error, .. } => return Err(error.into()),
                Event::Finished { .. } => {}
            }
        }
        if engine.is_idle() && texts.len() == TEXTS {
            break;
        }
        ensure!(step < 10 * (n + TEXTS), "the texts do not end");
    }
    Ok(texts.into_values().collect())
}
