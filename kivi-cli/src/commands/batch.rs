//! `generate --batch-file`: continues the prompts of a file.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use kivi_kernels::{Backend, DType, Element};
use kivi_model::chat::ChatTemplate;
use kivi_model::config::ModelConfig;
use kivi_model::engine::{Engine, EngineConfig};
use kivi_model::generation_config::GenerationConfig;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_model::weights::Checkpoint;
use serde_json::json;

use crate::args::{DEFAULT_BATCH, GenerateArgs, MemoryArgs};
use crate::batch::driver::{Defaults, Done, Driver};
use crate::batch::input::{Line, Lines};
use crate::batch::results::{self, Results, Settings};
use crate::format::{rate, size, thousands};
use crate::settings::{self, Seed};
use crate::{budget, memory, model_source, output, policy, setup, sizing};

/// Runs the prompts of `file` that have no result in `out`.
pub fn run<B: Backend>(backend: &B, args: &GenerateArgs, file: &Path, out: &Path, quiet: bool) -> Result<()> {
    settings::check_text(&args.sampling)?;
    let start = Instant::now();
    results::check(out, file)?;
    model_source::refuse_prompt(&args.model)?;
    let source = model_source::open(&args.model, !quiet)?;
    let seed = Seed::new(args.sampling.seed);
    let plan = Plan::new(args, &source, file, seed, B::Act::DTYPE)?;
    let results = Results::open(out, plan.settings(args, &source), args.sampling.seed, seed.value)?;
    let (before, seed) = (results.done.len(), results.seed);
    let done = if before < plan.lines {
        plan.run(backend, &source, file, results, (&args.run.memory, quiet))?
    } else {
        Done::default()
    };
    if done.failed > 0 {
        tracing::warn!("{} of {} prompts failed; their results have an error", done.failed, done.lines);
    }
    if !quiet {
        eprint!("{}", statistics(&done, before, seed, start.elapsed()));
    }
    Ok(())
}

/// All that is known before the weights are loaded.
struct Plan {
    config_file: String,
    /// What tells the model from others.
    fingerprint: String,
    tokenizer: Tokenizer,
    defaults: Defaults,
    sizes: EngineConfig,
    lines: usize,
    sha256: String,
}

impl Plan {
    /// Reads what is small in the checkpoint, and checks every line.
    fn new(args: &GenerateArgs, source: &Source, file: &Path, seed: Seed, act: DType) -> Result<Self> {
        let (k_bits, v_bits) = settings::bits(&args.bits);
        let cache = settings::cache(&args.cache, k_bits, v_bits, act)?;
        let config = ModelConfig::load(source)?;
        let context = settings::context(args.ctx_size, &config)?;
        let recommended = GenerationConfig::load(source, &config)?;
        let tokenizer = Tokenizer::load(source, config.vocab_size)?;
        let policy = policy::read(&args.layers, cache, config.n_layers)?;
        let defaults = Defaults {
            max_tokens: args.sampling.max_tokens,
            stop: args.sampling.stop.clone(),
            sampling: settings::sampling(&args.sampling, &recommended, seed),
            eos: if args.sampling.ignore_eos { Vec::new() } else { recommended.eos_token_ids },
            context,
            template: setup::template(&args.template, source, args.chat)?,
            system: args.template.system.clone(),
        };
        let fingerprint = Checkpoint::open(source)?.fingerprint(&format!("{config:?}"));
        let Checked { totals, rows, lines, sha256 } = check(file, &tokenizer, &defaults)?;
        let places = args.batch.batch_size.unwrap_or(DEFAULT_BATCH);
        // The longest sequences that can run at a time: the pool has room for any others, then.
        let longest = &totals[..totals.len().min(places)];
        let mut sizes = sizing::engine(policy, config.n_layers, longest, 0, context.tokens, usize::MAX);
        sizes.max_batched_tokens = rows.saturating_add(sizes.max_seqs).min(args.run.max_num_batched_tokens);
        tracing::info!("engine: {sizes:?}");
        let config_file = source.place("config.json");
        Ok(Self { config_file, fingerprint, tokenizer, defaults, sizes, lines, sha256 })
    }

