//! A conversation with a model: what was said, and the cache that holds it.

pub mod repl;
mod stats;

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use kivi_kernels::Backend;
use kivi_model::chat::{ChatTemplate, Message};
use kivi_model::engine::{Engine, FinishReason, Request, SeqId};
use kivi_model::generate::{Generation, Progress, TextRequest, generate};
use kivi_model::sampler::SamplingParams;
use kivi_model::saved::SavedCache;
use kivi_model::tokenizer::Tokenizer;

use crate::format;
use crate::settings::ContextLimits;
use stats::Turn;

/// The note of a saved cache that holds the messages.
const NOTE: &str = "chat";

/// How answers are made.
pub struct Answers {
    /// Most tokens of one.
    pub max_tokens: usize,
    /// How tokens are chosen; the n-th answer draws from the seed plus n.
    pub sampling: SamplingParams,
    /// Tokens that end one.
    pub eos: Vec<u32>,
    /// Texts that end one.
    pub stop: Vec<String>,
}

/// A conversation. The cache keeps all of it, so that each turn computes what is new.
pub struct Session<'a, B: Backend> {
    engine: Engine<'a, B>,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    answers: Answers,
    context: ContextLimits,
    /// What a cleared conversation begins with.
    system: Option<Message>,
    messages: Vec<Message>,
    /// The text in the engine.
    past: Option<SeqId>,
    last: Option<Turn>,
}

impl<'a, B: Backend> Session<'a, B> {
    /// A conversation in which nobody but `system` has spoken.
    pub fn new(
        engine: Engine<'a, B>,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        answers: Answers,
        context: ContextLimits,
        system: Option<&str>,
    ) -> Self {
        let system = system.map(|text| Message::new("system", text));
        let messages = system.iter().cloned().collect();
        Self { engine, tokenizer, template, answers, context, system, messages, past: None, last: None }
    }

    /// Says `text` and hands the answer out as it is made, until it ends or `on_text` breaks it off; it is called without text,
    /// too. What was broken off before it began was not said.
    ///
    /// # Errors
    /// The template refuses the conversation, it does not fit the context, or the model fails; then the text was not said.
    pub fn say(&mut self, text: &str, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<()> {
        let mut messages = self.messages.clone();
        messages.push(Message::new("user", text));
        let rendered = self.template.render(&messages, true)?;
        let prompt = self.tokenizer.encode(&rendered, false)?;
        if prompt.is_empty() {
            bail!(
                "the chat template makes no text of the conversation; give another by --chat-template FILE"
            );
        }
        let ContextLimits { tokens, .. } = self.context;
        if prompt.len() >= tokens {
            let n = prompt.len();
            bail!(
                "the conversation has {n} tokens, but the context holds {tokens} with at least 1 to answer; /clear begins anew"
            );
        }
        let before = self.past.and_then(|past| self.engine.kept_tokens(past)).unwrap_or_default();
        let common = before.iter().zip(&prompt).take_while(|(x, y)| x == y).count();
        let request = TextRequest { request: self.request(prompt), stop: self.answers.stop.clone() };
        let texts =
            generate(&mut self.engine, &self.tokenizer, vec![request], &mut |progress| match progress {
                Progress::Text { text, .. } => on_text(text),
                Progress::Step { .. } => on_text(""),
            });
        // What failed may have taken the text with it; then it is computed again.
        self.past = self.past.filter(|past| self.engine.kept_tokens(*past).is_some());
        let answer = texts?.pop().context("no answer")?;
        self.past = self.engine.kept_tokens(answer.id).map(|_| answer.id);
        let cached = self.last.as_ref().map_or(0, |turn| turn.cache.tokens);
        self.last = Some(Turn::new(&answer, cached, common));
        self.answered(messages, answer)
    }

    fn request(&self, prompt: Vec<u32>) -> Request {
        let answered = self.messages.iter().filter(|message| message.role == "assistant").count();
        let Answers { max_tokens, sampling, eos, .. } = &self.answers;
        let seed = sampling.seed.wrapping_add(answered as u64);
        Request {
            sampling: SamplingParams { seed, ..sampling.clone() },
            eos: eos.clone(),
            past: self.past,
            keep: true,
            ..Request::new(prompt, *max_tokens)
        }
    }

    /// Takes the answer to the last of `messages` down.
    fn answered(&mut self, mut messages: Vec<Message>, answer: Generation) -> Result<()> {
        let reason = answer.end?;
        let text = answer.text.trim();
        if reason == FinishReason::Cancelled && text.is_empty() {
            return Ok(());
        }
        messages.push(Message::new("assistant", text));
        self.messages = messages;
        Ok(())
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.forget();
        self.messages = self.system.iter().cloned().collect();
    }

    fn forget(&mut self) {
        if let Some(past) = self.past.take() {
            self.engine.forget(past);
        }
        self.last = None;
    }

    /// Writes the conversation and its cache to a file.
    ///
    /// # Errors
    /// Nothing was said yet, or the file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let past = self.past.context("nothing was said yet")?;
        let mut saved = self.engine.save(past).context("reading the cache")?.context("the cache is gone")?;
        saved.notes.insert(NOTE.to_owned(), serde_json::to_string(&self.messages)?);
        Ok(saved.write(file)?)
    }

    /// Goes on with the conversation of a file in place of this one.
    ///
    /// # Errors
    /// The file cannot be read, has no conversation, or is of another model or other settings; then this conversation goes on.
    pub fn load(&mut self, file: &Path) -> Result<()> {
        let saved = SavedCache::read(file)?;
        let name = format::path(file);
        let note =
            saved.notes.get(NOTE).with_context(|| format!("{name}: has a text, but no conversation"))?;
        let messages =
            serde_json::from_str(note).map_err(|error| anyhow!("{name}: its conversation: {error}"))?;
        // There is room for one: should the other not fit, this one is computed again.
        self.forget();
        self.past = Some(self.engine.restore(&saved).map_err(|error| anyhow!("{name}: {error}"))?);
        self.messages = messages;
        Ok(())
    }
}
