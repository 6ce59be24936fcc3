//! Tasks of `eval`: prompts, and what a right answer is.

pub mod passkey;
