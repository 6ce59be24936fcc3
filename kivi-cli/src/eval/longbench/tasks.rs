//! The 21 tasks of LongBench.

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
pub const PAPER: [&str; 8] =
    ["triviaqa", "qasper", "trec", "samsum", "lcc", "repobench-p", "qmsum", "multi_news"];

impl Task {
    /// The task of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TASKS.iter().find(|task| task.name == name)
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
        assert!(PAPER.iter().all(|name| Task::named(name).is_some()));
        let continues: Vec<_> = TASKS.iter().filter(|task| task.continues).map(|task| task.name).collect();
        assert_eq!(continues, ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"]);
    }
}
