//! The bench on the CPU: what it feeds to a backend, and what it takes for a right result.

use std::time::Instant;

use kivi_kernels::{Backend, Buffer, DType};
use kivi_kernels_ref::{Cpu, CpuBuffer, CpuError};
use kivi_quant::{Bits, GroupSize};
use serde_json::Value;

use super::MAX_ERROR;
use super::case::{self, Case, Kind, What};
use super::measure::Measured;
use super::pattern::{Inputs, Pattern};
use super::report;
use super::run::{Bench, MIN_READ, SPARE};
use super::shape::Shape;
use super::torch::Torch;
use super::world::World;

impl Measured for Cpu<f32> {
    fn sum_words(&self, words: &CpuBuffer<u32>, sums: &mut CpuBuffer<u32>) -> Result<(), CpuError> {
        let mut found = vec![0; words.len()];
        self.read(words, 0, &mut found)?;
        self.write(sums, 0, &[found.into_iter().fold(0, u32::wrapping_add)])
    }

    fn time<E: From<CpuError>>(
        &self,
        graphs: usize,
        samples: usize,
        mut queue: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Vec<f64>, E> {
        let sample = |i| {
            let start = Instant::now();
            queue(i % graphs).map(|()| start.elapsed().as_secs_f64())
        };
        (0..samples).map(sample).collect()
    }

    fn multiprocessors(&self) -> Result<usize, CpuError> {
        Ok(1)
    }

    fn free_bytes(&self) -> Result<usize, CpuError> {
        Ok(SPARE + (1 << 30))
    }
}

fn decode(shapes: &[Shape], bits: &[Bits]) -> Vec<Case> {
    case::cases(&[What::Decode], shapes, (bits, &GroupSize::ALL), DType::F32).unwrap()
}

/// The error that a world finds, after `change` to its case's pattern.
fn error(case: &Case, change: impl FnOnce(&mut Pattern)) -> f64 {
    let (cpu, inputs) = (Cpu::<f32>::new(), Inputs::new());
    let mut pattern = Pattern::new(case.layout);
    let mut world = World::new(&cpu, case, (&pattern, &inputs), 2).unwrap();
    world.launch(&cpu, 1).unwrap();
    change(&mut pattern);
    world.error(&cpu, (&pattern, &inputs)).unwrap()
}

#[test]
fn a_right_result_is_seen_as_right() {
    // Ragged ends: no key in the ring, one, a window of them but one.
    let shapes =
        [(4, 2, 3, 512), (2, 2, 1, 385), (8, 1, 2, 511)].map(|(h, kv, b, t)| Shape::new(h, kv, b, t));
    for case in decode(&shapes, &Bits::ALL) {
        let found = error(&case, |_| {});
        assert!(found < 1e-5, "{case:?}: {found}");
    }
    let layout = decode(&shapes[..1], &[Bits::B2])[0].layout;
    let prompt = Case { kind: Kind::Prefill, shape: Shape::new(4, 2, 2, 200), layout };
    assert!(error(&prompt, |_| {}) < 1e-5);
}

#[test]
fn a_wrong_result_is_seen_as_wrong() {
    let shape = Shape::new(4, 2, 3, 600);
    let other = |case: &Case, f: fn(&mut Pattern)| error(case, f);
    for case in decode(&[shape], &[Bits::B2, Bits::B16]) {
        // As if pages were those of another pattern.
        assert!(other(&case, |pattern| pattern.shift_pages()) > MAX_ERROR);
        let bits = case.bits();
        assert!(bits == Bits::B16 || other(&case, |pattern| pattern.shift_rings()) > MAX_ERROR);
    }
}

#[test]
fn appends_run_and_steps_may_be_repeated() {
    let layouts = decode(&[Shape::new(2, 2, 1, 1)], &[Bits::B2, Bits::B16]);
    let (cpu, inputs) = (Cpu::<f32>::new(), Inputs::new());
    for (kind, tokens) in [(Kind::Prompt, 300), (Kind::Step, 256), (Kind::Pack, 255)] {
        for Case { layout, .. } in &layouts {
            let case = Case { kind, shape: Shape::new(2, 2, 2, tokens), layout: *layout };
            let pattern = Pattern::new(case.layout);
            let mut world = World::new(&cpu, &case, (&pattern, &inputs), 1).unwrap();
            (0..3).for_each(|_| world.launch(&cpu, 0).unwrap());
        }
    }
}

#[test]
fn a_run_measures_every_case_that_fits() {
    let cpu = Cpu::<f32>::new();
    let shapes = [Shape::new(4, 2, 2, 4096), Shape::new(32, 32, 32, 131_072)];
    let cases = decode(&shapes, &[Bits::B2, Bits::B16]);
    let mut bench = Bench::new(&cpu, Torch::default(), None);
    bench.run(&[What::Read, What::Decode], &cases[..4]).unwrap();
    bench.run(&[What::Decode], &cases[4..]).unwrap();
    let json = bench.to_json();
    let ops = json["ops"].as_array().unwrap();
    assert_eq!((ops.len(), json["skipped"].as_array().unwrap().len()), (4, 4));
    assert!(json["skipped"][0].as_str().unwrap().contains("of device memory"), "{json}");
    let vs_16 = |op: &Value| op["times_faster_than_16_bits"].as_f64();
    assert!(
        ops[0]["bits"] == 16 && vs_16(&ops[0]).is_none() && ops[1..].iter().all(|op| vs_16(op) > Some(0.0))
    );
    assert!(ops.iter().all(|op| op["error"].as_f64().unwrap() < 1e-5), "{json}");
    let share = |op: &Value| op["share_of_read"].as_f64().is_some_and(|share| share > 0.0);
    let large = |op: &&Value| op["bytes"].as_u64().unwrap() >= MIN_READ as u64;
    assert!(ops.iter().filter(large).all(share));
    // Columns of numbers end where their heads do.
    let width = report::header().len();
    assert!(bench.rows.iter().all(|row| row.line().len() == width));
    assert!(bench.reads.values().all(|read| read.line().len() == width));
}
