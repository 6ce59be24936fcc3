//! F1 over the words of an answer, as for SQuAD.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// A run of what `\w` matches in Python once there is no punctuation.
static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}]+").expect("it is right"));

/// The words of a text in lower case, without ASCII punctuation and the articles of English.
pub fn words(text: &str) -> Vec<String> {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let text = WORD.replace_all(&text, |word: &Captures| match &word[0] {
        "a" | "an" | "the" => " ".to_owned(),
        word => word.to_owned(),
    });
    text.split(super::is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The harmonic mean of precision and recall, each word as often as it is in both.
pub fn f1<W: Hash + Eq>(answer: &[W], reference: &[W]) -> f64 {
    let mut left: HashMap<&W, usize> = HashMap::new();
    for word in reference {
        *left.entry(word).or_default() += 1;
    }
    let mut take =
        |word: &W| left.get_mut(word).and_then(|n| n.checked_sub(1).map(|less| *n = less)).is_some();
    let same = answer.iter().filter(|word| take(word)).count() as f64;
    if same == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (same / answer.len() as f64, same / reference.len() as f64);
    (2.0 * precision * recall) / (precision + recall)
}
