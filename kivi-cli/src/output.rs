//! Standard output for text, standard error for progress.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Writes to standard output at once.
pub fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.context("standard output: cannot be written")
}

/// Whether nobody reads standard output any more, or it failed otherwise.
pub fn is_gone(error: &Error) -> bool {
    error.downcast_ref::<io::Error>().is_some()
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
    /// Why text could not be shown.
    failed: Option<Error>,
}

impl Screen {
    /// A screen that streams the text of the only prompt, or nothing.
    pub fn new(streams: bool, progress: bool) -> Self {
        Self { streams, progress, prefill: ProgressBar::hidden(), ends_line: true, failed: None }
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

    /// There is new text. If nobody can read it, generating more is of no use: that breaks the run.
    pub fn text(&mut self, text: &str) -> ControlFlow<()> {
        self.prefill.finish_and_clear();
        if !self.streams {
            return ControlFlow::Continue(());
        }
        self.ends_line = if text.is_empty() { self.ends_line } else { text.ends_with('\n') };
        self.failed = write(text).err();
        if self.failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The run is over: ends the line, or says why text could not be shown.
    pub fn finish(self) -> Result<()> {
        self.prefill.finish_and_clear();
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.streams && !self.ends_line { write("\n") } else { Ok(()) }
    }
}
