//! The metrics against the packages that LongBench scores with (`xtask/golden/longbench.py`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Metric;
use crate::eval::longbench::tasks::{TASKS, Task};

/// The file.
#[derive(Deserialize)]
struct Golden {
    tasks: BTreeMap<String, Vec<String>>,
    pairs: Vec<Pair>,
    answers: Vec<Answer>,
}

/// An answer and one reference.
#[derive(Deserialize)]
struct Pair {
    metric: String,
    answer: String,
    reference: String,
    classes: Vec<String>,
    score: f64,
}

/// An answer of a task.
#[derive(Deserialize)]
struct Answer {
    task: String,
    answer: String,
    references: Vec<String>,
    classes: Vec<String>,
    score: f64,
}

fn golden() -> Golden {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/longbench-metrics.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Whether this build can compute it.
fn is_here(metric: Metric) -> bool {
    cfg!(feature = "chinese") || !matches!(metric, Metric::QaF1Zh | Metric::RougeLZh)
}

#[test]
fn every_pair_has_its_score() {
    let mut pairs: BTreeMap<String, usize> = BTreeMap::new();
    for Pair { metric, answer, reference, classes, score } in golden().pairs {
        *pairs.entry(metric.clone()).or_default() += 1;
        let metric = TASKS.iter().map(|task| task.metric).find(|known| known.name() == metric).unwrap();
        if is_here(metric) {
            let found = metric.score(&answer, &reference, &classes).unwrap();
            assert!(
                (found - score).abs() < 1e-12,
                "{metric:?} {answer:?} {reference:?}: {found}, not {score}"
            );
        }
    }
    assert!(pairs.len() == 9 && pairs.values().all(|pairs| *pairs >= 10), "{pairs:?}");
}

#[test]
fn every_task_has_its_metric_and_rules() {
    let golden = golden();
    for task in &TASKS {
        assert!(golden.tasks[task.metric.name()].iter().any(|name| name == task.name), "{}", task.name);
    }
    assert_eq!(golden.tasks.values().map(Vec::len).sum::<usize>(), TASKS.len());
    for Answer { task, answer, references, classes, score } in golden.answers {
        let task = Task::named(&task).unwrap();
        if is_here(task.metric) {
            let found = task.score(&answer, &references, &classes).unwrap();
            assert!((found - score).abs() < 1e-12, "{} {answer:?}: {found}, not {score}", task.name);
        }
    }
}
