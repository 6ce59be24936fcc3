//! The study of axes, widths and windows: which settings there are, what they find, and what is said about them.

pub mod passkey;
pub mod plan;
pub mod results;
