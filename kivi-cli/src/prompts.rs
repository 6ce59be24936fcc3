//! The prompts of a run, from flags, files and standard input.

use std::fs::File;
use std::io::{IsTerminal, Read, stdin};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use kivi_model::chat::{ChatTemplate, Message};
use kivi_model::engine::SubmitError;
use kivi_model::tokenizer::Tokenizer;

use crate::args::PromptArgs;
use crate::failure::Usage;
use crate::format;
use crate::settings::ContextLimits;

/// The largest text that is read: longer than any context.
const MAX_BYTES: u64 = 64 << 20;
const STDIN: &str = "standard input";

/// What is to be continued.
#[derive(Debug)]
pub enum Content {
    /// Text, to be tokenized.
    Text(String),
    /// Tokens, as they are.
    Ids(Vec<u32>),
}

/// One prompt.
#[derive(Debug)]
pub struct Prompt {
    /// What messages call it.
    pub label: String,
    /// What it says.
    pub content: Content,
}

impl Prompt {
    /// Its tokens after those of `past`; a text begins as the tokenizer says, unless there is a past. Fails unless at least one
    /// more token fits the context.
    pub fn tokens(&self, past: &[u32], tokenizer: &Tokenizer, context: ContextLimits) -> Result<Vec<u32>> {
        let new = match &self.content {
            Content::Text(text) => {
                tokenizer.encode(text, past.is_empty()).with_context(|| self.label.clone())?
            }
            Content::Ids(ids) => ids.clone(),
        };
        self.fitting([past, &new].concat(), context)
    }

    /// The tokens of a conversation that begins with this, up to where the answer begins. Fails as [`Prompt::tokens`].
    pub fn said(
        &self,
        template: &ChatTemplate,
        system: Option<&str>,
        tokenizer: &Tokenizer,
        context: ContextLimits,
    ) -> Result<Vec<u32>> {
        let Content::Text(text) = &self.content else { bail!("{}: --chat takes text", self.label) };
        let system = system.map(|text| Message::new("system", text));
        let messages: Vec<_> = system.into_iter().chain([Message::new("user", text.as_str())]).collect();
        // The template writes all special tokens itself.
        let rendered = template.render(&messages, true).with_context(|| self.label.clone())?;
        let tokens = tokenizer.encode(&rendered, false).with_context(|| self.label.clone())?;
        self.fitting(tokens, context)
    }

    fn fitting(&self, tokens: Vec<u32>, context: ContextLimits) -> Result<Vec<u32>> {
        let ContextLimits { tokens: holds, most } = context;
        if tokens.len() >= holds {
            let raise = if holds < most { " or raise --ctx-size" } else { "" };
            let found = format!("{}: has {} tokens", self.label, tokens.len());
            bail!("{found}, but the context holds {holds} with at least 1 to generate; shorten it{raise}");
        }
        Ok(tokens)
    }

    /// A refusal by the engine, under the name of this prompt.
    pub fn refused(&self, error: &SubmitError) -> String {
        let text = error.to_string();
        format!("{}: {}", self.label, text.strip_prefix("prompt: ").unwrap_or(&text))
    }
}

/// Reads the text of a file, or of standard input where that is `-`.
pub fn read_text(path: &Path) -> Result<String> {
    let prompt = if path == Path::new("-") { read_stdin()? } else { read_file(path)? };
    match prompt.content {
        Content::Text(text) => Ok(text),
        Content::Ids(_) => bail!("{}: has no text", prompt.label),
    }
}

/// Reads all prompts; without any, standard input is one unless it is a terminal, or there is a text to continue without one.
pub fn read(args: &PromptArgs, has_past: bool) -> Result<Vec<Prompt>> {
    let from_stdin = args.prompt.iter().filter(|text| *text == "-").count()
        + args.file.iter().filter(|path| *path == Path::new("-")).count();
    if from_stdin > 1 {
        let text = format!("{STDIN}: can be read once, but `-` was given {from_stdin} times");
        return Err(Usage(text).into());
    }
    let mut prompts = Vec::new();
    for (text, n) in args.prompt.iter().zip(1..) {
        prompts.push(if text == "-" { read_stdin()? } else { typed(text, n)? });
    }
    for path in &args.file {
        prompts.push(if path == Path::new("-") { read_stdin()? } else { read_file(path)? });
    }
    for (ids, n) in args.prompt_ids.iter().zip(prompts.len() + 1..) {
        prompts.push(Prompt { label: format!("prompt {n}"), content: Content::Ids(ids.0.clone()) });
    }
    if prompts.is_empty() && has_past {
        prompts.push(Prompt { label: "the loaded text".into(), content: Content::Ids(Vec::new()) });
    }
    if prompts.is_empty() {
        prompts.push(unasked_stdin()?);
    }
    Ok(prompts)
}

fn typed(text: &str, n: usize) -> Result<Prompt> {
    if text.is_empty() {
        return Err(Usage("--prompt: expected a text, found an empty one".into()).into());
    }
    Ok(Prompt { label: format!("prompt {n}"), content: Content::Text(text.to_owned()) })
}

/// No prompt was given: text may be coming through a pipe.
fn unasked_stdin() -> Result<Prompt> {
    const EXAMPLE: &str = "no prompt; give one: kivi-cli generate --prompt \"Once upon a time\"";
    if stdin().is_terminal() {
        return Err(Usage(EXAMPLE.into()).into());
    }
    match utf8(STDIN, &bytes(STDIN, stdin())?)? {
        text if text.is_empty() => Err(Usage(EXAMPLE.into()).into()),
        text => Ok(Prompt { label: STDIN.into(), content: Content::Text(text) }),
    }
}

fn read_stdin() -> Result<Prompt> {
    prompt(STDIN.into(), stdin())
}

fn read_file(path: &Path) -> Result<Prompt> {
    let label = format::path(path);
    let file = File::open(path).with_context(|| format!("{label}: cannot be opened"))?;
    prompt(label, file)
}

fn prompt(label: String, source: impl Read) -> Result<Prompt> {
    let text = utf8(&label, &bytes(&label, source)?)?;
    if text.is_empty() {
        bail!("{label}: is empty, expected a text to continue");
    }
    Ok(Prompt { label, content: Content::Text(text) })
}

/// All bytes of a source, which messages call by this label.
pub fn bytes(label: &str, source: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = source.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("{label}: cannot be read"))?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("{label}: is longer than {MAX_BYTES} bytes; shorten it");
    }
    Ok(bytes)
}

/// Bytes as text, without the last line end, which editors and `echo` add.
pub fn utf8(label: &str, bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        anyhow!("{label}: expected UTF-8 text, found another byte at {}; convert it", error.valid_up_to())
    })?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
