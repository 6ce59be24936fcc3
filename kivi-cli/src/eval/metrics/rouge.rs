//! ROUGE-L of a text of several sentences, as the Python package rouge 1.0.1 computes it.
//!
//! Of each sentence of the reference and each of the answer, the longest common subsequence of words is found. The score
//! counts *different* words: those of all these subsequences, over those of the answer (precision) and of the reference (recall).
//! A sentence ends at a full stop, so that 3.14 is two, and one without words has one word, the empty one.

use std::collections::HashSet;

/// What the package adds to a denominator that might be 0.
const TINY: f64 = 1e-8;

/// F of ROUGE-L; 0 if a text has no sentence, for which the package raises an error and LongBench says 0.
pub fn l(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (sentences(answer), sentences(reference));
    if answer.is_empty() || reference.is_empty() {
        return 0.0;
    }
    let mut common = HashSet::new();
    for expected in &reference {
        for found in &answer {
            common.extend(common_words(expected, found));
        }
    }
    let different = |text: &[Vec<&str>]| text.iter().flatten().collect::<HashSet<_>>().len() as f64;
    let precision = common.len() as f64 / different(&answer);
    let recall = common.len() as f64 / different(&reference);
    2.0 * ((precision * recall) / (precision + recall + TINY))
}

/// The words of each sentence.
fn sentences(text: &str) -> Vec<Vec<&str>> {
    text.split('.').filter(|sentence| !sentence.is_empty()).map(words).collect()
}

fn words(sentence: &str) -> Vec<&str> {
    let words: Vec<_> = sentence.split(super::is_space).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { vec![""] } else { words }
}

/// The words of a longest common subsequence, last first. Where there are several, it is the one that is found going back
/// from the ends: a word that is in both is taken, and if neither text is better left by a word, the answer is.
fn common_words<'a>(reference: &[&'a str], answer: &[&str]) -> Vec<&'a str> {
    let width = answer.len() + 1;
    let mut lengths = vec![0u32; (reference.len() + 1) * width];
    for (i, word) in reference.iter().enumerate() {
        for (j, other) in answer.iter().enumerate() {
            let above = i * width + j + 1;
            lengths[above + width] = match word == other {
                true => lengths[above - 1] + 1,
                false => lengths[above].max(lengths[above + width - 1]),
            };
        }
    }
    let (mut i, mut j, mut words) = (reference.len(), answer.len(), Vec::new());
    while i > 0 && j > 0 {
        if reference[i - 1] == answer[j - 1] {
            words.push(reference[i - 1]);
            (i, j) = (i - 1, j - 1);
        } else if lengths[(i - 1) * width + j] > lengths[i * width + j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    /// The package finds the subsequence by recursion and gives up, and LongBench says 0, above Python's limit of about 1,000 words.
    #[test]
    fn sentences_may_be_long() {
        let text = (0..3000).map(|i| format!("w{i} ")).collect::<String>();
        assert!((super::l(&text, &text) - 1.0).abs() < 1e-7);
    }
}
