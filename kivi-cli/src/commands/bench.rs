//! `bench`: times prompts and generation.

use anyhow::{Context, Result, bail};
use kivi_kernels::{Backend, Element, ErrorKind, KernelError};
use kivi_model::config::ModelConfig;
use kivi_model::engine::{Engine, EngineError};
use kivi_model::model::Model;
use kivi_model::source::Source;
use kivi_quant::KiviConfig;

use crate::args::BenchArgs;
use crate::bench::case::{Cache, Case};
use crate::bench::host::{Host, Settings};
use crate::bench::measure::Bench;
use crate::bench::memory::Parts;
use crate::bench::plan::{Plan, or};
use crate::bench::results::{Results, Row};
use crate::bench::{baseline, conclusions, shape, sweep, table};
use crate::failure::Usage;
use crate::format::{path, size};
use crate::{model_source, output, setup};

/// Everything that does not change between rows.
struct Run<'a, B: Backend> {
    backend: &'a B,
    args: &'a BenchArgs,
    plan: Plan,
    model: Model<B>,
    /// Bytes that the device had given away before the weights came.
    other: u64,
    /// Bytes that a row may take.
    limit: Option<u64>,
    quiet: bool,
}

/// Runs the command on `backend`; `quiet` leaves progress out.
pub fn run<B: Backend>(backend: &B, args: &BenchArgs, quiet: bool) -> Result<()> {
    let plan = Plan::new(args, B::Act::DTYPE)?;
    let baseline = args.baseline.as_deref().map(baseline::read).transpose()?;
    check_file(args)?;
    let (name, config, source) = model(args, quiet)?;
    plan.warn_of_length(&config);
    let memory = backend.memory()?;
    // What kernels and libraries take when they are loaded is not counted before: some room for them.
    let limit = args.memory.or(memory.map(|memory| (memory.total as f64 * 0.98) as u64));
    let settings = Settings {
        repetitions: plan.repetitions,
        warm_up: !args.no_warmup,
        max_num_batched_tokens: plan.budget,
        memory: limit,
    };
    let random = args.random_weights.is_some();
    let host = Host::new(backend, (name, random), &config, settings)?;
    if let Some(baseline) = &baseline {
        baseline::warn_of_other(baseline, &host);
    }
    let other = in_use(backend)?.unwrap_or(0);
    let model = load(backend, source.as_ref(), &config, !quiet)?;
    let run = Run { backend, args, plan, model, other, limit, quiet };
    run.all(Results { host, rows: Vec::new(), conclusions: Default::default() }, baseline.as_ref())
}

/// Name and shape of the model, and where its weights are, if they are not random.
fn model(args: &BenchArgs, quiet: bool) -> Result<(String, ModelConfig, Option<Source>)> {
    if let Some(name) = &args.random_weights {
        return Ok((name.clone(), shape::config(name)?, None));
    }
    let source = model_source::open(&args.model, !quiet)?;
    Ok((source.place(""), ModelConfig::load(&source)?, Some(source)))
}

