//! `perplexity`: what settings of the cache cost on a text.

use std::fmt::Write;

use anyhow::{Result, bail};
use kivi_kernels::{Backend, DType, Element, KernelError};
use kivi_model::config::ModelConfig;
use kivi_model::perplexity::{self, Cut, PerplexityError, Scores, compare, sizes};
use kivi_model::policy::CachePolicy;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_quant::Bits;
use serde::Serialize;

use crate::args::{KvBits, PerplexityArgs, TextArgs};
use crate::failure::Usage;
use crate::format::{size, thousands};
use crate::provenance::Provenance;
use crate::{budget, model_source, output, policy, prompts, settings, setup};

/// Tokens of a window unless said.
const CTX_SIZE: usize = 2048;

/// Runs of places in a window that divergences are averaged over.
const POSITIONS: usize = 32;

/// What came of it.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    provenance: Provenance,
    model: String,
    file: String,
    text_tokens: usize,
    ctx_size: usize,
    stride: usize,
    windows: usize,
    scored_tokens: usize,
    settings: Vec<Setting>,
}

/// One setting of the cache; divergences are in nats.
#[derive(Serialize)]
struct Setting {
    cache: String,
    perplexity: f64,
    perplexity_error: f64,
    mean_nll: f64,
    mean_kld: f64,
    mean_kld_error: f64,
    median_kld: f64,
    p99_kld: f64,
    max_kld: f64,
    /// Means by place in the window: the first place of each run of places, and the mean.
    kld_by_position: Vec<(usize, f64)>,
    same_top: f64,
    bits_per_element: f64,
    cache_bytes: usize,
}

