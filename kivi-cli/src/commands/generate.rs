//! `generate`: continues prompts.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use kivi_kernels::{Backend, Element, KernelError};
use kivi_model::config::ModelConfig;
use kivi_model::engine::{Engine, EngineConfig, Request};
use kivi_model::generate::{GenerateError, Generation, Progress, TextRequest, generate};
use kivi_model::generation_config::GenerationConfig;
use kivi_model::model::Model;
use kivi_model::sampler::SamplingParams;
use kivi_model::saved::SavedCache;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_quant::KiviConfig;

use crate::args::{CacheFileArgs, GenerateArgs, SamplingArgs};
use crate::failure::Usage;
use crate::format::path;
use crate::output::{self, Screen};
use crate::prompts::{self, Prompt};
use crate::report::{self, Run};
use crate::settings::{self, Seed};
use crate::{budget, json, model_source, policy, setup, sizing};

/// Runs the command on `backend`; `quiet` leaves progress and statistics out.
pub fn run<B: Backend>(backend: &B, args: &GenerateArgs, quiet: bool) -> Result<()> {
    if let (Some(file), Some(out)) = (&args.batch.batch_file, &args.batch.out) {
        return super::batch::run(backend, args, file, out, quiet);
    }
    if args.batch.out.is_some() || args.batch.batch_size.is_some() {
        // Clap asks for no flag that another one given forbids.
        return Err(Usage("--out and --batch-size: expected --batch-file with them".into()).into());
    }
    settings::check_text(&args.sampling)?;
    let (k_bits, v_bits) = settings::bits(&args.bits);
    let cache = settings::cache(&args.cache, k_bits, v_bits, B::Act::DTYPE)?;
    model_source::refuse_prompt(&args.model)?;
    let source = model_source::open(&args.model, !quiet)?;
    let prompts = prompts::read(&args.prompts, args.files.load_cache.is_some())?;
    check_files(&args.files, prompts.len())?;

    let start = Instant::now();
    let mut job = Job::new(args, &source, cache, &prompts)?;
    let (seed, policy) = (job.seed, job.sizes.cache.clone());
    let progress = !quiet && !args.json;
    let (model, weights_bytes) = setup::load(backend, &source, progress)?;
    let load = start.elapsed();
    budget::fit(backend, model.config(), &mut job.sizes, (&args.run.memory, progress))?;
    let screen = Screen::new(prompts.len() == 1 && !args.json, progress);
    let (setup, texts) = job.run(backend, &model, &prompts, screen, args.files.save_cache.as_deref())?;
    let run = Run {
        model: source.place(""),
        device: setup::device(backend),
        weights_bytes,
        cache: policy,
        seed,
        load,
        setup,
        texts: prompts.into_iter().map(|prompt| prompt.label).zip(texts).collect(),
    };
    show(&run, args.json, quiet)
}

/// Caches in files are those of one text; a file that could not be written is better known before the text is made.
fn check_files(files: &CacheFileArgs, prompts: usize) -> Result<()> {
    let flags = [("--load-cache", &files.load_cache), ("--save-cache", &files.save_cache)];
    if let Some((flag, _)) = flags.iter().find(|(_, file)| file.is_some() && prompts > 1) {
        return Err(Usage(format!("{flag}: expected one prompt, found {prompts}")).into());
    }
    let Some(file) = &files.save_cache else { return Ok(()) };
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = match dir.is_dir() {
        _ if file.is_dir() => format!("{}: a directory", path(file)),
        _ if file.exists() && !file.is_file() => "it is not a regular file".to_owned(),
        true => return Ok(()),
        false => format!("{}: no such directory", path(dir)),
    };
    bail!("{}: cannot be written: {found}; give a path in a directory that exists", path(file));
}

/// All that is known before the weights are loaded.
struct Job {
    /// The text to continue, and the file that it is from.
    past: Option<(String, SavedCache)>,
    config_file: String,
    tokenizer: Tokenizer,
    requests: Vec<TextRequest>,
    sizes: EngineConfig,
    /// The seed, if anything is drawn.
    seed: Option<Seed>,
}

