//! From prompts to text: drives an [`Engine`] until its requests are done, and hands the text out as it is made.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use kivi_kernels::{Backend, StepError};

use crate::engine::{CacheUse, Engine, Event, FinishReason, Request, SeqId, SequenceError, SubmitError};
use crate::stop::{EmptyStopString, StopStrings};
use crate::tokenizer::{StreamDecoder, TokenizeError, Tokenizer};

/// One text to continue, with the strings that end it.
#[derive(Clone, Debug)]
pub struct TextRequest {
    /// What the engine does.
    pub request: Request,
    /// Strings that end the text and are not part of it.
    pub stop: Vec<String>,
}

/// A text that is complete.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its request, for [`Engine::save`] and [`Request::past`] if that was kept.
    pub id: SeqId,
    /// The new text, without special tokens and without the stop string.
    pub text: String,
    /// The new tokens, an end token included.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended, or what failed.
    pub end: Result<FinishReason, SequenceError>,
    /// What its cache took at the end.
    pub cache: CacheUse,
    /// From the start of the run to its first token.
    pub first_token: Option<Duration>,
    /// From the start of the run to its end.
    pub total: Duration,
}

/// Progress of a run.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// Request `index` has new text.
    Text {
        /// Its place in the list of requests.
        index: usize,
        /// The text; never a part of a character.
        text: &'a str,
    },
    /// A step ended.
    Step {
        /// Prompt tokens in the cache, over all requests.
        prompt_done: usize,
        /// Prompt tokens in all.
        prompt_total: usize,
    },
}

