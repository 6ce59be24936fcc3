//! Standard output for text, standard error for progress.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure;

/// Writes to standard output at once.
pub fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.context("standard output: cannot be written")
}

/// A bar on standard error; hidden if that is not a terminal, or if `shown` is false.
pub fn bar(shown: bool, what: &'static str, template: &str) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0).with_message(what);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// The texts of a run: one is shown as it is made, several when all are complete.
pub struct Screen {
    streams: bool,
    progress: bool,
    prefill: ProgressBar,
    /// Whether nothing stands on the last line.
    ends_line: bool,
}

impl Screen {
    /// A screen that streams the text of the only prompt, or nothing.
    pub fn new(streams: bool, progress: bool) -> Self {
        Self { streams, progress, prefill: ProgressBar::hidden(), ends_line: true }
    }

    /// The prompts are about to be read; this is their length together.
    pub fn start(&mut self, prompt_tokens: usize) {
        self.prefill =
            bar(self.progress, "reading the prompt", "{spinner} {msg}: {pos}/{len} tokens, {elapsed}");
        self.prefill.set_length(prompt_tokens as u64);
    }

    /// So many tokens of the prompts are in the cache; fewer than before once a text is complete.
    pub fn prompt(&self, done: usize) {
        self.prefill.set_position(self.prefill.position().max(done as u64));
    }

    /// There is new text. If nobody can read it, generating more is of no use: the program ends here.
    pub fn text(&mut self, text: &str) {
        self.prefill.finish_and_clear();
        if !self.streams {
            return;
        }
        self.ends_line = if text.is_empty() { self.ends_line } else { text.ends_with('\n') };
        if let Err(error) = write(text) {
            std::process::exit(i32::from(failure::report(&error)));
        }
    }

    /// All texts are complete: ends the line.
    pub fn finish(&self) -> Result<()> {
        self.prefill.finish_and_clear();
        if self.streams && !self.ends_line { write("\n") } else { Ok(()) }
    }
}
