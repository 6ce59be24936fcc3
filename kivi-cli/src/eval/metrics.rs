//! The metrics of LongBench (Bai et al., arXiv 2308.14508), each from 0 to 1 for one answer and one reference.
//!
//! They are what `metrics.py` of LongBench and of KIVI compute with the Python packages rouge 1.0.1, fuzzywuzzy 0.18.0
//! (without python-Levenshtein) and jieba 0.42.1; `golden` compares with these.

mod chinese;
mod code;
#[cfg(test)]
mod golden;
mod matching;
mod numbers;
mod qa;
mod rouge;

use anyhow::Result;

/// How an answer is compared with a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// F1 over words, normalised as SQuAD does.
    QaF1,
    /// F1 over Chinese words.
    QaF1Zh,
    /// F of ROUGE-L.
    RougeL,
    /// F of ROUGE-L over Chinese words.
    RougeLZh,
    /// Whether the right class is named, over the number of classes that are.
    Classification,
    /// The share of the numbers named that is the number of the right paragraph.
    Retrieval,
    /// The same in Chinese.
    RetrievalZh,
    /// The share of the numbers named that is the right one.
    Count,
    /// Similarity of the first line of code.
    CodeSim,
}

impl Metric {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::QaF1 => "qa_f1",
            Self::QaF1Zh => "qa_f1_zh",
            Self::RougeL => "rouge_l",
            Self::RougeLZh => "rouge_l_zh",
            Self::Classification => "classification",
            Self::Retrieval => "retrieval",
            Self::RetrievalZh => "retrieval_zh",
            Self::Count => "count",
            Self::CodeSim => "code_sim",
        }
    }

    /// The score of one answer against one reference; `classes` are the names that a classification chooses from.
    ///
    /// # Errors
    /// The reference is not one of this metric, whatever the answer; or Chinese words are asked of a build without them.
    pub fn score(self, answer: &str, reference: &str, classes: &[String]) -> Result<f64> {
        Ok(match self {
            Self::QaF1 => qa::f1(&qa::words(answer), &qa::words(reference)),
            Self::QaF1Zh => qa::f1(&chinese::answer_words(answer)?, &chinese::answer_words(reference)?),
            Self::RougeL => rouge::l(answer, reference),
            Self::RougeLZh => rouge::l(&chinese::spaced(answer)?, &chinese::spaced(reference)?),
            Self::Classification => classification(answer, reference, classes),
            Self::Retrieval => numbers::share(answer, numbers::after("Paragraph ", reference)?),
            Self::RetrievalZh => numbers::share(answer, numbers::after("段落", reference)?),
            Self::Count => numbers::share(answer, reference),
            Self::CodeSim => code::similarity(answer, reference),
        })
    }
}

/// One over the number of classes that the answer names, if the right one is among them.
///
/// A named class that is a part of the right one's name does not count, for naming the right one names it, too. As in the original,
/// the class after one that was struck out is not looked at.
fn classification(answer: &str, reference: &str, classes: &[String]) -> f64 {
    let mut named: Vec<&str> =
        classes.iter().map(String::as_str).filter(|class| answer.contains(class)).collect();
    let mut at = 0;
    while let Some(&class) = named.get(at) {
        if reference.contains(class) && class != reference {
            let first = named.iter().position(|other| *other == class).expect("it is there");
            named.remove(first);
        }
        at += 1;
    }
    if named.contains(&reference) { 1.0 / named.len() as f64 } else { 0.0 }
}

/// White space as `str.split` of Python sees it: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
