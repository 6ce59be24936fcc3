//! Passkey retrieval: a number of five digits hidden in text that says nothing else.

use anyhow::{Result, bail};
use kivi_model::tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

use crate::hash;

const HEAD: &str = "Somewhere in the following pages a number is hidden. Keep it in mind; you will be asked for it at the end.\n";
const FILLER: &str =
    "The river runs to the sea. The wind is in the trees. The night was dark and the road was long.\n";
const NEEDLE: &str = "The pass key is {key}. Remember it. {key} is the pass key.\n";
const QUESTION: &str = "What is the pass key? The pass key is";

/// One prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Most tokens of the prompt; it has fewer by less than a line.
    pub length: usize,
    /// Where the number is, in thousandths of the text around it.
    pub depth: usize,
    /// Its place among the prompts of this length and depth.
    pub trial: usize,
    /// The number.
    pub key: u64,
}

impl Case {
    /// The cases of a grid: `depths` places, evenly over the text, with `trials` numbers each. The numbers follow from `seed`.
    pub fn grid(lengths: &[usize], depths: usize, trials: usize, seed: u64) -> Vec<Self> {
        let places = (0..depths).map(|i| (2 * i + 1) * 500 / depths);
        let of_length = |length: usize| {
            let places = places.clone();
            places.flat_map(move |depth| (0..trials).map(move |trial| Self::new(length, depth, trial, seed)))
        };
        lengths.iter().copied().flat_map(of_length).collect()
    }

    fn new(length: usize, depth: usize, trial: usize, seed: u64) -> Self {
        let text = format!("passkey {seed} {length} {depth} {trial}");
        let number = hash::number(Sha256::new_with_prefix(text));
        Self { length, depth, trial, key: 10_000 + number % 90_000 }
    }

    /// What its result is called.
    pub fn id(&self) -> String {
        format!("passkey/{}/{}/{}", self.length, self.depth, self.trial)
    }

    /// The prompt.
    ///
    /// # Errors
    /// The length is less than the question alone takes, or the tokenizer fails.
    pub fn prompt(&self, tokenizer: &Tokenizer) -> Result<String> {
        let count = |text: &str| tokenizer.encode(text, false).map(|tokens| tokens.len());
        let needle = NEEDLE.replace("{key}", &self.key.to_string());
        let begin = tokenizer.encode("", true)?.len();
        let fixed = begin + count(HEAD)? + count(&needle)? + count(QUESTION)?;
        let length = self.length;
        let Some(room) = length.checked_sub(fixed) else {
            bail!("--lengths: expected at least {fixed} tokens, found {length}");
        };
        let lines = room / count(FILLER)?.max(1);
        let before = lines * self.depth / 1000;
        Ok([HEAD, &FILLER.repeat(before), &needle, &FILLER.repeat(lines - before), QUESTION].concat())
    }

    /// Whether an answer has the number.
    pub fn is_right(&self, answer: &str) -> bool {
        answer.contains(&self.key.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_every_place_and_other_numbers() {
        let grid = Case::grid(&[500, 1000], 10, 2, 0);
        assert_eq!(grid.len(), 40);
        assert_eq!(
            grid.iter().take(6).map(|case| case.depth).collect::<Vec<_>>(),
            [50, 50, 150, 150, 250, 250]
        );
        let mut keys: Vec<u64> = grid.iter().map(|case| case.key).collect();
        assert!(keys.iter().all(|key| (10_000..100_000).contains(key)));
        keys.sort_unstable();
        keys.dedup();
        assert!(keys.len() > 35);
        assert_eq!(Case::grid(&[500], 10, 2, 0), grid[..20], "a case does not depend on the others");
        assert_ne!(Case::grid(&[500], 10, 2, 1), grid[..20]);
    }

    #[test]
    fn an_answer_is_right_if_it_has_the_number() {
        let case = Case { length: 1, depth: 1, trial: 0, key: 48_157 };
        assert!(case.is_right(" 48157. Remember"));
        assert!(!case.is_right(" 48 157") && !case.is_right(""));
    }
}
