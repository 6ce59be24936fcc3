//! `chat`: a conversation, line by line.

use anyhow::Result;
use kivi_kernels::{Backend, Element};
use kivi_model::config::ModelConfig;
use kivi_model::engine::Engine;
use kivi_model::generation_config::GenerationConfig;
use kivi_model::tokenizer::Tokenizer;

use crate::args::ChatArgs;
use crate::chat::{Answers, Session, repl};
use crate::settings::{self, Seed};
use crate::{budget, model_source, policy, setup, sizing};

/// Runs the command on `backend`; `quiet` leaves progress and hints out.
pub fn run<B: Backend>(backend: &B, args: &ChatArgs, quiet: bool) -> Result<()> {
    settings::check_text(&args.sampling)?;
    let (k_bits, v_bits) = settings::bits(&args.bits);
    let cache = settings::cache(&args.cache, k_bits, v_bits, B::Act::DTYPE)?;
    let source = model_source::open(&args.model, !quiet)?;
    let config = ModelConfig::load(&source)?;
    let context = settings::context(args.ctx_size, &config)?;
    let recommended = GenerationConfig::load(&source, &config)?;
    let tokenizer = Tokenizer::load(&source, config.vocab_size)?;
    let Some(template) = setup::template(&args.template, &source, true)? else { return Ok(()) };
    let policy = policy::read(&args.layers, cache, config.n_layers)?;
    let mut sizes = sizing::chat(policy, config.n_layers, context.tokens, args.run.max_num_batched_tokens);

    let (model, _) = setup::load(backend, &source, !quiet)?;
    budget::fit(backend, model.config(), &mut sizes, (&args.run.memory, !quiet))?;
    let engine = Engine::new(backend, &model, sizes);
    let engine = engine.map_err(|error| setup::not_made(error, &source.place("config.json")))?;
    let seed = Seed::new(args.sampling.seed);
    let answers = Answers {
        max_tokens: args.sampling.max_tokens,
        sampling: settings::sampling(&args.sampling, &recommended, seed),
        eos: if args.sampling.ignore_eos { Vec::new() } else { recommended.eos_token_ids },
        stop: args.sampling.stop.clone(),
    };
    if seed.random && answers.sampling.temperature > 0.0 && !quiet {
        eprintln!("seed         {}", seed.value);
    }
    let mut session =
        Session::new(engine, tokenizer, template, answers, context, args.template.system.as_deref());
    if let Some(file) = &args.load_cache {
        session.load(file)?;
    }
    repl::run(&mut session, quiet)
}
