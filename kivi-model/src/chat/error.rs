//! Why a conversation has no text.

use std::error::Error as _;

use minijinja::ErrorKind;

use crate::error::clean;

/// A template could not be read, or made no text of a conversation. `file` is as in
/// [`LoadError`](crate::error::LoadError); lines count from 1 and are those of the template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is not one.
    #[error("{file}: line {line} of the chat template: {reason}; restore the original file")]
    Syntax {
        /// The file.
        file: String,
        /// The line.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The template called `raise_exception`: it does not take this conversation.
    #[error("{file}: line {line} of the chat template refuses these messages: {message}")]
    Refused {
        /// The file.
        file: String,
        /// The line.
        line: usize,
        /// Its words.
        message: String,
    },
    /// An expression of the template has no value for these messages.
    #[error("{file}: line {line} of the chat template: {reason}; does it take messages of this form?")]
    Failed {
        /// The file.
        file: String,
        /// The line.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The template takes more time or memory than any that is meant well.
    #[error(
        "{file}: line {line} of the chat template: stopped, it takes too much work; do not use this template"
    )]
    TooMuchWork {
        /// The file.
        file: String,
        /// The line.
        line: usize,
    },
}

/// What `raise_exception` was called with; the cause of minijinja's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub String);

/// Sorts minijinja's error.
pub(super) fn sort(file: &str, error: &minijinja::Error) -> ChatError {
    let (file, line) = (file.to_string(), error.line().unwrap_or(1));
    if let Some(message) = refusal(error) {
        return ChatError::Refused { file, line, message: clean(message) };
    }
    let detail = error.detail().map(|detail| format!(": {}", clean(detail))).unwrap_or_default();
    let reason = format!("{}{detail}", error.kind());
    match error.kind() {
        ErrorKind::OutOfFuel => ChatError::TooMuchWork { file, line },
        ErrorKind::SyntaxError | ErrorKind::BadEscape => ChatError::Syntax { file, line, reason },
        _ => ChatError::Failed { file, line, reason },
    }
}

/// The refusal among the causes of an error.
fn refusal(error: &minijinja::Error) -> Option<&str> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(Refusal(message)) = error.downcast_ref() {
            return Some(message);
        }
        cause = error.source();
    }
    None
}
