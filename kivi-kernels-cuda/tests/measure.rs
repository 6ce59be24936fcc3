//! What benches rely on: memory is filled and read whole, and time passes.

use half::f16;
use kivi_kernels::Backend;
use kivi_kernels_cuda::{Cuda, CudaError};
use kivi_kernels_ref::conformance::skip;

#[test]
fn words_are_repeated_and_summed_whole() {
    let cuda = match Cuda::<f16>::new(0) {
        Ok(cuda) => cuda,
        Err(why) => return skip(&format!("measuring: {why}")),
    };
    let pattern: Vec<u32> = (0..1000_u32).map(|i| i.wrapping_mul(0x9E37_79B9)).collect();
    for count in [0, 1, 3, 4, 1023, 1_000_000, 5_000_003] {
        let mut words = cuda.zeros::<u32>(count).unwrap();
        cuda.repeat(&mut words, &pattern).unwrap();
        let mut sums = cuda.zeros::<u32>(64).unwrap();
        cuda.sum_words(&words, &mut sums).unwrap();
        let mut found = [0; 64];
        cuda.read(&sums, 0, &mut found).unwrap();
        let total = |words: &mut dyn Iterator<Item = u32>| words.fold(0, u32::wrapping_add);
        let expected = total(&mut pattern.iter().copied().cycle().take(count));
        assert_eq!(total(&mut found.into_iter()), expected, "{count} words");
    }
}

#[test]
fn a_graph_takes_time_and_an_error_ends_its_recording() {
    let cuda = match Cuda::<f16>::new(0) {
        Ok(cuda) => cuda,
        Err(why) => return skip(&format!("measuring: {why}")),
    };
    let words = cuda.zeros::<u32>(1 << 20).unwrap();
    let mut sums = cuda.zeros::<u32>(64).unwrap();
    cuda.sum_words(&words, &mut sums).unwrap();
    let seconds = cuda.time(2, 5, |_| cuda.sum_words(&words, &mut sums)).unwrap();
    assert!(seconds.len() == 5 && seconds.iter().all(|&s| s > 0.0), "{seconds:?}");
    let wrong = || CudaError::Range { offset: 0, count: 1, len: 0 };
    assert!(cuda.time(1, 1, |_| Err(wrong())).is_err());
    cuda.sum_words(&words, &mut sums).and_then(|()| cuda.synchronize()).unwrap();
}
