//! Tasks of `eval`: prompts, and what a right answer is.

pub mod longbench;
pub mod metrics;
pub mod passkey;
