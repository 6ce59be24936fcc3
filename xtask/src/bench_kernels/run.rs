//! A run: every case on the device, one line each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kivi_kernels::{Element, ErrorKind, KernelError, StepError};
use kivi_kernels_ref::conformance::Rng;
use kivi_quant::{Bits, PageLayout};
use serde_json::{Value, json};

use super::case::{Case, Kind, What};
use super::measure::{Measured, measure};
use super::pattern::{Inputs, Pattern};
use super::report::{Read, Row};
use super::torch::Torch;
use super::world::{self, World};

/// Bytes below which the rate of reading says nothing: starting a kernel takes longer.
pub const MIN_READ: usize = 1 << 20;
/// Device memory that is left free, for what ops allocate themselves.
pub const SPARE: usize = 2 << 30;

/// How many bytes are read to compare with `case`: as many as it moves to within 3%, so that near ones are read once;
/// none for what is not about bytes.
fn footprint(case: &Case) -> Option<usize> {
    let bytes = case.bytes();
    let step = (bytes.next_power_of_two() / 32).max(4);
    (case.kind != Kind::Prefill && bytes >= MIN_READ).then(|| (bytes + step / 2) / step * step)
}

/// A run.
pub struct Bench<'a, D: Measured> {
    device: &'a D,
    inputs: Inputs<D::Act>,
    torch: Torch,
    /// By their bytes.
    pub reads: BTreeMap<usize, Read>,
    pub rows: Vec<Row>,
    skipped: Vec<String>,
    /// Where all of it is written.
    json: Option<&'a Path>,
}

impl<'a, D: Measured> Bench<'a, D> {
    pub fn new(device: &'a D, torch: Torch, json: Option<&'a Path>) -> Self {
        let (inputs, reads, rows, skipped) = (Inputs::new(), BTreeMap::new(), vec![], vec![]);
        Self { device, inputs, torch, reads, rows, skipped, json }
    }

    pub fn run(&mut self, what: &[What], cases: &[Case]) -> Result<()> {
        if what.contains(&What::Read) {
            self.reads(cases)?;
        }
        let mut patterns: HashMap<PageLayout, Pattern> = HashMap::new();
        let measured = cases.iter().filter(|case| what.contains(&case.kind.what()));
        for case in measured {
            let pattern = patterns.entry(case.layout).or_insert_with(|| Pattern::new(case.layout));
            self.case(case, pattern)?;
            self.save()?;
        }
        Ok(())
    }

    /// Reads as many bytes as each of `cases`.
    fn reads(&mut self, cases: &[Case]) -> Result<()> {
        let sizes: BTreeSet<usize> = cases.iter().filter_map(footprint).collect();
        for bytes in sizes {
            match self.read(bytes) {
                Ok(read) => {
                    println!("{}", read.line());
                    self.reads.insert(bytes, read);
                }
                Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                    self.skip(format!("read of {bytes} bytes: {error}"));
                }
                Err(error) => return Err(error).with_context(|| format!("reading {bytes} bytes")),
            }
            self.save()?;
        }
        Ok(())
    }

    fn read(&self, bytes: usize) -> Result<Read, D::Error> {
        let device = self.device;
        let mut rng = Rng::new(4);
        let noise: Vec<u32> = (0..(1 << 20) + 1).map(|_| rng.bits() as u32).collect();
        let sets = world::sets_of(bytes);
        let random = |_| {
            let mut words = device.zeros(bytes / 4)?;
            device.repeat(&mut words, &noise)?;
            Ok(words)
        };
        let words = (0..sets).map(random).collect::<Result<Vec<_>, D::Error>>()?;
        // As many blocks as the device runs at a time: 2,048 threads a multiprocessor.
        let mut sums = device.zeros(8 * device.multiprocessors()?)?;
        let timing = measure(device, sets, |set| device.sum_words(&words[set], &mut sums))?;
        Ok(Read { bytes, sets, timing })
    }

    /// Measures `case`, unless the memory for it is not there.
    fn case(&mut self, case: &Case, pattern: &Pattern) -> Result<()> {
        let free = self.device.free_bytes()?.saturating_sub(SPARE);
        let sets = world::sets(case, free);
        if sets == 0 {
            let (needed, free) = (world::memory_of_set(case) >> 20, free >> 20);
            self.skip(format!("{case}: needs {needed} MiB of device memory, {free} are free"));
            return Ok(());
        }
        match self.measure(case, pattern, sets) {
            Ok(row) => {
                println!("{}", row.line());
                self.rows.push(row);
            }
            Err(StepError::Device(error)) if error.kind() == ErrorKind::OutOfMemory => {
                self.skip(format!("{case}: {error}"));
            }
            Err(error) => return Err(error).with_context(|| case.to_string()),
        }
        Ok(())
    }

    fn measure(&self, case: &Case, pattern: &Pattern, sets: usize) -> Result<Row, StepError<D::Error>> {
        let contents = (pattern, &self.inputs);
        let mut world = World::new(self.device, case, contents, sets)?;
        let timing = measure(self.device, sets, |set| world.launch(self.device, set))?;
        let error = case.is_attend().then(|| world.error(self.device, contents)).transpose()?;
        let same = |row: &&Row| (row.case.kind, row.case.shape) == (case.kind, case.shape);
        let fp16 = self.rows.iter().filter(same).find(|row| row.case.bits() == Bits::B16);
        Ok(Row {
            case: *case,
            sets,
            timing,
            read: footprint(case).and_then(|bytes| Some(self.reads.get(&bytes)?.rate())),
            fp16: fp16.map(|row| row.timing.seconds),
            torch: self.torch.of(case),
            error,
        })
    }

    fn skip(&mut self, why: String) {
        println!("skipped: {why}");
        self.skipped.push(why);
    }

    /// Writes what there is so far: a run that is ended early leaves what it measured.
    pub fn save(&self) -> Result<()> {
        let Some(file) = self.json else { return Ok(()) };
        let text = format!("{:#}\n", self.to_json());
        fs::write(file, text).with_context(|| format!("--json: {}", file.display()))
    }

    pub fn to_json(&self) -> Value {
        json!({
            "device": self.device.name(),
            "act": D::Act::DTYPE.name(),
            "read": self.reads.values().map(Read::to_json).collect::<Vec<_>>(),
            "ops": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "skipped": self.skipped,
        })
    }
}
