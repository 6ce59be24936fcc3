//! Scores of answers that are a number.

use std::sync::LazyLock;

use anyhow::{Result, bail};
use regex::Regex;

/// Digits of any script.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d+").expect("it is right"));

/// How many of the numbers of an answer are `right`, digit by digit: 007 is not 7.
pub fn share(answer: &str, right: &str) -> f64 {
    let (mut all, mut found) = (0, 0);
    for number in NUMBER.find_iter(answer) {
        all += 1;
        found += usize::from(number.as_str() == right);
    }
    if all == 0 { 0.0 } else { found as f64 / all as f64 }
}

/// The first number of a reference that comes right after `label`.
///
/// # Errors
/// There is none.
pub fn after<'a>(label: &str, reference: &'a str) -> Result<&'a str> {
    for (start, _) in reference.match_indices(label) {
        let rest = &reference[start + label.len()..];
        if let Some(number) = NUMBER.find(rest).filter(|number| number.start() == 0) {
            return Ok(number.as_str());
        }
    }
    bail!("expected \"{label}\" and a number in the answer, found {reference:?}");
}
