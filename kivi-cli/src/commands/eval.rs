//! `eval`: what a cache costs on tasks.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kivi_kernels::{Backend, Element};
use kivi_model::config::ModelConfig;
use kivi_model::engine::Engine;
use kivi_model::sampler::SamplingParams;
use kivi_model::tokenizer::Tokenizer;
use kivi_model::weights::Checkpoint;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{EvalTask, PasskeyArgs};
use crate::batch::driver::{Defaults, Driver};
use crate::batch::input::Line;
use crate::batch::results::{self, Results};
use crate::eval::passkey::Case;
use crate::prompts::{Content, Prompt};
use crate::{budget, format, model_source, output, policy, report, settings, setup, sizing};

/// Tokens of an answer: five digits, and what may come before them.
const ANSWER_TOKENS: usize = 12;

/// What came of it.
#[derive(Serialize)]
struct Report {
    model: String,
    cache: String,
    correct: usize,
    prompts: usize,
    lengths: Vec<LengthReport>,
}

/// The prompts of one length.
#[derive(Serialize)]
struct LengthReport {
    length: usize,
    correct: usize,
    prompts: usize,
    /// By depth in thousandths: right answers, prompts.
    depths: BTreeMap<usize, (usize, usize)>,
}

/// Runs a task on `backend`; `quiet` leaves progress out.
pub fn run<B: Backend>(backend: &B, task: &EvalTask, quiet: bool) -> Result<()> {
    let EvalTask::Passkey(args) = task;
    passkey(backend, args, quiet)
}

fn passkey<B: Backend>(backend: &B, args: &PasskeyArgs, quiet: bool) -> Result<()> {
    let (k_bits, v_bits) = settings::bits(&args.bits);
    let cache = settings::cache(&args.cache, k_bits, v_bits, B::Act::DTYPE)?;
    let source = model_source::open(&args.model, !quiet)?;
    let config = ModelConfig::load(&source)?;
    let context = settings::context(None, &config)?;
    if let Some(long) = args.lengths.iter().find(|length| **length + ANSWER_TOKENS > context.tokens) {
        bail!(
            "--lengths: expected at most {}, found {long}",
            context.tokens - ANSWER_TOKENS.min(context.tokens)
        );
    }
    let tokenizer = Tokenizer::load(&source, config.vocab_size)?;
    let policy = policy::read(&args.layers, cache, config.n_layers)?;
    let mut cases = Case::grid(&args.lengths, args.depths, args.trials, args.seed);
    cases.truncate(args.limit.unwrap_or(usize::MAX));

    // Without a file to keep, the results are in one that goes with the run.
    let passing = tempfile::tempdir().context("a directory for results: cannot be made")?;
    let out = args.out.clone().unwrap_or_else(|| passing.path().join("results.jsonl"));
    results::check(&out, Path::new(""))?;
    let fingerprint = Checkpoint::open(&source)?.fingerprint(&format!("{config:?}"));
    let depends = [
        ("task", json!("passkey")),
        ("weights (fingerprint)", json!(fingerprint)),
        ("cache", json!(report::settings(&policy))),
        ("grid", json!([args.depths, args.trials])),
        ("lengths", json!(args.lengths)),
    ];
    let depends = depends.map(|(key, value)| (key.to_owned(), value)).into();
    let results = Results::open(&out, depends, Some(args.seed), args.seed)?;
    if results.done.len() < cases.len() {
        let longest = vec![args.lengths.iter().copied().max().unwrap_or(1) + ANSWER_TOKENS; args.batch_size];
        let mut sizes =
            sizing::engine(policy.clone(), config.n_layers, &longest, 0, context.tokens, usize::MAX);
        // A prompt is read in one step, so that all of it is read in full precision.
        sizes.max_batched_tokens = longest[0];
        let (model, _) = setup::load(backend, &source, !quiet && !args.json)?;
        budget::fit(backend, model.config(), &mut sizes, (&args.memory, !quiet && !args.json))?;
        let engine = Engine::new(backend, &model, sizes.clone());
        let engine = engine.map_err(|error| setup::not_made(error, &source.place("config.json")))?;
        let bar =
            output::bar(!quiet && !args.json, "prompts", "{msg} {bar:30} {pos}/{len}, {elapsed}, {eta} left");
        bar.set_length(cases.len() as u64);
        bar.set_position(results.done.len() as u64);
        let defaults = Defaults {
            max_tokens: ANSWER_TOKENS,
            stop: Vec::new(),
            sampling: SamplingParams::default(),
            eos: Vec::new(),
            context,
            template: None,
            system: None,
        };
        let driver = Driver {
            engine,
            tokenizer: &tokenizer,
            defaults: &defaults,
            places: sizes.max_seqs,
            rows: sizes.max_batched_tokens,
            results,
            bar: bar.clone(),
        };
        let mut lines = cases.iter().map(|case| line(case, &tokenizer));
        let done = driver.run(&mut || lines.next().transpose());
        bar.finish_and_clear();
        done?;
    }
    let report = summary(source.place(""), report::settings(&policy), &cases, &answers(&out)?);
    let json = || serde_json::to_string_pretty(&report).map(|json| json + "\n");
    output::write(&if args.json { json()? } else { table(&report) })
}

