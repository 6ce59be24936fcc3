//! Similarity of a line of code.

use super::matching::ratio;

/// What marks a line as a comment or as no code.
const NOT_CODE: [&str; 3] = ["`", "#", "//"];

/// How alike the reference and the first line of code of an answer are, in whole hundredths.
pub fn similarity(answer: &str, reference: &str) -> f64 {
    let mut lines = answer.trim_start_matches('\n').split('\n');
    let line = lines.find(|line| !NOT_CODE.iter().any(|mark| line.contains(mark))).unwrap_or("");
    percent(line, reference) / 100.0
}

/// `fuzz.ratio` of the Python package fuzzywuzzy without python-Levenshtein, which KIVI's requirements do not have: two texts
/// that are the same have 100, also two empty ones; halves go to the even number.
fn percent(a: &str, b: &str) -> f64 {
    if a == b {
        return 100.0;
    }
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let [a, b] = [a, b].map(|text| text.chars().collect::<Vec<_>>());
    (100.0 * ratio(&a, &b)).round_ties_even()
}
