//! Batches of growing size until memory is full.

/// Batches of a sweep: powers of two with steps between the large ones.
const BATCHES: [usize; 16] = [1, 8, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192];

/// The largest batch that `fits` accepts, which accepts all smaller ones, too; 0 if it accepts none.
pub fn largest(fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, 1);
    while high <= 1 << 20 && fits(high) {
        (low, high) = (high, 2 * high);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

/// The batches to measure, where `largest` are those of each setting: those asked for, else steps; and the largest ones.
pub fn batches(asked: &[usize], largest: &[usize]) -> Vec<usize> {
    let most = largest.iter().copied().max().unwrap_or(0);
    let steps = if asked.is_empty() { &BATCHES[..] } else { asked };
    let steps = steps.iter().copied().filter(|batch| *batch <= most);
    let mut all: Vec<usize> = steps.chain(largest.iter().copied().filter(|batch| *batch > 0)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_batch_is_found_and_measured() {
        assert_eq!([0, 1, 7, 8, 1000].map(|most| largest(|batch| batch <= most)), [0, 1, 7, 8, 1000]);
        assert_eq!(batches(&[], &[50, 0, 70]), [1, 8, 32, 50, 64, 70]);
        assert_eq!(batches(&[4, 99], &[50, 70]), [4, 50, 70]);
        assert!(batches(&[], &[0]).is_empty());
    }
}