    /// What the results depend on.
    fn settings(&self, args: &GenerateArgs, source: &Source) -> Settings {
        let Defaults { max_tokens, stop, sampling, eos, context, template, system } = &self.defaults;
        let sampling = kivi_model::sampler::SamplingParams { seed: 0, ..sampling.clone() };
        let settings = [
            ("batch file (SHA-256)", json!(self.sha256)),
            ("model", json!(source.place(""))),
            ("weights (fingerprint)", json!(self.fingerprint)),
            ("chat template", json!(template.as_ref().map(ChatTemplate::fingerprint))),
            ("system", json!(system)),
            ("cache", json!(format!("{:?}", self.sizes.cache))),
            ("max tokens", json!(max_tokens)),
            ("stop", json!(stop)),
            ("sampling", json!(format!("{sampling:?}"))),
            ("end tokens", json!(eos)),
            ("context", json!(context.tokens)),
            ("max batched tokens", json!(args.run.max_num_batched_tokens)),
        ];
        settings.map(|(key, value)| (key.to_owned(), value)).into()
    }

    fn run<B: Backend>(
        &self,
        backend: &B,
        source: &Source,
        file: &Path,
        results: Results,
        (memory, quiet): (&MemoryArgs, bool),
    ) -> Result<Done> {
        let (model, _) = setup::load(backend, source, !quiet)?;
        let mut sizes = self.sizes.clone();
        budget::fit(backend, model.config(), &mut sizes, (memory, !quiet))?;
        let engine = Engine::new(backend, &model, sizes);
        let engine = engine.map_err(|error| setup::not_made(error, &self.config_file))?;
        let bar = output::bar(!quiet, "prompts", "{msg} {bar:30} {pos}/{len}, {elapsed}, {eta} left");
        bar.set_length(self.lines as u64);
        bar.set_position(results.done.len() as u64);
        bar.reset_eta();
        let driver = Driver {
            engine,
            tokenizer: &self.tokenizer,
            defaults: &self.defaults,
            places: self.sizes.max_seqs,
            rows: self.sizes.max_batched_tokens,
            results,
            bar: bar.clone(),
        };
        let mut lines = Lines::open(file)?;
        let done = driver.run(&mut || lines.next());
        bar.finish_and_clear();
        done
    }
}

/// What a batch file holds.
struct Checked {
    /// Lengths that sequences may reach, the longest first.
    totals: Vec<usize>,
    /// Tokens of all prompts that can run.
    rows: usize,
    lines: usize,
    sha256: String,
}

/// Checks every line, and keeps no more than ids and lengths.
fn check(file: &Path, tokenizer: &Tokenizer, defaults: &Defaults) -> Result<Checked> {
    let mut lines = Lines::open(file)?;
    let mut ids = HashMap::new();
    let (mut totals, mut rows) = (Vec::new(), 0);
    while let Some(line) = lines.next()? {
        if let Some(first) = ids.insert(line.id.to_string(), line.number) {
            return Err(
                lines.error(line.number, &format!("id {} is that of line {first}, too; change one", line.id))
            );
        }
        // One that does not fit has an error for a result; the others go on.
        if let Ok(tokens) = defaults.tokens(&line, tokenizer) {
            rows += tokens.len();
            totals.push(total(&line, tokens.len(), defaults));
        }
    }
    totals.sort_unstable_by(|a, b| b.cmp(a));
    if totals.is_empty() {
        totals.push(1);
    }
    Ok(Checked { totals, rows, lines: ids.len(), sha256: lines.sha256() })
}

fn total(line: &Line, prompt: usize, defaults: &Defaults) -> usize {
    prompt.saturating_add(defaults.max_tokens(line)).min(defaults.context.tokens)
}

/// The statistics, one line a topic.
fn statistics(done: &Done, before: usize, seed: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let tokens = |n: usize| format!("{} tokens", thousands(n as u64));
    let peak = memory::peak_bytes().map_or("unknown".to_owned(), size);
    let lines = [
        (
            "prompts",
            format!("{} in {seconds:.2} s   {} failed   {before} were done before", done.lines, done.failed),
        ),
        ("prompt", tokens(done.prompt_tokens)),
        (
            "generated",
            format!("{}  {} tok/s", tokens(done.generated_tokens), rate(done.generated_tokens, seconds)),
        ),
        ("memory", format!("peak {peak}")),
        ("seed", seed.to_string()),
    ];
    lines.map(|(name, text)| format!("{name:<12} {text}\n")).concat()
}
