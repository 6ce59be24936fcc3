//! Batch files: many prompts in, a line a result out, and a run that goes on where it was killed.

pub mod driver;
pub mod input;
pub mod results;
