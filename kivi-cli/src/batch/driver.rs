//! Runs the lines of a batch file: as many at a time as the engine has places for, in one ragged batch.

use anyhow::{Result, anyhow};
use indicatif::ProgressBar;
use kivi_kernels::Backend;
use kivi_model::chat::ChatTemplate;
use kivi_model::engine::{Engine, Event, FinishReason, Request, SeqId};
use kivi_model::sampler::SamplingParams;
use kivi_model::stop::StopStrings;
use kivi_model::tokenizer::{StreamDecoder, Tokenizer};
use serde_json::Value;

use super::input::Line;
use super::results::{ResultLine, Results};
use crate::settings::ContextLimits;

/// What holds for every line unless it says otherwise.
pub struct Defaults {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Strings that end a text.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// How long a sequence may be.
    pub context: ContextLimits,
    /// What makes a prompt of what a user says, if lines are that.
    pub template: Option<ChatTemplate>,
    /// What the system says before.
    pub system: Option<String>,
}

impl Defaults {
    /// Most tokens to generate for a line.
    pub fn max_tokens(&self, line: &Line) -> usize {
        line.max_tokens.unwrap_or(self.max_tokens)
    }

    /// The prompt of a line; fails if it cannot run.
    pub fn tokens(&self, line: &Line, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        match &self.template {
            Some(template) => line.prompt.said(template, self.system.as_deref(), tokenizer, self.context),
            None => line.prompt.tokens(&[], tokenizer, self.context),
        }
    }

    fn request(&self, line: &Line, tokens: Vec<u32>, seed: u64) -> Request {
        let temperature = line.temperature.unwrap_or(self.sampling.temperature);
        let sampling = SamplingParams { temperature, seed, ..self.sampling.clone() };
        Request { sampling, eos: self.eos.clone(), ..Request::new(tokens, self.max_tokens(line)) }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Lines.
    pub lines: usize,
    /// Lines whose result is an error.
    pub failed: usize,
    /// Tokens of their prompts.
    pub prompt_tokens: usize,
    /// Tokens of their texts.
    pub generated_tokens: usize,
}

/// A line under way.
struct Running {
    id: SeqId,
    name: Value,
    seed: Option<u64>,
    prompt_tokens: usize,
    tokens: Vec<u32>,
    text: String,
    decoder: StreamDecoder,
    stop: StopStrings,
}

/// Everything that a run needs.
pub struct Driver<'a, 'b, B: Backend> {
    /// What computes.
    pub engine: Engine<'b, B>,
    /// Between text and tokens.
    pub tokenizer: &'a Tokenizer,
    /// What holds for every line.
    pub defaults: &'a Defaults,
    /// Lines that run at a time.
    pub places: usize,
    /// Rows of a step.
    pub rows: usize,
    /// Where results go.
    pub results: Results,
    /// Shows how many lines are done.
    pub bar: ProgressBar,
}

impl<B: Backend> Driver<'_, '_, B> {
    /// Runs every line that is not done; `lines` gives them one by one.
    pub fn run(mut self, lines: &mut dyn FnMut() -> Result<Option<Line>>) -> Result<Done> {
        let mut done = Done::default();
        let mut running = Vec::new();
        let mut next = self.next(lines, &mut done)?;
        loop {
            while let Some((line, tokens)) = next.take_if(|(_, tokens)| self.has_room(&running, tokens.len()))
            {
                running.extend(self.submit(&line, tokens, &mut done)?);
                next = self.next(lines, &mut done)?;
            }
            if running.is_empty() && next.is_none() {
                return Ok(done);
            }
            for event in self.engine.step().map_err(|error| anyhow!("device: {error}"))? {
                self.handle(event, &mut running, &mut done)?;
            }
        }
    }

    /// Whether a prompt can begin with the next step and not be cut: where prompts are cut must not depend on what
    /// else runs, or a text would. One that is longer than a step is begun alone.
    fn has_room(&self, running: &[Running], prompt: usize) -> bool {
        let rows = |this: &Running| if this.tokens.is_empty() { this.prompt_tokens } else { 1 };
        let taken: usize = running.iter().map(rows).sum();
        running.is_empty() || (running.len() < self.places && taken + prompt <= self.rows)
    }

