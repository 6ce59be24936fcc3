//! Timing prompts and generation: which rows there are, how one is measured, and what is said about them.

pub mod baseline;
pub mod case;
pub mod conclusions;
pub mod host;
pub mod measure;
pub mod memory;
pub mod plan;
pub mod results;
pub mod shape;
pub mod sweep;
pub mod table;
