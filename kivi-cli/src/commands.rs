//! What each subcommand does.

pub mod generate;
pub mod inspect;
