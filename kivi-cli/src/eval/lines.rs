//! Line retrieval: the number of one line among many, in the format of LongChat's test.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::task::{Ask, Case, Reader, Task};
use crate::args::LinesArgs;
use crate::hash;

const HEAD: &str = "Below is a record of lines. Each has a name and a number, which is called its REGISTER_CONTENT. Remember \
    the number of each line; you will be asked for one of them at the end.\n\n";
const LINE: &str = "line {name}: REGISTER_CONTENT is <{number}>\n";
const QUESTION: &str = "\nNow the record is over. What is the REGISTER_CONTENT of line {name}? The REGISTER_CONTENT of line {name} is";
/// Tokens of an answer: up to five digits between brackets.
const ANSWER_TOKENS: usize = 12;
/// As in LongChat.
const LARGEST: u64 = 50_000;

/// A name is one of these,
const FIRST: &str = "able acid aged airy amber ample avid bare bold brave brief bright broad calm clean clear \
    cold crisp curly damp dark deep dense dim dry dull eager early faint fair fast firm \
    flat fond free fresh full gentle glad grand great green happy hard heavy huge keen kind \
    large late light little long loose lost loud low lucky mild narrow neat new odd pale";
/// a dash, and one of these.
const SECOND: &str = "anchor apple arrow barn basket beach bell bench bird boat book bottle branch bread bridge brook \
    broom brush bucket button cabin candle carpet castle chain chair cliff cloud coat corn cradle creek \
    crown curtain desert door drum eagle farm feather fence field flame flute forest fountain garden gate \
    glove grape hammer harbor hill horse island jacket kettle ladder lake lamp leaf lemon letter meadow";
/// How many names there are.
pub const NAMES: usize = 64 * 64;

/// The task.
pub struct Lines<'a> {
    args: &'a LinesArgs,
}

impl<'a> Lines<'a> {
    /// The task that the arguments describe.
    pub fn new(args: &'a LinesArgs) -> Self {
        Self { args }
    }
}

/// One prompt, and what is asked in it.
struct Record {
    prompt: String,
    number: u64,
}

impl Record {
    /// A record of `lines` lines with other names each; what it says follows from the seed and the place of the prompt.
    fn new(lines: usize, trial: usize, seed: u64) -> Self {
        let random = |what: &str, n: usize| {
            hash::number(Sha256::new_with_prefix(format!("lines {seed} {lines} {trial} {what} {n}")))
        };
        let mut order: Vec<usize> = (0..NAMES).collect();
        order.sort_by_cached_key(|n| random("name", *n));
        let record: Vec<_> =
            order.iter().take(lines).map(|n| (name(*n), 1 + random("number", *n) % LARGEST)).collect();
        let text: String = record
            .iter()
            .map(|(name, number)| LINE.replace("{name}", name).replace("{number}", &number.to_string()))
            .collect();
        let (name, number) = &record[(random("asked", 0) % lines as u64) as usize];
        Self { prompt: [HEAD, &text, &QUESTION.replace("{name}", name)].concat(), number: *number }
    }
}

/// The name with this number.
fn name(n: usize) -> String {
    let word = |words: &'static str, n: usize| words.split_whitespace().nth(n).expect("64 words");
    format!("{}-{}", word(FIRST, n / 64), word(SECOND, n % 64))
}

/// The first number of an answer.
fn first_number(answer: &str) -> Option<u64> {
    let digits = answer.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?;
    digits.parse().ok()
}

/// What is known of a prompt.
pub struct Asked {
    lines: usize,
    tokens: usize,
    number: u64,
}

impl Task for Lines<'_> {
    const NAME: &'static str = "lines";
    const SHORTEN: &'static str = "lower --lines";
    type Item = Asked;
    type Summary = Right;

    fn settings(&self) -> Vec<(&'static str, Value)> {
        let LinesArgs { lines, trials, seed, .. } = self.args;
        vec![("--lines", json!(lines)), ("--trials", json!(trials)), ("--seed", json!(seed))]
    }

    fn cases(&self, reader: &Reader<'_>, limit: usize) -> Result<Vec<(Asked, Case)>> {
        let LinesArgs { lines, trials, seed, .. } = self.args;
        let places = lines.iter().flat_map(|lines| (0..*trials).map(move |trial| (*lines, trial)));
        let case = |(lines, trial): (usize, usize)| {
            let Record { prompt, number } = Record::new(lines, trial, *seed);
            let ask = Ask::Text(prompt);
            let tokens = reader.tokens(&ask)?.len();
            let id = format!("lines/{lines}/{trial}");
            Ok((
                Asked { lines, tokens, number },
                Case { id, ask, max_tokens: ANSWER_TOKENS, stop: Vec::new() },
            ))
        };
        places.take(limit).map(case).collect()
    }

    fn summary(&self, answers: &[(Asked, String)]) -> Right {
        answers.iter().map(|(asked, answer)| (asked, first_number(answer) == Some(asked.number))).collect()
    }
}

/// How many answers were right, by the number of lines.
#[derive(Debug, Serialize)]
pub struct Right {
    correct: usize,
    prompts: usize,
    records: Vec<OfLines>,
}

/// The records of one number of lines.
#[derive(Debug, Default, Serialize)]
struct OfLines {
    lines: usize,
    /// Of the longest prompt.
    tokens: usize,
    correct: usize,
    prompts: usize,
}

impl<'a> FromIterator<(&'a Asked, bool)> for Right {
    fn from_iter<I: IntoIterator<Item = (&'a Asked, bool)>>(answers: I) -> Self {
        let mut records: BTreeMap<usize, OfLines> = BTreeMap::new();
        for (Asked { lines, tokens, .. }, right) in answers {
            let of = records.entry(*lines).or_default();
            of.lines = *lines;
            of.tokens = of.tokens.max(*tokens);
            of.correct += usize::from(right);
            of.prompts += 1;
        }
        let records: Vec<_> = records.into_values().collect();
        let sum = |of: fn(&OfLines) -> usize| records.iter().map(of).sum();
        Self { correct: sum(|of| of.correct), prompts: sum(|of| of.prompts), records }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| lines | tokens | right |\n|---|---|---|")?;
        self.records.iter().try_for_each(|OfLines { lines, tokens, correct, prompts }| {
            writeln!(f, "| {lines} | {tokens} | {correct} of {prompts} |")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_another() {
        let names: BTreeSet<String> = (0..NAMES).map(name).collect();
        assert_eq!(names.len(), NAMES);
    }

    #[test]
    fn a_record_asks_for_one_of_its_lines() {
        let Record { prompt, number } = Record::new(50, 1, 0);
        let lines: Vec<_> = prompt.lines().filter(|line| line.starts_with("line ")).collect();
        assert_eq!(lines.len(), 50);
        let asked = prompt.rsplit("line ").next().unwrap().strip_suffix(" is").unwrap();
        assert!(
            lines.contains(&format!("line {asked}: REGISTER_CONTENT is <{number}>").as_str()),
            "{prompt}"
        );
        assert_eq!(Record::new(50, 1, 0).prompt, prompt);
        assert!(Record::new(50, 1, 1).prompt != prompt && Record::new(50, 0, 0).prompt != prompt);
    }

    #[test]
    fn the_first_number_counts() {
        assert_eq!(first_number(" <4170>. line 3"), Some(4170));
        assert_eq!((first_number(" <>"), first_number(&"9".repeat(30))), (None, None));
    }
}
