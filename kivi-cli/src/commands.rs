//! What each subcommand does.

pub mod ablate;
pub mod batch;
pub mod bench;
pub mod chat;
pub mod devices;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod inspect_kv;
pub mod perplexity;
pub mod plot;
