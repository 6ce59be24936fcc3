//! What all tasks have in common: prompts are run in batches, each read in one step, in full precision; answers go to a file
//! and are read back, so that a run that was killed goes on and is scored as any other.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kivi_kernels::{Backend, DType, Element};
use kivi_model::chat::ChatTemplate;
use kivi_model::config::ModelConfig;
use kivi_model::engine::{Engine, EngineConfig};
use kivi_model::generation_config::GenerationConfig;
use kivi_model::policy::CachePolicy;
use kivi_model::sampler::SamplingParams;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_model::weights::Checkpoint;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::task::{Case, Reader, Task};
use crate::args::TaskArgs;
use crate::batch::driver::{Defaults, Driver};
use crate::batch::input::Line;
use crate::batch::results::{self, Results, Settings};
use crate::prompts::{Content, Prompt};
use crate::provenance::Provenance;
use crate::{budget, format, hash, model_source, output, policy, report, settings, setup, sizing};

/// What came of a task.
#[derive(Serialize)]
struct Report<S> {
    #[serde(flatten)]
    provenance: Provenance,
    task: &'static str,
    model: String,
    cache: String,
    #[serde(flatten)]
    summary: S,
}

/// A prompt as it runs.
struct Ready {
    case: Case,
    tokens: Vec<u32>,
}

/// Runs the prompts of a task that have no answer yet, and prints what came of all; `quiet` leaves progress out.
pub fn run<B: Backend, T: Task>(backend: &B, args: &TaskArgs, task: &T, quiet: bool) -> Result<()> {
    let provenance = Provenance::new(backend, "eval")?;
    let model = Opened::new(args, B::Act::DTYPE, task.chat(), quiet)?;
    let (items, ready) = prepare(task, &model.reader(), args.limit.unwrap_or(usize::MAX))?;
    // Without a file to keep, the answers are in one that goes with the run.
    let passing = tempfile::tempdir().context("a directory for results: cannot be made")?;
    let out = args.out.clone().unwrap_or_else(|| passing.path().join("results.jsonl"));
    results::check(&out, Path::new(""))?;
    let results = Results::open(&out, model.depends(task, ready.first())?, None, 0)?;
    let done = ready.iter().filter(|ready| results.done.contains(&json!(ready.case.id).to_string())).count();
    if done < ready.len() {
        model.answer(backend, args, (&ready, done), results)?;
    }
    let summary = task.summary(&answers(&out, items, &ready)?);
    let (model, cache) = (model.source.place(""), report::settings(&model.policy));
    let report = Report { provenance, task: T::NAME, model, cache, summary };
    output::write(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { table(&report) })
}

/// A model of which all is known but the weights.
struct Opened {
    source: Source,
    config: ModelConfig,
    policy: CachePolicy,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    defaults: Defaults,
    /// Whether to show how far things are.
    progress: bool,
}

impl Opened {
    fn new(args: &TaskArgs, act: DType, chat: bool, quiet: bool) -> Result<Self> {
        let (k_bits, v_bits) = settings::bits(&args.bits);
        let cache = settings::cache(&args.cache, k_bits, v_bits, act)?;
        let source = model_source::open(&args.model, !quiet)?;
        let config = ModelConfig::load(&source)?;
        let policy = policy::read(&args.layers, cache, config.n_layers)?;
        let tokenizer = Tokenizer::load(&source, config.vocab_size)?;
        let template = if chat { ChatTemplate::load(&source)? } else { None };
        let defaults = Defaults {
            max_tokens: 1, // Each prompt has its own.
            stop: Vec::new(),
            sampling: SamplingParams::default(),
            eos: GenerationConfig::load(&source, &config)?.eos_token_ids,
            context: settings::context(None, &config)?,
            template: None, // Prompts are tokens by then.
            system: None,
        };
        let progress = !quiet && !args.json;
        Ok(Self { source, config, policy, tokenizer, template, defaults, progress })
    }