fn line(case: &Case, tokenizer: &Tokenizer) -> Result<Line> {
    Ok(Line {
        number: 0,
        id: case.id().into(),
        prompt: Prompt { label: case.id(), content: Content::Text(case.prompt(tokenizer)?) },
        max_tokens: None,
        stop: None,
        seed: None,
        temperature: None,
    })
}

/// The texts of a file of results, by id.
fn answers(out: &PathBuf) -> Result<HashMap<String, String>> {
    let text =
        std::fs::read_to_string(out).with_context(|| format!("{}: cannot be read", format::path(out)))?;
    let answer = |line: &str| {
        let value: Value = serde_json::from_str(line).ok()?;
        Some((value["id"].as_str()?.to_owned(), value["text"].as_str()?.to_owned()))
    };
    Ok(text.lines().filter_map(answer).collect())
}

fn summary(model: String, cache: String, cases: &[Case], answers: &HashMap<String, String>) -> Report {
    let mut lengths: BTreeMap<usize, LengthReport> = BTreeMap::new();
    for case in cases {
        let right = usize::from(answers.get(&case.id()).is_some_and(|answer| case.is_right(answer)));
        let (length, depths) = (case.length, BTreeMap::new());
        let of = lengths.entry(length).or_insert(LengthReport { length, correct: 0, prompts: 0, depths });
        let depth = of.depths.entry(case.depth).or_default();
        *depth = (depth.0 + right, depth.1 + 1);
        of.correct += right;
        of.prompts += 1;
    }
    let lengths: Vec<_> = lengths.into_values().collect();
    let correct = lengths.iter().map(|length| length.correct).sum();
    Report { model, cache, correct, prompts: cases.len(), lengths }
}

fn table(report: &Report) -> String {
    let mut out = format!("model        {}\nkv cache     {}\n\n", report.model, report.cache);
    let depths: Vec<usize> =
        report.lengths.first().map_or(Vec::new(), |length| length.depths.keys().copied().collect());
    let mut line = |text: String| writeln!(out, "{text}").expect("a string grows");
    let head: String = depths.iter().map(|depth| format!(" {} % |", *depth as f64 / 10.0)).collect();
    line(format!("| tokens | found |{head}"));
    line(format!("|---|---|{}", "---|".repeat(depths.len())));
    for length in &report.lengths {
        let cells: String = depths
            .iter()
            .map(|depth| match length.depths.get(depth) {
                Some((right, of)) => format!(" {right}/{of} |"),
                None => " |".to_owned(),
            })
            .collect();
        line(format!("| {} | {} of {} |{cells}", length.length, length.correct, length.prompts));
    }
    out
}