impl Job {
    /// Reads what is small in the checkpoint, and tokenizes the prompts.
    fn new(args: &GenerateArgs, source: &Source, cache: KiviConfig, prompts: &[Prompt]) -> Result<Self> {
        let config = ModelConfig::load(source)?;
        let context = settings::context(args.ctx_size, &config)?;
        let recommended = GenerationConfig::load(source, &config)?;
        let tokenizer = Tokenizer::load(source, config.vocab_size)?;
        let past =
            args.files.load_cache.as_ref().map(|file| SavedCache::read(file).map(|past| (path(file), past)));
        let past = past.transpose()?;
        let before = past.as_ref().map_or(&[][..], |(_, past)| past.tokens());
        let template = setup::template(&args.template, source, args.chat)?;
        let tokens = prompts.iter().map(|prompt| match &template {
            Some(template) => prompt.said(template, args.template.system.as_deref(), &tokenizer, context),
            None => prompt.tokens(before, &tokenizer, context),
        });
        let tokens = tokens.collect::<Result<Vec<_>>>()?;
        let lens: Vec<usize> = tokens.iter().map(Vec::len).collect();
        let (max_tokens, budget) = (args.sampling.max_tokens, args.run.max_num_batched_tokens);
        let policy = policy::read(&args.layers, cache, config.n_layers)?;
        let sizes = sizing::engine(policy, config.n_layers, &lens, max_tokens, context.tokens, budget);
        tracing::info!("engine: {sizes:?}");
        let seed = Seed::new(args.sampling.seed);
        let sampling = settings::sampling(&args.sampling, &recommended, seed);
        let eos = if args.sampling.ignore_eos { Vec::new() } else { recommended.eos_token_ids };
        Ok(Self {
            past,
            config_file: source.place("config.json"),
            tokenizer,
            seed: (sampling.temperature > 0.0).then_some(seed),
            requests: requests(tokens, &args.sampling, &sampling, &eos),
            sizes,
        })
    }

    /// Makes the texts; returns how long it took to make the engine, too.
    fn run<B: Backend>(
        mut self,
        backend: &B,
        model: &Model<B>,
        prompts: &[Prompt],
        mut screen: Screen,
        save_cache: Option<&Path>,
    ) -> Result<(Duration, Vec<Generation>)> {
        let start = Instant::now();
        let engine = Engine::new(backend, model, self.sizes);
        let mut engine = engine.map_err(|error| setup::not_made(error, &self.config_file))?;
        for TextRequest { request, .. } in &mut self.requests {
            request.keep = save_cache.is_some();
            if let Some((file, past)) = &self.past {
                request.past = Some(engine.restore(past).map_err(|error| anyhow!("{file}: {error}"))?);
            }
        }
        let setup = start.elapsed();
        screen.start(self.requests.iter().map(|request| request.request.prompt.len()).sum());
        let texts = generate(&mut engine, &self.tokenizer, self.requests, &mut |progress| match progress {
            Progress::Text { text, .. } => screen.text(text),
            Progress::Step { prompt_done, .. } => {
                screen.prompt(prompt_done);
                ControlFlow::Continue(())
            }
        });
        // Also after an error, which begins a line then.
        let finished = screen.finish();
        let texts = texts.map_err(|error| named(error, prompts))?;
        finished?;
        if let (Some(file), Some(text)) = (save_cache, texts.first()) {
            save(&engine, text, file)?;
        }
        Ok((setup, texts))
    }
}

/// Writes the cache of a text, unless it failed; what failed is reported later.
fn save<B: Backend>(engine: &Engine<'_, B>, text: &Generation, file: &Path) -> Result<()> {
    match engine.save(text.id).context("reading the cache")? {
        Some(saved) => Ok(saved.write(file)?),
        None => Ok(()),
    }
}

/// What the engine is to do for each prompt.
fn requests(
    prompts: Vec<Vec<u32>>,
    args: &SamplingArgs,
    sampling: &SamplingParams,
    eos: &[u32],
) -> Vec<TextRequest> {
    let request = |prompt| Request {
        sampling: sampling.clone(),
        eos: eos.to_vec(),
        ..Request::new(prompt, args.max_tokens)
    };
    let text_request = |prompt| TextRequest { request: request(prompt), stop: args.stop.clone() };
    prompts.into_iter().map(text_request).collect()
}

/// An error of the run, with the prompt at fault under the name that it was given.
fn named<E: KernelError>(error: GenerateError<E>, prompts: &[Prompt]) -> anyhow::Error {
    match error {
        GenerateError::Submit { index, error } => anyhow!("{}", prompts[index].refused(&error)),
        other => other.into(),
    }
}

/// Prints what is not printed yet; if a text failed, that is all that standard error says.
fn show(run: &Run, json: bool, quiet: bool) -> Result<()> {
    if json {
        output::write(&(json::of(run)? + "\n"))?;
    } else if run.texts.len() > 1 {
        output::write(&blocks(&run.texts))?;
    }
    for (label, text) in &run.texts {
        if let Err(error) = &text.end {
            bail!("{}: {label}: {error}", run.model);
        }
    }
    if !json && !quiet {
        eprint!("\n{}", report::statistics(run));
    }
    Ok(())
}

/// Several texts, each under the name of its prompt.
fn blocks(texts: &[(String, Generation)]) -> String {
    let block = |(label, text): &(String, Generation)| {
        let end = if text.text.ends_with('\n') { "" } else { "\n" };
        format!("==> {label} <==\n{}{end}", text.text)
    };
    texts.iter().map(block).collect::<Vec<_>>().join("\n")
}