    fn reader(&self) -> Reader<'_> {
        let Self { tokenizer, template, defaults, .. } = self;
        Reader { tokenizer, template: template.as_ref(), context: defaults.context.tokens }
    }

    /// What the answers depend on.
    fn depends<T: Task>(&self, task: &T, first: Option<&Ready>) -> Result<Settings> {
        let fingerprint = Checkpoint::open(&self.source)?.fingerprint(&format!("{:?}", self.config));
        let common = [
            ("task", json!(T::NAME)),
            ("weights (fingerprint)", json!(fingerprint)),
            ("cache", json!(report::settings(&self.policy))),
            ("end tokens", json!(self.defaults.eos)),
            ("first prompt (SHA-256)", json!(first.map(fingerprint_of))),
        ];
        Ok(common.into_iter().chain(task.settings()).map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// An engine for the longest of these prompts at a time.
    fn sizes(&self, ready: &[Ready], places: usize) -> EngineConfig {
        let mut totals: Vec<usize> =
            ready.iter().map(|ready| ready.tokens.len() + ready.case.max_tokens).collect();
        totals.sort_unstable_by(|a, b| b.cmp(a));
        totals.truncate(places);
        let context = self.defaults.context.tokens;
        let mut sizes =
            sizing::engine(self.policy.clone(), self.config.n_layers, &totals, 0, context, usize::MAX);
        // A prompt is read in one step, beside a row of each of the others, so that all of it is read in full precision.
        let longest = ready.iter().map(|ready| ready.tokens.len()).max().unwrap_or(1);
        sizes.max_batched_tokens = longest + sizes.max_seqs;
        sizes
    }

    /// Answers the prompts that are not `done`.
    fn answer<B: Backend>(
        &self,
        backend: &B,
        args: &TaskArgs,
        (ready, done): (&[Ready], usize),
        results: Results,
    ) -> Result<()> {
        let progress = self.progress;
        let mut sizes = self.sizes(ready, args.batch_size);
        let (model, _) = setup::load(backend, &self.source, progress)?;
        budget::fit(backend, model.config(), &mut sizes, (&args.memory, progress))?;
        let engine = Engine::new(backend, &model, sizes.clone());
        let engine = engine.map_err(|error| setup::not_made(error, &self.source.place("config.json")))?;
        let bar = output::bar(progress, "prompts", "{msg} {bar:30} {pos}/{len}, {elapsed}, {eta} left");
        bar.set_length(ready.len() as u64);
        bar.set_position(done as u64);
        bar.reset_eta();
        let driver = Driver {
            engine,
            tokenizer: &self.tokenizer,
            defaults: &self.defaults,
            places: sizes.max_seqs,
            rows: sizes.max_batched_tokens,
            results,
            bar: bar.clone(),
        };
        let mut lines = ready.iter().map(line);
        let done = driver.run(&mut || Ok(lines.next()));
        bar.finish_and_clear();
        done.map(drop)
    }
}

/// Makes the prompts, each of which fits the context with its answer.
fn prepare<T: Task>(task: &T, reader: &Reader<'_>, limit: usize) -> Result<(Vec<T::Item>, Vec<Ready>)> {
    let (mut items, mut ready, mut ids) = (Vec::new(), Vec::new(), HashSet::new());
    for (item, case) in task.cases(reader, limit)? {
        if !ids.insert(case.id.clone()) {
            bail!("{}: is asked for twice; give each value of a list once", case.id);
        }
        let tokens = reader.tokens(&case.ask).with_context(|| case.id.clone())?;
        let (need, holds) = (tokens.len() + case.max_tokens, reader.context);
        if need > holds {
            let Case { id, max_tokens, .. } = case;
            bail!(
                "{id}: takes {need} tokens, {max_tokens} of them for the answer, but the context holds {holds}; {}",
                T::SHORTEN
            );
        }
        items.push(item);
        ready.push(Ready { case, tokens });
    }
    Ok((items, ready))
}

/// What tells a prompt from others: any change of tokenizer, template or wording shows in the first one.
fn fingerprint_of(ready: &Ready) -> String {
    let Ready { case, tokens } = ready;
    hash::hex(Sha256::new_with_prefix(format!("{tokens:?} {} {:?}", case.max_tokens, case.stop)))
}

/// A prompt as a line of a batch file.
fn line(ready: &Ready) -> Line {
    let Case { id, max_tokens, stop, .. } = &ready.case;
    Line {
        number: 0,
        id: id.as_str().into(),
        prompt: Prompt { label: id.clone(), content: Content::Ids(ready.tokens.clone()) },
        max_tokens: Some(*max_tokens),
        stop: Some(stop.clone()),
        seed: None,
        temperature: None,
    }
}

/// The answers of a file beside what is known of their prompts.
fn answers<I>(out: &Path, items: Vec<I>, ready: &[Ready]) -> Result<Vec<(I, String)>> {
    let text =
        std::fs::read_to_string(out).with_context(|| format!("{}: cannot be read", format::path(out)))?;
    let mut known: HashMap<String, Value> = HashMap::new();
    for line in text.lines() {
        let value = serde_json::from_str(line);
        let mut value: Value = value.with_context(|| format!("{}: is not of results", format::path(out)))?;
        if let Value::String(id) = value["id"].take() {
            known.insert(id, value);
        }
    }
    let (mut answers, mut failed) = (Vec::new(), Vec::new());
    for (item, ready) in items.into_iter().zip(ready) {
        let result =
            known.get(&ready.case.id).with_context(|| format!("{}: has no answer", ready.case.id))?;
        failed.extend(result["error"].as_str());
        answers.push((item, result["text"].as_str().unwrap_or_default().to_owned()));
    }
    if let Some(first) = failed.first() {
        tracing::warn!("{} of {} prompts failed and count as wrong: {first}", failed.len(), ready.len());
    }
    Ok(answers)
}

fn table<S: std::fmt::Display>(report: &Report<S>) -> String {
    let Report { task, model, cache, summary, .. } = report;
    let mut out = String::new();
    for (name, text) in [("task", *task), ("model", model), ("kv cache", cache)] {
        writeln!(out, "{name:<12} {text}").expect("a string grows");
    }
    out + &format!("\n{summary}")
}
