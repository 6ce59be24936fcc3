//! Means of scores.

use std::fmt;

use serde::Serialize;

use super::tasks::Part;

/// Where a length of LongBench-E ends, in words, and what it is called.
const LENGTHS: [(u64, &str); 3] = [(4000, "0-4k"), (8000, "4-8k"), (u64::MAX, "8k+")];

/// The results.
#[derive(Debug, Serialize)]
pub struct Scores {
    prompts: usize,
    /// The mean of the tasks' scores.
    average: Option<f64>,
    tasks: Vec<TaskScore>,
}

/// One task.
#[derive(Debug, Serialize)]
struct TaskScore {
    task: String,
    metric: &'static str,
    #[serde(flatten)]
    all: Mean,
    /// By length, for LongBench-E.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lengths: Vec<LengthScore>,
}

/// The texts of one length.
#[derive(Debug, Serialize)]
struct LengthScore {
    words: &'static str,
    #[serde(flatten)]
    mean: Mean,
}

/// A mean score, from 0 to 100.
#[derive(Debug, Serialize)]
struct Mean {
    prompts: usize,
    /// To two decimals; nothing of no prompts.
    score: Option<f64>,
}

impl Mean {
    fn new(scores: impl Iterator<Item = f64>) -> Self {
        let (prompts, sum) = scores.fold((0, 0.0), |(n, sum), score| (n + 1, sum + score));
        Self { prompts, score: (prompts > 0).then(|| hundredths(100.0 * sum / prompts as f64)) }
    }
}

/// A number to two decimals.
fn hundredths(x: f64) -> f64 {
    format!("{x:.2}").parse().expect("it was a number")
}

impl Scores {
    /// Of the score of each answer, with its task and the length of its text; those of a task are together.
    pub fn new(answers: impl Iterator<Item = (Part, Option<u64>, f64)>) -> Self {
        let answers: Vec<_> = answers.collect();
        let tasks: Vec<_> = answers.chunk_by(|a, b| a.0 == b.0).map(TaskScore::new).collect();
        let scores: Vec<f64> = tasks.iter().filter_map(|task| task.all.score).collect();
        let average =
            (!scores.is_empty()).then(|| hundredths(scores.iter().sum::<f64>() / scores.len() as f64));
        Self { prompts: answers.len(), average, tasks }
    }
}

impl TaskScore {
    fn new(answers: &[(Part, Option<u64>, f64)]) -> Self {
        let part = answers[0].0;
        let lengths = if part.by_length { &LENGTHS[..] } else { &[] };
        let from = [0, LENGTHS[0].0, LENGTHS[1].0];
        let of_length = |(&(to, words), from): (&(u64, &'static str), u64)| {
            let within = |length: Option<u64>| length.is_some_and(|length| (from..to).contains(&length));
            let scores = answers.iter().filter(|answer| within(answer.1)).map(|answer| answer.2);
            LengthScore { words, mean: Mean::new(scores) }
        };
        Self {
            task: part.to_string(),
            metric: part.task.metric.name(),
            all: Mean::new(answers.iter().map(|answer| answer.2)),
            lengths: lengths.iter().zip(from).map(of_length).collect(),
        }
    }
}

impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |score: Option<f64>| score.map_or("-".to_owned(), |score| format!("{score:.2}"));
        let by_length = self.tasks.iter().any(|task| !task.lengths.is_empty());
        let columns =
            if by_length { LENGTHS.map(|(_, words)| format!(" {words} |")).concat() } else { String::new() };
        writeln!(f, "| task | metric | prompts | score |{columns}")?;
        writeln!(f, "|---|---|---|---|{}", "---|".repeat(columns.matches('|').count()))?;
        for TaskScore { task, metric, all, lengths } in &self.tasks {
            write!(f, "| {task} | {metric} | {} | {} |", all.prompts, text(all.score))?;
            let cells = lengths.iter().map(|length| text(length.mean.score));
            let cells = cells.chain(std::iter::repeat(String::new()));
            cells
                .take(if by_length { LENGTHS.len() } else { 0 })
                .try_for_each(|cell| write!(f, " {cell} |"))?;
            writeln!(f)?;
        }
        writeln!(
            f,
            "| average | | {} | {} |{}",
            self.prompts,
            text(self.average),
            " |".repeat(columns.matches('|').count())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::longbench::tasks::Parts;

    #[test]
    fn means_are_by_task_and_length() {
        let Parts(parts) = "qasper_e,trec".parse().unwrap();
        let answers = [
            (parts[0], Some(3999), 1.0),
            (parts[0], Some(4000), 0.5),
            (parts[0], Some(7999), 0.0),
            (parts[1], None, 1.0 / 3.0),
        ];
        let scores = Scores::new(answers.into_iter());
        assert_eq!((scores.prompts, scores.average), (4, Some(41.66)));
        let table = "\
| task | metric | prompts | score | 0-4k | 4-8k | 8k+ |
|---|---|---|---|---|---|---|
| qasper_e | qa_f1 | 3 | 50.00 | 100.00 | 25.00 | - |
| trec | classification | 1 | 33.33 |  |  |  |
| average | | 4 | 41.66 | | | |
";
        assert_eq!(scores.to_string(), table);
        let json = serde_json::to_value(&scores).unwrap();
        assert_eq!(
            json["tasks"][0]["lengths"][2],
            serde_json::json!({"words": "8k+", "prompts": 0, "score": null})
        );
        assert_eq!(Scores::new([].into_iter()).average, None);
    }

    /// As Python rounds: exact halves go to the even digit, and what is a little less than a half goes down.
    #[test]
    fn hundredths_are_pythons() {
        assert_eq!([12.125, 0.375, 2.675, 1.005, 99.995].map(hundredths), [12.12, 0.38, 2.67, 1.0, 100.0]);
    }
}