    /// The next line that is to run, with its tokens.
    fn next(
        &mut self,
        lines: &mut dyn FnMut() -> Result<Option<Line>>,
        done: &mut Done,
    ) -> Result<Option<(Line, Vec<u32>)>> {
        while let Some(line) = lines()? {
            if self.results.done.contains(&line.id.to_string()) {
                continue;
            }
            match self.defaults.tokens(&line, self.tokenizer) {
                Ok(tokens) => return Ok(Some((line, tokens))),
                Err(error) => self.fail(&line.id, 0, format!("{error:#}"), done)?,
            }
        }
        Ok(None)
    }

    fn submit(&mut self, line: &Line, tokens: Vec<u32>, done: &mut Done) -> Result<Option<Running>> {
        let prompt_tokens = tokens.len();
        let request = self.defaults.request(line, tokens, line.seed(self.results.seed));
        let seed = (request.sampling.temperature > 0.0).then_some(request.sampling.seed);
        let stop = StopStrings::new(line.stop.clone().unwrap_or_else(|| self.defaults.stop.clone()))?;
        match self.engine.submit(request) {
            Ok(id) => Ok(Some(Running {
                id,
                name: line.id.clone(),
                seed,
                prompt_tokens,
                tokens: Vec::new(),
                text: String::new(),
                decoder: self.tokenizer.stream(),
                stop,
            })),
            Err(error) => {
                self.fail(&line.id, prompt_tokens, line.prompt.refused(&error), done)?;
                Ok(None)
            }
        }
    }

    fn handle(&mut self, event: Event, running: &mut Vec<Running>, done: &mut Done) -> Result<()> {
        let (Event::Token { id, .. } | Event::Finished { id, .. } | Event::Failed { id, .. }) = event;
        // One that ended at a stop string may still be told to have finished.
        let Some(place) = running.iter().position(|this| this.id == id) else { return Ok(()) };
        let end = match event {
            Event::Token { token, .. } => {
                let this = &mut running[place];
                this.tokens.push(token);
                let text = this.decoder.push(token)?;
                this.text += &this.stop.push(&text);
                if !this.stop.stopped() {
                    return Ok(());
                }
                self.engine.cancel(id);
                Ok(FinishReason::Stop)
            }
            Event::Finished { reason, .. } => Ok(reason),
            Event::Failed { error, .. } => Err(error.to_string()),
        };
        self.finish(running.remove(place), end, done)
    }

    fn finish(
        &mut self,
        mut this: Running,
        end: Result<FinishReason, String>,
        done: &mut Done,
    ) -> Result<()> {
        let rest = this.decoder.finish()?;
        this.text += &this.stop.push(&rest);
        this.text += &this.stop.finish();
        done.failed += usize::from(end.is_err());
        let result = ResultLine {
            id: &this.name,
            text: &this.text,
            token_ids: &this.tokens,
            finish_reason: end.as_ref().map_or("error", |reason| reason.name()),
            prompt_tokens: this.prompt_tokens,
            generated_tokens: this.tokens.len(),
            seed: this.seed,
            error: end.err(),
        };
        self.add(&result, done)
    }

    /// A line that cannot run has a result, too.
    fn fail(&mut self, id: &Value, prompt_tokens: usize, error: String, done: &mut Done) -> Result<()> {
        done.failed += 1;
        let result = ResultLine {
            id,
            text: "",
            token_ids: &[],
            finish_reason: "error",
            prompt_tokens,
            generated_tokens: 0,
            seed: None,
            error: Some(error),
        };
        self.add(&result, done)
    }

    fn add(&mut self, result: &ResultLine<'_>, done: &mut Done) -> Result<()> {
        self.results.add(result)?;
        done.lines += 1;
        done.prompt_tokens += result.prompt_tokens;
        done.generated_tokens += result.generated_tokens;
        self.bar.inc(1);
        Ok(())
    }
}
