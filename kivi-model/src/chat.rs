//! Conversations to prompts, by the chat template of the checkpoint.
//!
//! A template is a Jinja program that writes the text the model was trained on. It means here what it
//! means to `apply_chat_template` of transformers 5; `docs/chat.md` has the differences that are left.
//!
//! # Begin-of-text
//! Templates write the special tokens themselves, so the rendered text is encoded without adding any:
//! `tokenizer.encode(&text, false)`.
//!
//! # Trust
//! A template is a program of someone else. It reads nothing but the messages and the time, and its work,
//! time and recursion are bounded; `docs/chat.md` says how.

mod dates;
mod environment;
mod error;
mod json;
mod message;
mod methods;
mod syntax;
mod tokens;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

pub use error::ChatError;
pub use jiff::civil::DateTime;
pub use message::Message;
use minijinja::Environment;
pub use minijinja::Value;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
pub use tokens::SpecialTokens;

use crate::error::LoadError;
use crate::json::Fields;
use crate::saved::hex;
use crate::source::Source;
use dates::{Clock, system_clock};

const JINJA_NAME: &str = "chat_template.jinja";
const JSON_NAME: &str = "chat_template.json";
const CONFIG_NAME: &str = "tokenizer_config.json";
/// Largest template that is read, in bytes; the largest known ones have some 30,000.
const MAX_BYTES: u64 = 256 << 10;
/// Largest `tokenizer_config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The stack that a template runs on, in bytes: values nested as deep as its fuel allows are dropped by
/// recursion. Only what is used of it takes memory.
const STACK_BYTES: usize = 1 << 30;
/// The longest that a template may take. Its work is counted, but not that within some operations, such as
/// making text of a list that holds another many times.
const MAX_TIME: Duration = Duration::from_secs(5);
/// The template's name in the environment.
const NAME: &str = "chat";

/// The chat template of a model. Clones are cheap.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    /// The file it is from, for messages.
    file: String,
    env: Environment<'static>,
    tokens: SpecialTokens,
    fingerprint: String,
}

impl ChatTemplate {
    /// Reads the template of a checkpoint; `None` if it has none. `chat_template.jinja` comes before
    /// `chat_template` of `tokenizer_config.json`, and this before `chat_template.json`. Of several
    /// named templates it is the one named `default`.
    ///
    /// # Errors
    /// A file is unreadable or has no template where one should be, or the template is not valid.
    pub fn load(source: &Source) -> Result<Option<ChatTemplate>, LoadError> {
        let Some((file, text)) = find(source)? else { return Ok(None) };
        Ok(Some(ChatTemplate::new(file, &text, SpecialTokens::load(source)?)?))
    }

    /// Reads the template from a file of its own; `source` is the checkpoint whose special tokens it uses.
    ///
    /// # Errors
    /// A file is unreadable, or the template is not valid.
    pub fn from_file(path: &Path, source: &Source) -> Result<ChatTemplate, LoadError> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let here = Source::Dir(dir.to_path_buf());
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let hint = "pass a file that holds a Jinja chat template";
        let bytes = here.read_required(&name, MAX_BYTES, hint)?;
        let file = here.place(&name);
        Ok(ChatTemplate::new(file.clone(), &utf8(file, &bytes)?, SpecialTokens::load(source)?)?)
    }

    /// Makes a template of its text; messages call it `file`.
    ///
    /// # Errors
    /// [`ChatError::Syntax`].
    pub fn new(file: String, template: &str, tokens: SpecialTokens) -> Result<ChatTemplate, ChatError> {
        let text = syntax::prepare(template);
        let env = apart(&file, || {
            let mut env = environment::environment(system_clock());
            env.add_template_owned(NAME, text)?;
            Ok(env)
        })?;
        let fingerprint = hex(&Sha256::digest(template.as_bytes()));
        Ok(ChatTemplate { file, env, tokens, fingerprint })
    }

    /// What tells it from other templates: SHA-256 of its text, as hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The same template at a time that stands still, for `strftime_now`.
    #[must_use]
    pub fn at(mut self, now: DateTime) -> ChatTemplate {
        let clock: Clock = Arc::new(move || now);
        environment::set_clock(&mut self.env, clock);
        self
    }

    /// The prompt of a conversation; with `add_generation_prompt`, the beginning of the answer, too.
    ///
    /// # Errors
    /// The template refuses the messages, fails, or takes too much work.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ChatError> {
        self.render_with(messages, add_generation_prompt, [])
    }

    /// As [`ChatTemplate::render`], with variables that only some templates know, such as `tools`,
    /// `documents` or `enable_thinking`.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<String, ChatError> {
        let given = [
            ("messages".to_string(), messages.iter().map(Message::to_value).collect()),
            ("add_generation_prompt".to_string(), add_generation_prompt.into()),
            ("tools".to_string(), ().into()),
            ("documents".to_string(), ().into()),
        ];
        let context = Value::from_pairs(given.into_iter().chain(self.tokens.values()).chain(variables));
        let env = self.env.clone();
        apart(&self.file, move || env.get_template(NAME)?.render(context))
    }
}