/// Loads or makes the weights.
fn load<B: Backend>(
    backend: &B,
    source: Option<&Source>,
    config: &ModelConfig,
    progress: bool,
) -> Result<Model<B>> {
    if let Some(source) = source {
        return Ok(setup::load(backend, source, progress)?.0);
    }
    let bar = output::bar(progress, "making random weights", "{msg} {bar:30} {bytes}/{total_bytes}");
    let model = Model::random(backend, config, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(model?)
}

/// A file that could not be written is better known before anything is measured.
fn check_file(args: &BenchArgs) -> Result<()> {
    let Some(file) = &args.json else { return Ok(()) };
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
    match dir.filter(|dir| !dir.is_dir()) {
        _ if file.is_dir() => bail!("--json {}: is a directory", path(file)),
        Some(dir) => bail!("--json {}: no such directory: {}", path(file), path(dir)),
        None => Ok(()),
    }
}

/// Bytes of the device that are in use.
fn in_use<B: Backend>(backend: &B) -> Result<Option<u64>> {
    Ok(backend.memory()?.map(|memory| (memory.total - memory.free) as u64))
}

impl<B: Backend> Run<'_, B> {
    /// Measures all rows, and says what came of them.
    fn all(&self, mut results: Results, baseline: Option<&Results>) -> Result<()> {
        let largest = self.largest()?;
        for (case, cache) in self.cases(&largest) {
            let Some(row) = self.row(&case, cache)? else { continue };
            if results.rows.is_empty() {
                output::write(&table::head(&results.host))?;
            }
            results.push(row);
            let row = results.rows.last_mut().expect("just pushed");
            row.over_baseline = baseline.and_then(|baseline| baseline::ratio(baseline, row));
            output::write(&table::row(row))?;
            results.conclusions.break_even = conclusions::break_even(&results.rows);
            results.conclusions.sweep = conclusions::sweep(&results.rows, &largest);
            self.args.json.as_ref().map(|file| results.write(file)).transpose()?;
        }
        if results.rows.is_empty() {
            bail!(
                "no row fits; give a larger --memory, or smaller --batch-size, --depth or --max-num-batched-tokens"
            );
        }
        output::write(&(table::memory(&results.rows) + &results.conclusions.text()))
    }

    /// The largest batch of each setting, for a sweep.
    fn largest(&self) -> Result<Vec<(Cache, usize)>> {
        if self.args.preset.is_none() {
            return Ok(Vec::new());
        }
        let Some(limit) = self.limit else {
            return Err(Usage(
                "--preset paper: expected --memory here, as 80GiB: the device does not say".into(),
            )
            .into());
        };
        let (&[(n_prompt, n_gen)], &[0]) = (&self.plan.tests[..], &self.plan.depths[..]) else {
            let why = "--preset paper: expected one --n-prompt and one --n-gen, and no --depth, to find the largest batch of";
            return Err(Usage(why.into()).into());
        };
        let of = |cache: &KiviConfig| {
            let case = |batch_size| Case { n_prompt, n_gen, batch_size, depth: 0, cache: cache.into() };
            (
                Cache::from(cache),
                sweep::largest(|batch| self.needs(&case(batch), *cache).is_some_and(|sum| sum <= limit)),
            )
        };
        Ok(self.plan.caches.iter().map(of).collect())
    }

    /// All rows in order: settings beside each other, 16 bits first as they are given.
    fn cases(&self, largest: &[(Cache, usize)]) -> Vec<(Case, KiviConfig)> {
        let most: Vec<usize> = largest.iter().map(|(_, batch)| *batch).collect();
        let batches = match largest.is_empty() {
            true => or(&self.args.batch_size, &[1]),
            false => sweep::batches(&self.args.batch_size, &most),
        };
        let mut out = Vec::new();
        for &(n_prompt, n_gen) in &self.plan.tests {
            for &batch_size in &batches {
                for &depth in &self.plan.depths {
                    let case = |cache| Case { n_prompt, n_gen, batch_size, depth, cache };
                    out.extend(self.plan.caches.iter().map(|cache| (case(cache.into()), *cache)));
                }
            }
        }
        out
    }

    /// Bytes that a row takes together with all else; none if that is beyond counting.
    fn needs(&self, case: &Case, cache: KiviConfig) -> Option<u64> {
        Some(self.parts(case, cache).ok()?.sum)
    }

    fn parts(&self, case: &Case, cache: KiviConfig) -> Result<Parts> {
        let bytes = case.bytes::<B::Act>(cache, self.plan.budget, self.model.config());
        Ok(Parts::new(self.model.bytes(), self.other, bytes.context("cache")?))
    }

    /// Measures a row; none if there is no memory for it.
    fn row(&self, case: &Case, cache: KiviConfig) -> Result<Option<Row>> {
        let parts = self.parts(case, cache)?;
        let left_out = |why: String| {
            if self.args.preset.is_none() {
                tracing::warn!(
                    "{} of {} sequences at {}: left out: {why}",
                    case.name(),
                    case.batch_size,
                    case.cache
                );
            }
            Ok(None)
        };
        if let Some(limit) = self.limit.filter(|limit| parts.sum > *limit) {
            return left_out(format!("takes {} of {}", size(parts.sum), size(limit)));
        }
        let bar = output::bar(!self.quiet, "measuring", "{spinner} {msg}, {elapsed}");
        bar.set_message(format!("{}, batch {}, {}", case.name(), case.batch_size, case.cache));
        let engine = Engine::new(self.backend, &self.model, case.engine(cache, self.plan.budget));
        let mut engine = match engine {
            Err(EngineError::Device(error)) if error.kind() == ErrorKind::OutOfMemory => {
                return left_out(error.to_string());
            }
            engine => engine?,
        };
        let row = self.measure(&mut engine, case, parts);
        bar.finish_and_clear();
        row.map(Some)
    }

    fn measure<'b>(&'b self, engine: &mut Engine<'b, B>, case: &Case, parts: Parts) -> Result<Row> {
        let place = || format!("{} of {} sequences at {}", case.name(), case.batch_size, case.cache);
        let vocab_size = self.model.config().vocab_size;
        let mut bench = Bench::new(self.backend, engine, case, vocab_size).with_context(place)?;
        if !self.args.no_warmup {
            bench.warm_up(self.plan.budget).with_context(place)?;
        }
        let samples = (0..self.plan.repetitions).map(|_| bench.run());
        let samples = samples.collect::<Result<Vec<_>>>().with_context(place)?;
        Ok(Row::new(case, samples, parts.measured(in_use(self.backend)?)))
    }
}