/// Why a run stopped early.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError<E: kivi_kernels::KernelError> {
    /// A request is refused.
    #[error("request {index}: {error}")]
    Submit {
        /// Its place in the list of requests.
        index: usize,
        /// Why.
        #[source]
        error: SubmitError,
    },
    /// A stop string is empty.
    #[error(transparent)]
    Stop(#[from] EmptyStopString),
    /// Tokens cannot be turned into text.
    #[error(transparent)]
    Text(#[from] TokenizeError),
    /// The device failed.
    #[error("device: {0}")]
    Step(#[from] StepError<E>),
}

/// A request under way.
struct Running {
    id: SeqId,
    decoder: StreamDecoder,
    stop: StopStrings,
    generation: Generation,
    done: bool,
}

/// Runs `requests` to their ends, in one ragged batch as far as the engine has room, and returns them in order.
/// `on_progress` sees text as soon as it can be shown; when it returns [`ControlFlow::Break`], the requests that
/// are left are cancelled ([`FinishReason::Cancelled`]) and the run ends.
///
/// # Errors
/// A request is refused (nothing has run then), the tokenizer fails (no request is kept then), or the device fails. A
/// sequence that fails does not end the run: its [`Generation::end`] says why.
pub fn generate<B: Backend>(
    engine: &mut Engine<'_, B>,
    tokenizer: &Tokenizer,
    requests: Vec<TextRequest>,
    on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Vec<Generation>, GenerateError<B::Error>> {
    let start = Instant::now();
    let mut running = submit(engine, tokenizer, requests)?;
    let prompt_total = running.iter().map(|r| r.generation.prompt_tokens).sum();
    while !engine.is_idle() {
        for event in engine.step()? {
            let handled = handle(engine, &mut running, event, start, on_progress);
            if handled.is_err() {
                drop_all(engine, &running);
            }
            if handled?.is_break() {
                return cancel(engine, running, start);
            }
        }
        let progress = Progress::Step { prompt_done: engine.prompt_tokens_done(), prompt_total };
        if on_progress(progress).is_break() {
            return cancel(engine, running, start);
        }
    }
    Ok(running.into_iter().map(|r| r.generation).collect())
}

/// Submits all requests, or none of them.
fn submit<B: Backend>(
    engine: &mut Engine<'_, B>,
    tokenizer: &Tokenizer,
    requests: Vec<TextRequest>,
) -> Result<Vec<Running>, GenerateError<B::Error>> {
    let stops = requests.iter().map(|r| StopStrings::new(r.stop.clone())).collect::<Result<Vec<_>, _>>()?;
    let mut running: Vec<Running> = Vec::new();
    for (index, (TextRequest { request, .. }, stop)) in requests.into_iter().zip(stops).enumerate() {
        let prompt_tokens = request.prompt.len();
        match engine.submit(request) {
            Ok(id) => running.push(Running::new(id, tokenizer, stop, prompt_tokens)),
            Err(error) => {
                for accepted in running {
                    engine.cancel(accepted.id);
                }
                return Err(GenerateError::Submit { index, error });
            }
        };
    }
    Ok(running)
}

/// Ends all requests and keeps none: nobody will know their ids.
fn drop_all<B: Backend>(engine: &mut Engine<'_, B>, running: &[Running]) {
    for Running { id, .. } in running {
        engine.cancel(*id);
        engine.forget(*id);
    }
}

/// Ends the requests that are not complete.
fn cancel<B: Backend>(
    engine: &mut Engine<'_, B>,
    mut running: Vec<Running>,
    start: Instant,
) -> Result<Vec<Generation>, GenerateError<B::Error>> {
    for this in running.iter_mut().filter(|this| !this.done) {
        let cache = engine.cancel(this.id).unwrap_or_default();
        this.finish(Ok(FinishReason::Cancelled), cache, start)?;
    }
    Ok(running.into_iter().map(|r| r.generation).collect())
}

fn handle<B: Backend>(
    engine: &mut Engine<'_, B>,
    running: &mut [Running],
    event: Event,
    start: Instant,
    on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, TokenizeError> {
    let (Event::Token { id, .. } | Event::Finished { id, .. } | Event::Failed { id, .. }) = event;
    let Some(index) = running.iter().position(|r| r.id == id) else { return Ok(ControlFlow::Continue(())) };
    let this = &mut running[index];
    let text = match event {
        Event::Token { token, .. } => {
            let mut text = this.token(token, start)?;
            if this.stop.stopped() {
                // A token that is the last one anyway has left the engine; its `Finished` brings the cache's use.
                let cache = engine.cancel(id).unwrap_or_default();
                text += &this.finish(Ok(FinishReason::Stop), cache, start)?;
            }
            text
        }
        Event::Finished { cache, .. } if this.done => {
            this.generation.cache = cache;
            String::new()
        }
        Event::Finished { reason, cache, .. } => this.finish(Ok(reason), cache, start)?,
        Event::Failed { error, .. } => this.finish(Err(error), CacheUse::default(), start)?,
    };
    Ok(if text.is_empty() {
        ControlFlow::Continue(())
    } else {
        on_progress(Progress::Text { index, text: &text })
    })
}

impl Running {
    fn new(id: SeqId, tokenizer: &Tokenizer, stop: StopStrings, prompt_tokens: usize) -> Self {
        let generation = Generation {
            id,
            text: String::new(),
            token_ids: Vec::new(),
            prompt_tokens,
            end: Ok(FinishReason::Cancelled),
            cache: CacheUse::default(),
            first_token: None,
            total: Duration::ZERO,
        };
        Self { id, decoder: tokenizer.stream(), stop, generation, done: false }
    }

    /// Takes a token and returns the text that can be shown now.
    fn token(&mut self, token: u32, start: Instant) -> Result<String, TokenizeError> {
        self.generation.first_token.get_or_insert_with(|| start.elapsed());
        self.generation.token_ids.push(token);
        let text = self.decoder.push(token)?;
        Ok(self.emit(&text))
    }

    /// Ends the text and returns what was held back.
    fn finish(
        &mut self,
        end: Result<FinishReason, SequenceError>,
        cache: CacheUse,
        start: Instant,
    ) -> Result<String, TokenizeError> {
        self.done = true;
        self.generation.end = end;
        self.generation.cache = cache;
        self.generation.total = start.elapsed();
        let rest = self.decoder.finish()?;
        let mut text = self.emit(&rest);
        let held = self.stop.finish();
        self.generation.text.push_str(&held);
        text.push_str(&held);
        Ok(text)
    }

    fn emit(&mut self, text: &str) -> String {
        let text = self.stop.push(text);
        self.generation.text.push_str(&text);
        text
    }
}
