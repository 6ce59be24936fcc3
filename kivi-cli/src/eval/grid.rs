//! Something hidden in texts of several lengths, at several depths.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::args::GridArgs;
use crate::hash;

/// The place of a prompt in a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Most tokens of the prompt.
    pub length: usize,
    /// Where it is hidden, in thousandths of the text around it.
    pub depth: usize,
    /// Its place among the prompts of this length and depth.
    pub trial: usize,
}

impl Cell {
    /// The cells of a grid: depths lie evenly over the text, each in the middle of its share.
    pub fn grid(args: &GridArgs) -> Vec<Self> {
        let depths = args.depths;
        let of_length = |length: usize| {
            (0..depths)
                .map(move |i| (2 * i + 1) * 500 / depths)
                .flat_map(move |depth| (0..args.trials).map(move |trial| Self { length, depth, trial }))
        };
        args.lengths.iter().copied().flat_map(of_length).collect()
    }

    /// What a prompt of a task is called here.
    pub fn id(&self, task: &str) -> String {
        format!("{task}/{}/{}/{}", self.length, self.depth, self.trial)
    }

    /// A number of `digits` digits, the first of which is not 0, that follows from the seed and the place.
    pub fn number(&self, task: &str, seed: u64, digits: u32) -> u64 {
        let Self { length, depth, trial } = self;
        let first = 10_u64.pow(digits - 1);
        let text = format!("{task} {seed} {length} {depth} {trial}");
        first + hash::number(Sha256::new_with_prefix(text)) % (9 * first)
    }
}

/// What a grid depends on.
pub fn settings(args: &GridArgs) -> Vec<(&'static str, Value)> {
    vec![
        ("--lengths", json!(args.lengths)),
        ("--depths", json!(args.depths)),
        ("--trials", json!(args.trials)),
        ("--seed", json!(args.seed)),
    ]
}

/// Checks that the context has room for every length and an answer.
pub fn check(lengths: &[usize], answer: usize, context: usize) -> Result<()> {
    let most = context.saturating_sub(answer);
    if let Some(long) = lengths.iter().find(|length| **length > most) {
        bail!("--lengths: expected at most {most}, found {long}");
    }
    Ok(())
}

/// How many were found, by length and depth.
#[derive(Debug, Serialize)]
pub struct Found {
    correct: usize,
    prompts: usize,
    lengths: Vec<OfLength>,
}

/// The prompts of one length.
#[derive(Debug, Serialize)]
struct OfLength {
    length: usize,
    correct: usize,
    prompts: usize,
    /// By depth in thousandths: right answers, prompts.
    depths: BTreeMap<usize, (usize, usize)>,
}

impl FromIterator<(Cell, bool)> for Found {
    fn from_iter<I: IntoIterator<Item = (Cell, bool)>>(cells: I) -> Self {
        let mut lengths: BTreeMap<usize, OfLength> = BTreeMap::new();
        for (Cell { length, depth, .. }, right) in cells {
            let new = OfLength { length, correct: 0, prompts: 0, depths: BTreeMap::new() };
            let of = lengths.entry(length).or_insert(new);
            let depth = of.depths.entry(depth).or_default();
            *depth = (depth.0 + usize::from(right), depth.1 + 1);
            of.correct += usize::from(right);
            of.prompts += 1;
        }
        let lengths: Vec<_> = lengths.into_values().collect();
        let sum = |of: fn(&OfLength) -> usize| lengths.iter().map(of).sum();
        Self { correct: sum(|of| of.correct), prompts: sum(|of| of.prompts), lengths }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let depths: Vec<_> =
            self.lengths.first().map_or(Vec::new(), |of| of.depths.keys().copied().collect());
        let head: String = depths.iter().map(|depth| format!(" {} % |", *depth as f64 / 10.0)).collect();
        writeln!(f, "| tokens | found |{head}")?;
        writeln!(f, "|---|---|{}", "---|".repeat(depths.len()))?;
        for of in &self.lengths {
            write!(f, "| {} | {} of {} |", of.length, of.correct, of.prompts)?;
            for depth in &depths {
                match of.depths.get(depth) {
                    Some((right, of)) => write!(f, " {right}/{of} |")?,
                    None => f.write_str(" |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(lengths: &[usize]) -> Vec<Cell> {
        Cell::grid(&GridArgs { lengths: lengths.to_vec(), depths: 10, trials: 2, seed: 0 })
    }

    #[test]
    fn a_grid_has_every_place_and_other_numbers() {
        let cells = grid(&[500, 1000]);
        assert_eq!(cells.len(), 40);
        assert_eq!(
            cells.iter().take(6).map(|cell| cell.depth).collect::<Vec<_>>(),
            [50, 50, 150, 150, 250, 250]
        );
        let mut numbers: Vec<u64> = cells.iter().map(|cell| cell.number("passkey", 0, 5)).collect();
        assert!(numbers.iter().all(|number| (10_000..100_000).contains(number)));
        assert!(cells.iter().all(|cell| cell.number("passkey", 1, 5) != cell.number("passkey", 0, 5)));
        numbers.sort_unstable();
        numbers.dedup();
        assert!(numbers.len() > 35);
        assert_eq!(grid(&[500]), cells[..20], "a cell does not depend on the others");
    }

    #[test]
    fn found_ones_are_counted_by_length_and_depth() {
        let cells = grid(&[500, 1000]);
        let found: Found = cells.iter().map(|cell| (*cell, cell.depth < 200 && cell.trial == 0)).collect();
        assert_eq!((found.correct, found.prompts), (4, 40));
        let table = found.to_string();
        assert!(table.starts_with("| tokens | found | 5 % | 15 % |"), "{table}");
        assert!(table.contains("\n| 1000 | 2 of 20 | 1/2 | 1/2 | 0/2 |"), "{table}");
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert!(check(&[10, 20], 12, 32).is_ok());
        assert!(check(&[10, 21], 12, 32).unwrap_err().to_string().contains("at most 20, found 21"));
    }
}