/// Works in a thread of its own: with a stack for deep values, and left to itself when the time is over.
fn apart<T: Send + 'static>(
    file: &str,
    work: impl FnOnce() -> Result<T, minijinja::Error> + Send + 'static,
) -> Result<T, ChatError> {
    let failed = |reason: String| ChatError::Failed { file: file.into(), line: 1, reason };
    let (send, receive) = mpsc::channel();
    let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK_BYTES);
    let name = file.to_string();
    // Errors hold values of the template, so they end here. Nobody may be waiting any more.
    let started = thread.spawn(move || drop(send.send(work().map_err(|e| error::sort(&name, &e)))));
    started.map_err(|e| failed(format!("no thread for it: {e}")))?;
    match receive.recv_timeout(MAX_TIME) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(ChatError::TooMuchWork { file: file.into(), line: 1 }),
        Err(RecvTimeoutError::Disconnected) => Err(failed("the template library gave up".into())),
    }
}

/// The file with the template, and the template.
fn find(source: &Source) -> Result<Option<(String, String)>, LoadError> {
    if let Some(bytes) = source.read(JINJA_NAME, MAX_BYTES)? {
        let file = source.place(JINJA_NAME);
        return Ok(Some((file.clone(), utf8(file, &bytes)?)));
    }
    for name in [CONFIG_NAME, JSON_NAME] {
        let Some(bytes) = source.read(name, MAX_CONFIG_BYTES)? else { continue };
        let fields = Fields::parse(source.place(name), &bytes)?;
        if let Some(template) = template_of(&fields)? {
            return Ok(Some((source.place(name), template)));
        }
    }
    Ok(None)
}

fn utf8(file: String, bytes: &[u8]) -> Result<String, LoadError> {
    std::str::from_utf8(bytes).map(str::to_string).map_err(|e| LoadError::Field {
        file,
        field: "the whole file".into(),
        expected: "text in UTF-8".into(),
        found: format!("byte {:#04x} at offset {}", bytes[e.valid_up_to()], e.valid_up_to()),
    })
}

/// The field `chat_template`: a template, or a list of which one is named `default`.
fn template_of(fields: &Fields) -> Result<Option<String>, LoadError> {
    const FIELD: &str = "chat_template";
    let is_default = |entry: &&Json| entry.get("name").and_then(Json::as_str) == Some("default");
    let template = match fields.get(FIELD) {
        None => return Ok(None),
        Some(Json::Array(named)) => named.iter().find(is_default).and_then(|entry| entry.get("template")),
        Some(value) => Some(value),
    };
    match template.and_then(Json::as_str) {
        Some(text) if text.len() as u64 <= MAX_BYTES => Ok(Some(text.to_string())),
        Some(_) => Err(fields.error(FIELD, format!("a template of at most {MAX_BYTES} bytes"))),
        None => Err(fields.error(FIELD, "a template, or a list of templates with one named default")),
    }
}
