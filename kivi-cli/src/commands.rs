//! What each subcommand does.

pub mod batch;
pub mod generate;
pub mod inspect;