/// Runs the command on `backend`; `quiet` leaves progress out.
pub fn run<B: Backend>(backend: &B, args: &PerplexityArgs, quiet: bool) -> Result<()> {
    let provenance = Provenance::new(backend, "perplexity")?;
    let source = model_source::open(&args.model, !quiet)?;
    let config = ModelConfig::load(&source)?;
    let cut = cut(&args.text, &config)?;
    let policies = policies(args, config.n_layers, B::Act::DTYPE)?;
    let tokenizer = Tokenizer::load(&source, config.vocab_size)?;
    let (text_tokens, windows) = windows(&args.text, &tokenizer, cut)?;

    let (model, _) = setup::load(backend, &source, !quiet && !args.json)?;
    let scored = (windows.len() * cut.stride) as u64;
    let bar = output::bar(
        !quiet && !args.json,
        "scoring",
        "{spinner} {msg}: {pos}/{len} tokens, {elapsed}, {eta} left",
    );
    bar.set_length(scored);
    let settings: Vec<perplexity::Setting> = policies.iter().cloned().map(Into::into).collect();
    let engines = |batch| settings.iter().map(|setting| sizes(setting, cut, batch)).collect();
    let batch_size = budget::batch(backend, &config, (&args.memory, args.batch_size), engines)?;
    let scores = compare(backend, &model, &settings, (cut, &windows), batch_size, &mut |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let scores = scores.map_err(|error| not_scored(error, &source))?;
    let report = Report {
        provenance,
        model: source.place(""),
        file: crate::format::path(&args.text.file),
        text_tokens,
        ctx_size: cut.ctx_size,
        stride: cut.stride,
        windows: windows.len(),
        scored_tokens: windows.len() * cut.stride,
        settings: policies
            .iter()
            .zip(&scores)
            .map(|(policy, scores)| setting(policy, scores, windows.len()))
            .collect(),
    };
    let json = || serde_json::to_string_pretty(&report).map(|json| json + "\n");
    output::write(&if args.json { json()? } else { table(&report) })
}

/// How the flags cut a text for a model.
pub fn cut(args: &TextArgs, config: &ModelConfig) -> Result<Cut> {
    let context = settings::context(None, config)?;
    let ctx_size = args.ctx_size.unwrap_or(CTX_SIZE.min(context.tokens));
    settings::context(Some(ctx_size), config)?;
    let cut = Cut { ctx_size, stride: args.stride.unwrap_or(ctx_size / 2) };
    if cut.stride == 0 || cut.stride >= cut.ctx_size {
        let (most, found) = (cut.ctx_size.saturating_sub(1), cut.stride);
        return Err(Usage(format!(
            "--stride: expected 1 to {most} for --ctx-size {ctx_size}, found {found}"
        ))
        .into());
    }
    Ok(cut)
}

/// Why a text was not scored, with the file at fault.
pub fn not_scored<E: KernelError>(error: PerplexityError<E>, source: &Source) -> anyhow::Error {
    match error {
        PerplexityError::Engine(error) => setup::not_made(error, &source.place("config.json")),
        other => other.into(),
    }
}

/// The settings, 16 bits first.
fn policies(args: &PerplexityArgs, n_layers: usize, act: DType) -> Result<Vec<CachePolicy>> {
    let full = KvBits { k: Bits::B16, v: Bits::B16 };
    let others = args.kv_bits.iter().copied().filter(|bits| *bits != full);
    let policy = |bits: KvBits| {
        let config = settings::cache(&args.cache, bits.k, bits.v, act)?;
        if bits == full {
            Ok(config.with_sink_tokens(0)?.into())
        } else {
            policy::read(&args.layers, config, n_layers)
        }
    };
    std::iter::once(full).chain(others).map(policy).collect()
}

/// The number of tokens of the text, and its windows.
pub fn windows(args: &TextArgs, tokenizer: &Tokenizer, cut: Cut) -> Result<(usize, Vec<Vec<u32>>)> {
    let text = prompts::read_text(&args.file)?;
    let begin = tokenizer.encode("", true)?;
    let tokens = tokenizer.encode(&text, false)?;
    let mut windows = cut.windows(&begin, &tokens);
    windows.truncate(args.limit.unwrap_or(usize::MAX));
    if windows.is_empty() {
        let (file, n, least) =
            (crate::format::path(&args.file), tokens.len(), cut.ctx_size - begin.len().min(cut.ctx_size));
        bail!(
            "{file}: has {n} tokens, expected at least {least} for a window; give a longer text or a smaller --ctx-size"
        );
    }
    Ok((tokens.len(), windows))
}

fn setting(policy: &CachePolicy, scores: &Scores, windows: usize) -> Setting {
    let (perplexity, perplexity_error) = scores.perplexity();
    let (mean_kld, mean_kld_error) = scores.mean_kld();
    Setting {
        cache: crate::report::settings(policy),
        perplexity,
        perplexity_error,
        mean_nll: scores.mean_nll().0,
        mean_kld,
        mean_kld_error,
        median_kld: scores.kld_quantile(0.5),
        p99_kld: scores.kld_quantile(0.99),
        max_kld: scores.kld_quantile(1.0),
        kld_by_position: scores.kld_by_position(POSITIONS),
        same_top: scores.same_top_share(),
        bits_per_element: scores.cache.used.bits_per_element(),
        cache_bytes: scores.cache.used.used() / windows,
    }
}

fn table(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("a string grows");
    let n = |n: usize| thousands(n as u64);
    line(format!("model        {}   on {}", report.model, report.provenance.device_and_dtype()));
    line(format!(
        "text         {}: {} tokens, {} windows of {}, the last {} of each scored one token a step",
        report.file,
        n(report.text_tokens),
        n(report.windows),
        n(report.ctx_size),
        n(report.stride)
    ));
    line(String::new());
    line("| cache | perplexity | of first | mean KLD | median | 99 % | max | same top | bits an element | cache of a window |".into());
    line("|---|---|---|---|---|---|---|---|---|---|".into());
    for s in &report.settings {
        let of_first = (s.perplexity / report.settings[0].perplexity - 1.0) * 100.0;
        line(format!(
            "| {} | {:.3} ± {:.3} | {of_first:+.2} % | {:.6} ± {:.6} | {:.6} | {:.6} | {:.4} | {:.2} % | {:.2} | {} |",
            s.cache,
            s.perplexity,
            s.perplexity_error,
            s.mean_kld,
            s.mean_kld_error,
            s.median_kld,
            s.p99_kld,
            s.max_kld,
            s.same_top * 100.0,
            s.bits_per_element,
            size(s.cache_bytes as u64),
        ));
    }
    out
}
