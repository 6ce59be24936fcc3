//! The 21 tasks of LongBench.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;

use crate::eval::metrics::Metric;

/// One task.
#[derive(Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name: that of its file, and the key of its prompt.
    pub name: &'static str,
    /// How its answers are scored.
    pub metric: Metric,
    /// Whether its prompt is one to be continued, so that a chat template would spoil it.
    pub continues: bool,
    /// Whether only the first line of an answer counts.
    pub first_line: bool,
    /// Whether LongBench-E has it.
    pub by_length: bool,
}

/// A task whose prompt is a question, not in LongBench-E.
const fn task(name: &'static str, metric: Metric) -> Task {
    Task { name, metric, continues: false, first_line: false, by_length: false }
}

/// A task of LongBench-E.
const fn task_e(name: &'static str, metric: Metric) -> Task {
    Task { by_length: true, ..task(name, metric) }
}

/// All of them, in the order of LongBench's own list.
pub static TASKS: [Task; 21] = [
    task("narrativeqa", Metric::QaF1),
    task_e("qasper", Metric::QaF1),
    task_e("multifieldqa_en", Metric::QaF1),
    task("multifieldqa_zh", Metric::QaF1Zh),
    task_e("hotpotqa", Metric::QaF1),
    task_e("2wikimqa", Metric::QaF1),
    task("musique", Metric::QaF1),
    task("dureader", Metric::RougeLZh),
    task_e("gov_report", Metric::RougeL),
    task("qmsum", Metric::RougeL),
    task_e("multi_news", Metric::RougeL),
    task("vcsum", Metric::RougeLZh),
    Task { continues: true, first_line: true, ..task_e("trec", Metric::Classification) },
    Task { continues: true, first_line: true, ..task_e("triviaqa", Metric::QaF1) },
    Task { continues: true, first_line: true, ..task_e("samsum", Metric::RougeL) },
    Task { continues: true, first_line: true, ..task("lsht", Metric::Classification) },
    task_e("passage_count", Metric::Count),
    task_e("passage_retrieval_en", Metric::Retrieval),
    task("passage_retrieval_zh", Metric::RetrievalZh),
    Task { continues: true, ..task_e("lcc", Metric::CodeSim) },
    Task { continues: true, ..task_e("repobench-p", Metric::CodeSim) },
];

/// The tasks of the KIVI paper, in the order of its code.
pub const PAPER: &str = "triviaqa,qasper,trec,samsum,lcc,repobench-p,qmsum,multi_news";

/// The rows of one file: a task, or the same task in LongBench-E.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The task.
    pub task: &'static Task,
    /// Whether it is LongBench-E's, which is reported by length.
    pub by_length: bool,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.task.name, if self.by_length { "_e" } else { "" })
    }
}

/// What `--tasks` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts(pub Vec<Part>);

impl FromStr for Parts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        for name in text.split(',').map(str::trim) {
            match name {
                "all" => parts.extend(TASKS.iter().map(|task| Part { task, by_length: false })),
                "e" => parts.extend(
                    TASKS.iter().filter(|task| task.by_length).map(|task| Part { task, by_length: true }),
                ),
                name => parts.push(part(name)?),
            }
        }
        Ok(Self(parts))
    }
}

fn part(name: &str) -> Result<Part, String> {
    if let Some(task) = Task::named(name) {
        return Ok(Part { task, by_length: false });
    }
    match name.strip_suffix("_e").and_then(Task::named) {
        Some(task) if task.by_length => Ok(Part { task, by_length: true }),
        Some(task) => Err(format!("LongBench-E has no {}", task.name)),
        None => {
            let names: Vec<_> = TASKS.iter().map(|task| task.name).collect();
            Err(format!("expected all, e, or a list of {}, each also as NAME_e", names.join(", ")))
        }
    }
}

impl Task {
    /// The task of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TASKS.iter().find(|task| task.name == name)
    }

    /// Whether its rows must have the names of classes.
    pub fn needs_classes(&self) -> bool {
        self.metric == Metric::Classification
    }

    /// What ends an answer: the line, where the model would go on with another dialogue.
    pub fn stop(&self) -> Vec<String> {
        if self.name == "samsum" { vec!["\n".to_owned()] } else { Vec::new() }
    }

    /// The score of an answer, from 0 to 1: the best over its references.
    ///
    /// # Errors
    /// As [`Metric::score`].
    pub fn score(&self, answer: &str, references: &[String], classes: &[String]) -> Result<f64> {
        let answer = match self.first_line {
            true => answer.trim_start_matches('\n').split('\n').next().unwrap_or(""),
            false => answer,
        };
        references.iter().try_fold(0.0, |best: f64, reference| {
            Ok(best.max(self.metric.score(answer, reference, classes)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_the_originals() {
        assert_eq!(TASKS.iter().filter(|task| task.by_length).count(), 13);
        let continues: Vec<_> = TASKS.iter().filter(|task| task.continues).map(|task| task.name).collect();
        assert_eq!(continues, ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"]);
        let names = |text: &str| {
            let parts: Result<Parts, _> = text.parse();
            parts.map(|parts| parts.0.iter().map(Part::to_string).collect::<Vec<_>>().join(","))
        };
        assert_eq!(names(PAPER).unwrap(), PAPER);
        assert_eq!(names("qasper_e, musique").unwrap(), "qasper_e,musique");
        assert_eq!(names("all").unwrap().split(',').count(), 21);
        assert_eq!(names("e").unwrap().split(',').filter(|name| name.ends_with("_e")).count(), 13);
        assert!(names("qmsum_e").unwrap_err().contains("no qmsum"));
        assert!(names("").unwrap_err().contains("expected all, e, or a list of narrativeqa"));
    }
}
