//! Passkey retrieval: a number of five digits hidden in text that says nothing else, worded as kivi-tiny learned it.

use anyhow::{Result, bail};
use serde_json::Value;

use super::grid::{self, Cell, Found};
use super::task::{Ask, Case, Reader, Task};
use crate::args::{GridArgs, PasskeyArgs};

const HEAD: &str = "Somewhere in the following pages a number is hidden. Keep it in mind; you will be asked for it at the end.\n";
const FILLER: &str =
    "The river runs to the sea. The wind is in the trees. The night was dark and the road was long.\n";
const NEEDLE: &str = "The pass key is {key}. Remember it. {key} is the pass key.\n";
/// What a prompt ends with.
pub const QUESTION: &str = "What is the pass key? The pass key is";
const DIGITS: u32 = 5;
/// Tokens of an answer: the digits, and what may come before them.
pub const ANSWER_TOKENS: usize = 12;

/// The task.
pub struct Passkey<'a> {
    grid: &'a GridArgs,
}

impl<'a> Passkey<'a> {
    /// The task that the arguments describe.
    pub fn new(args: &'a PasskeyArgs) -> Self {
        Self::on(&args.grid)
    }

    /// The task on a grid.
    pub fn on(grid: &'a GridArgs) -> Self {
        Self { grid }
    }

    /// A prompt of at most the length that is asked for; it has fewer tokens by less than a line.
    fn prompt(cell: &Cell, key: u64, reader: &Reader<'_>) -> Result<String> {
        let needle = NEEDLE.replace("{key}", &key.to_string());
        let begin = reader.tokenizer.encode("", true)?.len();
        let fixed = begin + reader.count(HEAD)? + reader.count(&needle)? + reader.count(QUESTION)?;
        let length = cell.length;
        let Some(room) = length.checked_sub(fixed) else {
            bail!("--lengths: expected at least {fixed} tokens, found {length}");
        };
        let lines = room / reader.count(FILLER)?.max(1);
        let before = lines * cell.depth / 1000;
        Ok([HEAD, &FILLER.repeat(before), &needle, &FILLER.repeat(lines - before), QUESTION].concat())
    }
}

impl Task for Passkey<'_> {
    const NAME: &'static str = "passkey";
    const SHORTEN: &'static str = "lower --lengths";
    /// The place, and the number.
    type Item = (Cell, u64);
    type Summary = Found;

    fn settings(&self) -> Vec<(&'static str, Value)> {
        grid::settings(self.grid)
    }

    fn cases(&self, reader: &Reader<'_>, limit: usize) -> Result<Vec<(Self::Item, Case)>> {
        grid::check(&self.grid.lengths, ANSWER_TOKENS, reader.context)?;
        let case = |cell: Cell| {
            let key = cell.number(Self::NAME, self.grid.seed, DIGITS);
            let ask = Ask::Text(Self::prompt(&cell, key, reader)?);
            let id = cell.id(Self::NAME);
            Ok(((cell, key), Case { id, ask, max_tokens: ANSWER_TOKENS, stop: Vec::new() }))
        };
        Cell::grid(self.grid).into_iter().take(limit).map(case).collect()
    }

    fn summary(&self, answers: &[((Cell, u64), String)]) -> Found {
        answers.iter().map(|((cell, key), answer)| (*cell, has_number(answer, *key))).collect()
    }
}

/// Whether an answer has a number, and not as a part of a longer one.
pub fn has_number(answer: &str, number: u64) -> bool {
    let number = number.to_string();
    answer.split(|c: char| !c.is_ascii_digit()).any(|digits| digits == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_right_if_it_has_the_number() {
        assert!(has_number(" 48157. Remember", 48_157));
        assert!(has_number("it is(48157)", 48_157));
        assert!(!has_number(" 48 157", 48_157) && !has_number("", 48_157));
        assert!(!has_number(" 481570", 48_157) && !has_number(" 148157", 48_157));
    }
}
