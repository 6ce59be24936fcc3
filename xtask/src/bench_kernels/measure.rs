//! Timing.

use kivi_kernels::Backend;
use kivi_kernels_cuda::{Act, Cuda, CudaError};

/// Seconds that one graph should take, so that starting it is nothing.
const GRAPH: f64 = 1e-3;
/// Launches above which a graph is long enough.
const MAX_LAUNCHES: usize = 512;
/// Samples of which the median is taken ...
const SAMPLES: usize = 50;
/// ... and fewer, of what takes longer than this in all, in seconds; but not less than `MIN_SAMPLES`.
const BUDGET: f64 = 1.0;
const MIN_SAMPLES: usize = 3;

/// A backend that can be measured: what [`Cuda`] has besides ops.
pub trait Measured: Backend {
    /// See [`Cuda::sum_words`].
    fn sum_words(&self, words: &Self::Buffer<u32>, sums: &mut Self::Buffer<u32>) -> Result<(), Self::Error>;
    /// See [`Cuda::time`].
    fn time<E: From<Self::Error>>(
        &self,
        graphs: usize,
        samples: usize,
        queue: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Vec<f64>, E>;
    /// See [`Cuda::multiprocessors`].
    fn multiprocessors(&self) -> Result<usize, Self::Error>;
    /// See [`Cuda::free_bytes`].
    fn free_bytes(&self) -> Result<usize, Self::Error>;
}

impl<A: Act> Measured for Cuda<A> {
    fn sum_words(&self, words: &Self::Buffer<u32>, sums: &mut Self::Buffer<u32>) -> Result<(), CudaError> {
        Cuda::sum_words(self, words, sums)
    }

    fn time<E: From<CudaError>>(
        &self,
        graphs: usize,
        samples: usize,
        queue: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Vec<f64>, E> {
        Cuda::time(self, graphs, samples, queue)
    }

    fn multiprocessors(&self) -> Result<usize, CudaError> {
        Cuda::multiprocessors(self)
    }

    fn free_bytes(&self) -> Result<usize, CudaError> {
        Cuda::free_bytes(self)
    }
}

/// How long a launch takes.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The median.
    pub seconds: f64,
    /// Samples, each of them the mean of one graph's launches.
    pub samples: usize,
}

/// Times `launch(set)`, over all `sets` in turn.
pub fn measure<D: Measured, E: From<D::Error>>(
    device: &D,
    sets: usize,
    mut launch: impl FnMut(usize) -> Result<(), E>,
) -> Result<Timing, E> {
    // Compiles, and allocates what an op allocates once.
    (0..sets).try_for_each(&mut launch)?;
    let once = device.time(1, 1, |_| launch(0))?[0];
    let plan = Plan::new(once, sets);
    let seconds = device.time(plan.graphs, plan.samples, |graph| {
        (0..plan.launches).try_for_each(|i| launch((graph * plan.launches + i) % sets))
    })?;
    Ok(Timing { seconds: median(seconds) / plan.launches as f64, samples: plan.samples })
}

/// How launches are put into graphs.
#[derive(Debug, PartialEq)]
struct Plan {
    graphs: usize,
    /// Of each graph.
    launches: usize,
    samples: usize,
}

impl Plan {
    /// For launches that take some `once` seconds each; all `sets` are used, or as many as there are samples of. Graphs go
    /// evenly around the sets, so that none comes again soon.
    fn new(once: f64, sets: usize) -> Self {
        let enough = ((GRAPH / once).ceil() as usize).clamp(1, MAX_LAUNCHES);
        let graphs = sets.div_ceil(enough);
        let launches = if graphs == 1 { enough.next_multiple_of(sets) } else { sets.div_ceil(graphs) };
        let affordable = (BUDGET / (launches as f64 * once)) as usize;
        let samples = SAMPLES.min(affordable).max(MIN_SAMPLES);
        Self { graphs: graphs.min(samples), launches, samples }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_are_long_enough_and_not_too_many() {
        let plan = |graphs, launches, samples| Plan { graphs, launches, samples };
        // 6 us, 10 us: many launches a graph, each set in one.
        assert_eq!(Plan::new(6e-6, 160), plan(1, 320, 50));
        assert_eq!(Plan::new(10e-6, 142), plan(2, 71, 50));
        // 4 ms: one launch a graph.
        assert_eq!(Plan::new(4e-3, 1), plan(1, 1, 50));
        // 100 ms: fewer samples; 10 s: as few as there may be.
        assert_eq!(Plan::new(0.1, 20), plan(10, 1, 10));
        assert_eq!(Plan::new(10.0, 20), plan(3, 1, 3));
        assert_eq!(Plan::new(0.0, 3).launches, MAX_LAUNCHES.next_multiple_of(3));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
