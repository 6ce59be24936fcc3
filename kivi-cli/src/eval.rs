//! Tasks of `eval`. [`task`] says what a task gives, [`run`] does what they have in common, [`data`] reads their files.

pub mod data;
pub mod grid;
pub mod gsm8k;
pub mod lines;
pub mod longbench;
pub mod metrics;
pub mod needle;
pub mod passkey;
pub mod run;
pub mod task;
