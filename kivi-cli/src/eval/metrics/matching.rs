//! How alike two sequences are by Ratcliff and Obershelp, as `difflib.SequenceMatcher` of Python has it.

use std::collections::HashMap;
use std::ops::Range;

/// From this length on, what is very frequent in the second sequence does not begin a match.
const LONG: usize = 200;

/// Twice what matches, over the length of both.
pub fn ratio(a: &[char], b: &[char]) -> f64 {
    let places = places(b);
    let mut matched = 0;
    let mut open = vec![(0..a.len(), 0..b.len())];
    while let Some((in_a, in_b)) = open.pop() {
        let (i, j, len) = longest(a, b, &places, &in_a, &in_b);
        if len > 0 {
            matched += len;
            open.push((in_a.start..i, in_b.start..j));
            open.push((i + len..in_a.end, j + len..in_b.end));
        }
    }
    2.0 * matched as f64 / (a.len() + b.len()) as f64
}

/// Where each character is, without those that are more than a hundredth of a long sequence.
fn places(b: &[char]) -> HashMap<char, Vec<usize>> {
    let mut places: HashMap<char, Vec<usize>> = HashMap::new();
    for (at, &c) in b.iter().enumerate() {
        places.entry(c).or_default().push(at);
    }
    if b.len() >= LONG {
        places.retain(|_, at| at.len() <= b.len() / 100 + 1);
    }
    places
}

/// The longest block in both ranges, the first one in `a`, then in `b`: where it begins, and its length.
fn longest(
    a: &[char],
    b: &[char],
    places: &HashMap<char, Vec<usize>>,
    in_a: &Range<usize>,
    in_b: &Range<usize>,
) -> (usize, usize, usize) {
    let (mut i, mut j, mut len) = (in_a.start, in_b.start, 0);
    // By the end in `b`: the length of the block that ends there and at the last character of `a`.
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for end_a in in_a.clone() {
        let mut now = HashMap::new();
        let all = places.get(&a[end_a]).map_or(&[][..], Vec::as_slice);
        for &end_b in all.iter().filter(|at| in_b.contains(at)) {
            let before = end_b.checked_sub(1).and_then(|at| ending.get(&at)).copied().unwrap_or(0);
            now.insert(end_b, before + 1);
            if before + 1 > len {
                (i, j, len) = (end_a - before, end_b - before, before + 1);
            }
        }
        ending = now;
    }
    // Frequent characters may go on with a match.
    while i > in_a.start && j > in_b.start && a[i - 1] == b[j - 1] {
        (i, j, len) = (i - 1, j - 1, len + 1);
    }
    while i + len < in_a.end && j + len < in_b.end && a[i + len] == b[j + len] {
        len += 1;
    }
    (i, j, len)
}
