//! GSM8K: problems of grade-school arithmetic in words, solved step by step after some examples, as lm-eval's task `gsm8k` does.

mod extract;
mod solved;

use anyhow::{Result, anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::data::{DataFolder, DataText, Origin};
use super::task::{Ask, Case, Reader, Task};
use crate::args::Gsm8kArgs;
use solved::Solved;

const GET: &str =
    "copy the folder grade_school_math/data of https://github.com/openai/grade-school-math to DIR/gsm8k";
const TEST: Origin = Origin { path: "gsm8k/test.jsonl", get: GET };
const TRAIN: Origin = Origin { path: "gsm8k/train.jsonl", get: GET };
const EXAMPLE: &str = r#"{"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}"#;
/// Where an answer ends: the model goes on with another problem.
const STOP: [&str; 2] = ["\n\n", "Question:"];

/// A problem, with its worked solution.
#[derive(Clone, Debug, Deserialize)]
struct Problem {
    question: String,
    answer: String,
}

/// The task.
pub struct Gsm8k<'a> {
    args: &'a Gsm8kArgs,
    problems: Vec<Problem>,
    /// The examples, as they stand before each problem.
    shots: String,
    settings: Vec<(&'static str, Value)>,
}

impl<'a> Gsm8k<'a> {
    /// Reads the problems, and the first so many of the training set as examples.
    ///
    /// # Errors
    /// A file is missing, or a problem in it has no answer.
    pub fn open(args: &'a Gsm8kArgs) -> Result<Self> {
        let data = DataFolder::new(&args.data);
        let test = data.text(TEST)?;
        let mut settings = vec![
            ("test.jsonl (SHA-256)", test.sha256()),
            ("--shots", json!(args.shots)),
            ("--max-tokens", json!(args.max_tokens)),
            ("--chat", json!(args.chat)),
        ];
        let mut shots = String::new();
        if args.shots > 0 {
            let train = data.text(TRAIN)?;
            let examples = problems(&train)?;
            let (found, label) = (examples.len(), &train.label);
            if found < args.shots {
                bail!("--shots: expected at most {found}, the problems of {label}, found {}", args.shots);
            }
            shots = examples[..args.shots]
                .iter()
                .map(|Problem { question, answer }| format!("Question: {question}\nAnswer: {answer}\n\n"))
                .collect();
            settings.push(("train.jsonl (SHA-256)", train.sha256()));
        }
        Ok(Self { args, problems: problems(&test)?, shots, settings })
    }
}

/// The problems of a file, each with a number at the end of its solution.
fn problems(text: &DataText) -> Result<Vec<Problem>> {
    let problems: Vec<Problem> = text.rows(EXAMPLE)?;
    let unsolved = problems.iter().position(|problem| extract::strict(&problem.answer).is_none());
    unsolved.map_or(Ok(()), |n| {
        Err(anyhow!(
            "{}: problem {}: expected an answer that ends as `#### 4`; is the file the original?",
            text.label,
            n + 1
        ))
    })?;
    Ok(problems)
}

impl Task for Gsm8k<'_> {
    const NAME: &'static str = "gsm8k";
    const SHORTEN: &'static str = "lower --shots or --max-tokens";
    /// The worked solution.
    type Item = String;
    type Summary = Solved;

    fn chat(&self) -> bool {
        self.args.chat
    }

    fn settings(&self) -> Vec<(&'static str, Value)> {
        self.settings.clone()
    }

    fn cases(&self, reader: &Reader<'_>, limit: usize) -> Result<Vec<(String, Case)>> {
        if self.args.chat && reader.template.is_none() {
            bail!("--chat: the model has no chat template; leave it out");
        }
        let case = |(n, problem): (usize, &Problem)| {
            let prompt = format!("{}Question: {}\nAnswer:", self.shots, problem.question);
            let case = Case {
                id: format!("gsm8k/{n}"),
                ask: if self.args.chat { Ask::Chat(prompt) } else { Ask::Text(prompt) },
                max_tokens: self.args.max_tokens,
                stop: STOP.map(str::to_owned).to_vec(),
            };
            (problem.answer.clone(), case)
        };
        Ok(self.problems.iter().enumerate().take(limit).map(case).collect())
    }

    fn summary(&self, answers: &[(String, String)]) -> Solved {
        Solved::new(self.args.shots, answers)
    }
}
