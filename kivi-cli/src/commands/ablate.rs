//! `ablate`: what each choice of a cache costs, by fake quantization.

use anyhow::Result;
use kivi_kernels::{Backend, Element};
use kivi_model::config::ModelConfig;
use kivi_model::fake::FakeCache;
use kivi_model::model::Model;
use kivi_model::perplexity::{self, Cut, Scores};
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;

use super::perplexity::{cut, not_scored, windows};
use crate::ablate::results::{Report, Setting, table};
use crate::ablate::{passkey, plan};
use crate::args::AblateArgs;
use crate::provenance::Provenance;
use crate::{budget, format, model_source, output, settings, setup};

/// Runs the command on `backend`; `quiet` leaves progress out.
pub fn run<B: Backend>(backend: &B, args: &AblateArgs, quiet: bool) -> Result<()> {
    let provenance = Provenance::new(backend, "ablate")?;
    let source = model_source::open(&args.model, !quiet)?;
    let config = ModelConfig::load(&source)?;
    let cut = cut(&args.text, &config)?;
    let caches = plan::settings(args, config.n_layers, B::Act::DTYPE)?;
    let tokenizer = Tokenizer::load(&source, config.vocab_size)?;
    let context = settings::context(None, &config)?.tokens;
    let prompts = passkey::prompts(args, &tokenizer, context)?;
    let (text_tokens, windows) = windows(&args.text, &tokenizer, cut)?;

    let shown = !quiet && !args.json;
    let (model, _) = setup::load(backend, &source, shown)?;
    let scores = score(backend, &model, &source, (args, shown), &caches, (cut, &windows))?;
    let right = find(backend, &model, (&source, &tokenizer), (args, shown), &caches, &prompts)?;
    let found = caches.iter().zip(scores.iter().zip(&right));
    let report = Report {
        provenance,
        model: source.place(""),
        file: format::path(&args.text.file),
        text_tokens,
        ctx_size: cut.ctx_size,
        stride: cut.stride,
        windows: windows.len(),
        scored_tokens: windows.len() * cut.stride,
        settings: found
            .map(|(cache, (scores, right))| Setting::new(cache, scores, &prompts, right))
            .collect(),
    };
    let json = || serde_json::to_string_pretty(&report).map(|json| json + "\n");
    output::write(&if args.json { json()? } else { table(&report) })
}

/// Perplexity and divergence of each setting.
fn score<B: Backend>(
    backend: &B,
    model: &Model<B>,
    source: &Source,
    (args, shown): (&AblateArgs, bool),
    caches: &[FakeCache],
    (cut, windows): (Cut, &[Vec<u32>]),
) -> Result<Vec<Scores>> {
    let settings: Vec<perplexity::Setting> = caches.iter().cloned().map(Into::into).collect();
    let engines = |batch| settings.iter().map(|setting| perplexity::sizes(setting, cut, batch)).collect();
    let batch_size = budget::batch(backend, model.config(), (&args.memory, args.batch_size), engines)?;
    let bar = output::bar(shown, "scoring", "{spinner} {msg}: {pos}/{len} tokens, {elapsed}, {eta} left");
    bar.set_length((windows.len() * cut.stride) as u64);
    let scores = perplexity::compare(backend, model, &settings, (cut, windows), batch_size, &mut |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    scores.map_err(|error| not_scored(error, source))
}

/// Which passkeys each setting finds.
fn find<B: Backend>(
    backend: &B,
    model: &Model<B>,
    (source, tokenizer): (&Source, &Tokenizer),
    (args, shown): (&AblateArgs, bool),
    caches: &[FakeCache],
    prompts: &[passkey::Prompt],
) -> Result<Vec<Vec<bool>>> {
    let (Some(first), Some(longest)) = (caches.first(), args.passkey.iter().max()) else {
        return Ok(vec![Vec::new(); caches.len()]);
    };
    let engines = |n| vec![passkey::sizes(first, *longest, n)];
    let at_a_time = budget::batch(backend, model.config(), (&args.memory, caches.len()), engines)?;
    let bar = output::bar(shown, "passkeys", "{msg} {bar:30} {pos}/{len} prompts, {elapsed}, {eta} left");
    bar.set_length(prompts.len() as u64);
    let right =
        passkey::run(backend, model, (source, tokenizer), (caches, at_a_time), prompts, &mut || bar.inc(1));
    bar.finish_and_clear();
    right
}
