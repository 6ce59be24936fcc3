//! LongBench (Bai et al., arXiv 2308.14508): 21 tasks over long texts, as the evaluation of the KIVI paper runs them.

mod files;
mod scores;
pub mod tasks;
mod template;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::task::{Ask, Case, Reader, Task};
use crate::args::LongBenchArgs;
use files::{Key, Row, Set};
use scores::Scores;
use tasks::Part;

/// The tasks, with their rows.
pub struct LongBench<'a> {
    args: &'a LongBenchArgs,
    sets: Vec<Set>,
    settings: Vec<(&'static str, Value)>,
}

impl<'a> LongBench<'a> {
    /// Reads prompts and rows.
    ///
    /// # Errors
    /// A file is missing or is not what it should be.
    pub fn open(args: &'a LongBenchArgs) -> Result<Self> {
        let (sets, prompts) = files::read(&args.data, &args.tasks.0)?;
        let of_sets = |value: fn(&Set) -> Value| json!(sets.iter().map(value).collect::<Vec<_>>());
        let settings = vec![
            ("--tasks", of_sets(|set| json!(set.part.to_string()))),
            ("--max-length", json!(args.max_length)),
            ("--chat", json!(args.chat)),
            ("dataset2prompt.json (SHA-256)", prompts),
            ("dataset2maxlen.json", of_sets(|set| json!(set.answer_tokens))),
            ("rows (SHA-256)", of_sets(|set| set.sha256.clone())),
        ];
        Ok(Self { args, sets, settings })
    }

    /// Tokens that a prompt may have.
    fn max_length(&self, set: &Set, context: usize) -> Result<usize> {
        let Some(room) = context.checked_sub(set.answer_tokens).filter(|room| *room > 0) else {
            bail!(
                "{}: the answer takes {} tokens, but the context holds {context}; leave it out of --tasks",
                set.part,
                set.answer_tokens
            );
        };
        match self.args.max_length {
            Some(long) if long > room => bail!(
                "--max-length: expected at most {room} for {}, whose answer takes {} of the context's {context} tokens, found {long}",
                set.part,
                set.answer_tokens
            ),
            long => Ok(long.unwrap_or(room)),
        }
    }

    /// The prompt of a row, of which the middle is left out if it is too long.
    fn ask(&self, set: &Set, row: &Row, reader: &Reader<'_>) -> Result<Ask> {
        let ask =
            |text| if self.args.chat && !set.part.task.continues { Ask::Chat(text) } else { Ask::Text(text) };
        let most = self.max_length(set, reader.context)?;
        let text = set.template.fill(&row.context, &row.input);
        let tokens = reader.tokenizer.encode(&text, true)?;
        let mut half = most / 2;
        let mut asked = ask(if tokens.len() > most { ends(&tokens, half, reader)? } else { text });
        // A template adds tokens, and where the halves meet, there may be others.
        loop {
            let over = (reader.tokens(&asked)?.len() + set.answer_tokens).saturating_sub(reader.context);
            if over == 0 || half == 0 {
                return Ok(asked);
            }
            half = half.min(tokens.len() / 2).saturating_sub(over.div_ceil(2));
            asked = ask(ends(&tokens, half, reader)?);
        }
    }
}

/// The text of the first and of the last `half` tokens, without special ones.
fn ends(tokens: &[u32], half: usize, reader: &Reader<'_>) -> Result<String> {
    let [first, last] = [&tokens[..half], &tokens[tokens.len() - half..]];
    Ok(reader.tokenizer.decode(first, true)? + &reader.tokenizer.decode(last, true)?)
}

impl Task for LongBench<'_> {
    const NAME: &'static str = "longbench";
    const SHORTEN: &'static str = "lower --max-length";
    /// The task, and what is right.
    type Item = (Part, Key);
    type Summary = Scores;

    fn chat(&self) -> bool {
        self.args.chat
    }

    fn settings(&self) -> Vec<(&'static str, Value)> {
        self.settings.clone()
    }

    /// `limit` is for each task.
    fn cases(&self, reader: &Reader<'_>, limit: usize) -> Result<Vec<(Self::Item, Case)>> {
        if self.args.chat && reader.template.is_none() {
            bail!("--chat: the model has no chat template; leave it out");
        }
        let mut cases = Vec::new();
        for set in &self.sets {
            for (n, row) in set.rows.iter().take(limit).enumerate() {
                let case = Case {
                    id: format!("longbench/{}/{n}", set.part),
                    ask: self.ask(set, row, reader)?,
                    max_tokens: set.answer_tokens,
                    stop: set.part.task.stop(),
                };
                cases.push(((set.part, row.key.clone()), case));
            }
        }
        Ok(cases)
    }

    fn summary(&self, answers: &[((Part, Key), String)]) -> Scores {
        Scores::new(answers.iter().map(|((part, key), answer)| {
            let score = key.score(*part, answer).expect("it was scored when the file was read");
            (*part, key.length(), score)
        }))
    }
}
