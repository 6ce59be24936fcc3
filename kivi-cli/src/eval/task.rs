//! What a task is: prompts, and what is made of the answers.

use std::fmt::Display;

use anyhow::Result;
use kivi_model::chat::{ChatTemplate, Message};
use kivi_model::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::Value;

/// A task, opened: its arguments are checked and its files are read. [`super::run::run`] does the rest.
pub trait Task {
    /// What the command line and the reports call it.
    const NAME: &'static str;
    /// What to do if a prompt does not fit the context, as `lower --shots`.
    const SHORTEN: &'static str;
    /// What is known of a prompt besides its text: where it stands in the report, and what a right answer is.
    type Item;
    /// The results: `Display` is the table, the fields come after those that all reports have.
    type Summary: Serialize + Display;

    /// Whether there are prompts for the model's chat template, which is read then.
    fn chat(&self) -> bool {
        false
    }

    /// What the answers depend on besides model, cache and the first prompt; a file goes on with the same only. Flags are
    /// called as they are typed, so that the message is understood: `("--seed", json!(0))`.
    fn settings(&self) -> Vec<(&'static str, Value)>;

    /// The prompts with what is known of them, in the order of the report; no more than `limit`.
    ///
    /// # Errors
    /// A prompt cannot be made: a length is impossible, say.
    fn cases(&self, reader: &Reader<'_>, limit: usize) -> Result<Vec<(Self::Item, Case)>>;

    /// Scores the answers. One that failed is empty.
    fn summary(&self, answers: &[(Self::Item, String)]) -> Self::Summary;
}

/// One prompt, and how its answer ends: there, at the model's end token, or at a stop string, which is not part of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name in the file of answers; no other prompt of the task has it.
    pub id: String,
    /// The prompt.
    pub ask: Ask,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// Strings that end the answer.
    pub stop: Vec<String>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A text to continue.
    Text(String),
    /// What a user says: put into the model's chat template if it has one, else continued.
    Chat(String),
}

/// How a model reads, for tasks that count tokens.
pub struct Reader<'a> {
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its chat template, if it has one and the task has a use for it.
    pub template: Option<&'a ChatTemplate>,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
}

impl Reader<'_> {
    /// The tokens of a prompt, as the model gets them.
    ///
    /// # Errors
    /// Tokenizer or template fails.
    pub fn tokens(&self, ask: &Ask) -> Result<Vec<u32>> {
        Ok(match (ask, self.template) {
            (Ask::Chat(text), Some(template)) => {
                // The template writes all special tokens itself.
                self.tokenizer
                    .encode(&template.render(&[Message::new("user", text.as_str())], true)?, false)?
            }
            (Ask::Text(text) | Ask::Chat(text), _) => self.tokenizer.encode(text, true)?,
        })
    }

    /// How many tokens a piece of text has by itself.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn count(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode(text, false)?.len())
    }
}
