//! What each subcommand does.

pub mod chat;
pub mod generate;
pub mod inspect;
pub mod perplexity;
