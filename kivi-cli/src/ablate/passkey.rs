//! Passkeys over several caches: a text is read once; the question is read and answered over each of them, a token a step, so
//! that it sees the cache that decoding sees.

use anyhow::{Result, anyhow, bail};
use kivi_kernels::Backend;
use kivi_model::engine::{Engine, EngineConfig, Event, Request, SeqId};
use kivi_model::fake::{FakeCache, FakeQuantizer};
use kivi_model::model::Model;
use kivi_model::saved::SavedCache;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;

use crate::args::{AblateArgs, GridArgs};
use crate::eval::grid::Cell;
use crate::eval::passkey::{ANSWER_TOKENS, Passkey, QUESTION, has_number};
use crate::eval::task::{Case, Reader, Task};
use crate::setup;

/// An answer that is being made.
struct Answer {
    /// Whose: the place of the setting.
    setting: usize,
    id: SeqId,
    quantizer: FakeQuantizer,
    tokens: Vec<u32>,
}

/// The engine that answers prompts of up to `longest` tokens over `n` settings at a time.
pub fn sizes(cache: &FakeCache, longest: usize, n: usize) -> EngineConfig {
    let total = longest + ANSWER_TOKENS + 1;
    EngineConfig {
        cache: cache.engine_cache(),
        max_context: total,
        max_seqs: n,
        // A whole prompt, so that all of it is read in full precision, beside those that are answered.
        max_batched_tokens: longest + n,
        pool_tokens: total.next_multiple_of(cache.policy.base().page_tokens()) * n,
    }
}

/// A text with a question.
pub struct Prompt {
    /// Where the number is hidden.
    pub cell: Cell,
    /// The number.
    key: u64,
    /// The tokens of the text.
    text: Vec<u32>,
    /// Those of the question.
    question: Vec<u32>,
}

/// The prompts of `trials` numbers in texts of each of `lengths`, each at another place.
///
/// # Errors
/// A length that the model cannot have, or that the question alone takes.
pub fn prompts(args: &AblateArgs, tokenizer: &Tokenizer, context: usize) -> Result<Vec<Prompt>> {
    let grid = GridArgs { lengths: args.passkey.clone(), depths: args.trials, trials: 1, seed: args.seed };
    let reader = Reader { tokenizer, template: None, context };
    let cases = Passkey::on(&grid).cases(&reader, usize::MAX);
    let cases = cases.map_err(|error| anyhow!("{}", error.to_string().replace("--lengths", "--passkey")))?;
    let n_question = reader.count(QUESTION)?;
    let prompt = |((cell, key), case): ((Cell, u64), Case)| {
        let mut text = reader.tokens(&case.ask)?;
        let question = text.split_off(text.len() - n_question.min(text.len() - 1));
        Ok(Prompt { cell, key, text, question })
    };
    cases.into_iter().map(prompt).collect()
}

/// Which cases are answered right, for each of `settings`, `at_a_time` of them in an engine. `progress` is called after each case.
///
/// # Errors
/// The device fails.
pub fn run<B: Backend>(
    backend: &B,
    model: &Model<B>,
    (source, tokenizer): (&Source, &Tokenizer),
    (settings, at_a_time): (&[FakeCache], usize),
    prompts: &[Prompt],
    progress: &mut dyn FnMut(),
) -> Result<Vec<Vec<bool>>> {
    let longest = prompts.iter().map(|prompt| prompt.cell.length).max().unwrap_or(1);
    let mut right = vec![Vec::new(); settings.len()];
    let Some(first) = settings.first() else { return Ok(right) };
    let engine = Engine::new(backend, model, sizes(first, longest, at_a_time));
    let mut engine = engine.map_err(|error| setup::not_made(error, &source.place("config.json")))?;
    // Rows change between steps.
    engine.set_run_ahead(false);
    for prompt in prompts {
        let read = read(&mut engine, &prompt.text)?;
        for answer in answers(&mut engine, (prompt, &read), (settings, at_a_time))? {
            let text = tokenizer.decode(&answer.tokens[prompt.question.len()..], false)?;
            right[answer.setting].push(has_number(&text, prompt.key));
        }
        progress();
    }
    Ok(right)
}

/// Reads a text, in one step.
fn read<B: Backend>(engine: &mut Engine<'_, B>, text: &[u32]) -> Result<SavedCache> {
    let id = engine.submit(Request { keep: true, ..Request::new(text.to_vec(), 1) })?;
    while !engine.is_idle() {
        if let Some(Event::Failed { error, .. }) =
            engine.step()?.into_iter().find(|event| matches!(event, Event::Failed { .. }))
        {
            return Err(error.into());
        }
    }
    let saved = engine.save(id)?;
    engine.forget(id);
    let Some(saved) = saved else { bail!("the cache of a text was not kept") };
    Ok(saved)
}

/// Reads and answers a question over each setting. The text's last token is computed again, over all others as they were read;
/// then the cache is quantized, as after any prompt.
fn answers<B: Backend>(
    engine: &mut Engine<'_, B>,
    (prompt, read): (&Prompt, &SavedCache),
    (settings, at_a_time): (&[FakeCache], usize),
) -> Result<Vec<Answer>> {
    let (mut running, mut done): (Vec<Answer>, Vec<Answer>) = (Vec::new(), Vec::new());
    let mut waiting = settings.iter().enumerate();
    loop {
        // One a step: if a cache cannot be gone back to, the prompt is read again, and then it fits a step.
        if running.len() < at_a_time
            && let Some((setting, cache)) = waiting.next()
        {
            let past = Some(engine.restore(read)?);
            let n = prompt.question.len() + ANSWER_TOKENS;
            let forced = prompt.question.clone();
            let id = engine.submit(Request { past, forced, ..Request::new(prompt.text.clone(), n) })?;
            let quantizer = FakeQuantizer::new(cache.clone());
            running.push(Answer { setting, id, quantizer, tokens: Vec::new() });
        }
        if running.is_empty() {
            return Ok(done);
        }
        let events = engine.step()?;
        for answer in &mut running {
            answer.quantizer.update(engine, &[answer.id])?;
        }
        for event in events {
            match event {
                Event::Token { id, token, .. } => {
                    running
                        .iter_mut()
                        .filter(|answer| answer.id == id)
                        .for_each(|answer| answer.tokens.push(token));
                }
                Event::Finished { id, .. } => done.extend(running.extract_if(.., |answer| answer.id == id)),
                Event::Failed { error, .. } => return Err(error.into()),
            }
        }
    }
}
