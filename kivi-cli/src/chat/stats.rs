//! What `/stats` says.

use std::fmt::Write;
use std::time::Duration;

use kivi_kernels::Backend;
use kivi_model::engine::CacheUse;
use kivi_model::generate::Generation;

use super::Session;
use crate::format::{rate, thousands};
use crate::report;

/// The figures of a turn.
pub struct Turn {
    prompt: usize,
    generated: usize,
    /// Tokens in the cache before it, and how many of them the prompt began with.
    before: (usize, usize),
    /// What the cache takes after it.
    pub cache: CacheUse,
    first_token: Duration,
    total: Duration,
}

impl Turn {
    /// Of an answer; there were `cached` tokens in the cache before, and the prompt had `common` with the text so far.
    pub fn new(answer: &Generation, cached: usize, common: usize) -> Self {
        Self {
            prompt: answer.prompt_tokens,
            generated: answer.token_ids.len(),
            before: (cached, common.min(cached)),
            cache: answer.cache,
            first_token: answer.first_token.unwrap_or(answer.total),
            total: answer.total,
        }
    }
}

impl<B: Backend> Session<'_, B> {
    /// The figures of the conversation and of its last turn, one line a topic.
    pub fn stats(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, text: String| writeln!(out, "{name:<12} {text}").expect("a string grows");
        let said = |role: &str| self.messages.iter().filter(|message| message.role == role).count();
        line("messages", format!("{} asked, {} answered", said("user"), said("assistant")));
        let Some(turn) = &self.last else { return out };
        let reused = turn.cache.reused;
        let (before, common) = turn.before;
        let count = |n: usize| thousands(n as u64);
        line(
            "prompt",
            format!("{} tokens, {} of them in the cache already", count(turn.prompt), count(reused)),
        );
        if reused < before {
            let why = if common < before { "rewritten by the chat template" } else { "needed again" };
            let from = format!("{} of {} cached tokens dropped", count(before - reused), count(before));
            line(
                "rewound",
                format!(
                    "{from}: {} {why}, {} to reach a state that can be restored",
                    count(before - common),
                    count(common - reused)
                ),
            );
        }
        let seconds = turn.first_token.as_secs_f64();
        line("first token", format!("{seconds:.2} s   {} tok/s", rate(turn.prompt - reused, seconds)));
        let seconds = turn.total.saturating_sub(turn.first_token).as_secs_f64();
        line(
            "generated",
            format!(
                "{} tokens   {} tok/s",
                count(turn.generated),
                rate(turn.generated.saturating_sub(1), seconds)
            ),
        );
        let room = self.context.tokens;
        line("context", format!("{} of {} tokens", count(turn.cache.tokens), count(room)));
        line("kv cache", report::cache_line(self.engine.policy(), &turn.cache));
        out
    }
}
