//! How many problems were solved.

use std::fmt;

use serde::Serialize;

use super::extract;

/// How many answers have the right number.
#[derive(Debug, Serialize)]
pub struct Solved {
    problems: usize,
    shots: usize,
    strict: Matches,
    flexible: Matches,
}

/// What one way to find the number gives.
#[derive(Debug, Serialize)]
struct Matches {
    /// Answers with the right number.
    correct: usize,
    /// Answers with any number.
    found: usize,
    /// Share of the right ones.
    exact_match: f64,
    /// Its standard error.
    stderr: f64,
}

impl Solved {
    /// Compares answers, each beside its worked solution.
    pub fn new(shots: usize, answers: &[(String, String)]) -> Self {
        let strict = Matches::new(answers, extract::strict);
        let flexible = Matches::new(answers, extract::flexible);
        Self { problems: answers.len(), shots, strict, flexible }
    }
}

impl Matches {
    fn new(answers: &[(String, String)], number: fn(&str) -> Option<&str>) -> Self {
        let found = answers.iter().filter(|(_, answer)| number(answer).is_some()).count();
        let is_right = |(solution, answer): &&(String, String)| extract::is_same(number(answer), solution);
        let correct = answers.iter().filter(is_right).count();
        let n = answers.len() as f64;
        let exact_match = correct as f64 / n;
        // As lm-eval: of a sample, so one answer less.
        let stderr = if n > 1.0 { (exact_match * (1.0 - exact_match) / (n - 1.0)).sqrt() } else { 0.0 };
        Self { correct, found, exact_match, stderr }
    }
}

impl fmt::Display for Solved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { problems, shots, strict, flexible } = self;
        writeln!(f, "{problems} problems after {shots} examples\n")?;
        writeln!(f, "| number | found | right | exact match |\n|---|---|---|---|")?;
        for (name, of) in [("after `####` (strict)", strict), ("the last (flexible)", flexible)] {
            let [share, error] = [of.exact_match, of.stderr].map(|x| x * 100.0);
            writeln!(f, "| {name} | {} | {} | {share:.2} ± {error:.2} % |", of.found, of.correct)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_counted() {
        let answers =
            [("#### 4", "2 + 2 = 4\n#### 4"), ("#### 4", "It is 4."), ("#### 4", "#### 5"), ("#### 4", "")];
        let solved = Solved::new(5, &answers.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!((solved.strict.correct, solved.strict.found), (1, 2));
        assert_eq!((solved.flexible.correct, solved.flexible.found), (2, 3));
        assert_eq!(solved.flexible.exact_match, 0.5);
        assert!(
            solved.to_string().contains("| after `####` (strict) | 2 | 1 | 25.00 ± 25.00 % |"),
            "{solved}"
        );
    }
}
