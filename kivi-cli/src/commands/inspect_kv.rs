//! `inspect --kv`: says how large keys and values of a text are, and which channels stand out.

use std::fmt::Write;

use anyhow::{Context, Result, anyhow};
use kivi_kernels::{Backend, Element};
use kivi_model::cache::SequenceState;
use kivi_model::config::ModelConfig;
use kivi_model::engine::{Engine, Event, Request};
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_quant::{Bits, KiviConfig, PageLayout, Side};
use serde::Serialize;

use crate::args::{InspectArgs, PromptArgs};
use crate::failure::Usage;
use crate::format::thousands;
use crate::magnitudes::{OUTLIER_FACTOR, Summary, of_head};
use crate::{budget, model_source, output, policy, prompts, settings, setup, sizing};

/// Layers that are shown unless said.
const LAYERS: usize = 4;
/// Most tokens of a head that the JSON has.
const TOKENS: usize = 256;

/// What came of it.
#[derive(Serialize)]
struct Report {
    command: &'static str,
    model: String,
    device: String,
    prompt: String,
    prompt_tokens: usize,
    n_layers: usize,
    n_kv_heads: usize,
    head_dim: usize,
    kv_dtype: String,
    outlier_factor: f32,
    /// The head whose magnitudes are given.
    head: usize,
    layers: Vec<Layer>,
}

/// A layer.
#[derive(Serialize)]
struct Layer {
    layer: usize,
    /// All heads.
    heads: Vec<Head>,
    /// Places of the tokens whose magnitudes are given.
    tokens: Vec<usize>,
    key: Magnitudes,
    value: Magnitudes,
}

#[derive(Serialize)]
struct Head {
    head: usize,
    key: Summary,
    value: Summary,
}

#[derive(Serialize)]
struct Magnitudes {
    /// `[token][channel]`.
    magnitudes: Vec<Vec<f32>>,
}

/// Runs the command on `backend`; `quiet` leaves progress out.
pub fn run<B: Backend>(backend: &B, args: &InspectArgs, quiet: bool) -> Result<()> {
    let cache = settings::cache(&args.cache, Bits::B16, Bits::B16, B::Act::DTYPE)?.with_sink_tokens(0)?;
    let source = model_source::open(&args.model, !quiet)?;
    let config = ModelConfig::load(&source)?;
    let layers = layers(args, config.n_layers)?;
    if args.head >= config.n_kv_heads {
        let (most, found) = (config.n_kv_heads - 1, args.head);
        return Err(Usage(format!("--head: expected 0 to {most}, found {found}")).into());
    }
    let (prompt, tokens) = prompt(args, &source, &config)?;
    let prompt_tokens = tokens.len();
    let state = state(backend, args, (&source, &config), (cache, tokens), !quiet && !args.json)?;
    let layout = PageLayout::new(cache, config.head_dim)?;
    let of = |layer: &usize| {
        layer_report(&layout, &state, *layer, (args.head, config.n_kv_heads))
            .with_context(|| format!("layer {layer}"))
    };
    let report = Report {
        command: "inspect --kv",
        model: source.place(""),
        device: setup::device(backend),
        prompt,
        prompt_tokens,
        n_layers: config.n_layers,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        kv_dtype: cache.kv_dtype().to_string(),
        outlier_factor: OUTLIER_FACTOR,
        head: args.head,
        layers: layers.iter().map(of).collect::<Result<_>>()?,
    };
    // On one line: there are many numbers.
    let json = || serde_json::to_string(&report).map(|json| json + "\n");
    output::write(&if args.json { json()? } else { table(&report) })
}

/// The layers that are asked for, or some from the first to the last.
fn layers(args: &InspectArgs, n_layers: usize) -> Result<Vec<usize>> {
    let mut layers = match &args.layers {
        Some(list) => list
            .0
            .iter()
            .map(|layer| {
                policy::index(*layer, n_layers).map_err(|error| Usage(format!("--layers: {error}")).into())
            })
            .collect::<Result<Vec<_>>>()?,
        None => (0..LAYERS).map(|i| i * (n_layers - 1) / (LAYERS - 1)).collect(),
    };
    layers.sort_unstable();
    layers.dedup();
    Ok(layers)
}

/// The text, under its name, as tokens.
fn prompt(args: &InspectArgs, source: &Source, config: &ModelConfig) -> Result<(String, Vec<u32>)> {
    let texts = PromptArgs {
        prompt: args.kv.iter().cloned().collect(),
        file: args.file.iter().cloned().collect(),
        prompt_ids: Vec::new(),
    };
    let prompt = prompts::read(&texts, false)?.into_iter().next().ok_or_else(|| anyhow!("no prompt"))?;
    let tokenizer = Tokenizer::load(source, config.vocab_size)?;
    let tokens = prompt.tokens(&[], &tokenizer, settings::context(None, config)?)?;
    Ok((prompt.label, tokens))
}

/// What the cache holds after the text.
fn state<B: Backend>(
    backend: &B,
    args: &InspectArgs,
    (source, config): (&Source, &ModelConfig),
    (cache, tokens): (KiviConfig, Vec<u32>),
    progress: bool,
) -> Result<SequenceState> {
    let context = settings::context(None, config)?.tokens;
    let mut sizes = sizing::engine(cache.into(), config.n_layers, &[tokens.len()], 1, context, usize::MAX);
    let (model, _) = setup::load(backend, source, progress)?;
    budget::fit(backend, config, &mut sizes, (&args.memory, progress))?;
    let engine = Engine::new(backend, &model, sizes);
    let mut engine = engine.map_err(|error| setup::not_made(error, &source.place("config.json")))?;
    let id = engine.submit(Request { keep: true, ..Request::new(tokens, 1) })?;
    while !engine.is_idle() {
        for event in engine.step()? {
            if let Event::Failed { error, .. } = event {
                return Err(error.into());
            }
        }
    }
    engine.cache_state(id)?.ok_or_else(|| anyhow!("the text was not kept"))
}

fn layer_report(
    layout: &PageLayout,
    state: &SequenceState,
    layer: usize,
    (shown, n_kv_heads): (usize, usize),
) -> Result<Layer> {
    let of = &state.layers[layer];
    let rows = |head, side| of_head(layout, of, (head, n_kv_heads), state.len, side);
    let head = |head| {
        let summary = |side| rows(head, side).map(|rows| Summary::new(&rows));
        Ok(Head { head, key: summary(Side::Key)?, value: summary(Side::Value)? })
    };
    let first = of.left * layout.config().page_tokens();
    let step = (state.len - first).div_ceil(TOKENS).max(1);
    let thinned = |side| -> Result<Magnitudes> {
        let rows = rows(shown, side)?.into_iter().step_by(step);
        Ok(Magnitudes { magnitudes: rows.map(|row| row.into_iter().map(short).collect()).collect() })
    };
    Ok(Layer {
        layer,
        heads: (0..n_kv_heads).map(head).collect::<Result<_>>()?,
        tokens: (first..state.len).step_by(step).collect(),
        key: thinned(Side::Key)?,
        value: thinned(Side::Value)?,
    })
}

/// The number with four digits: more are not seen.
fn short(x: f32) -> f32 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

fn table(report: &Report) -> String {
    let mut out = format!(
        "model        {}   on {}\ntext         {}: {} tokens over a 16-bit cache\n\n",
        report.model,
        report.device,
        report.prompt,
        thousands(report.prompt_tokens as u64)
    );
    let mut line = |text: String| writeln!(out, "{text}").expect("a string grows");
    line("| layer | KV head | keys: largest channel over median | channels that stand out | values: largest over median | channels that stand out |".into());
    line("|---|---|---|---|---|---|".into());
    for (layer, head) in
        report.layers.iter().flat_map(|layer| layer.heads.iter().map(|head| (layer.layer, head)))
    {
        let [k, v] = [&head.key, &head.value].map(|summary| {
            let ratio = summary.max_over_median.map_or_else(|| "-".into(), |ratio| format!("{ratio:.1}"));
            format!("{ratio} | {}", outliers(&summary.outliers))
        });
        line(format!("| {layer} | {} | {k} | {v} |", head.head));
    }
    line(format!(
        "\nMeans of magnitudes over the text, keys after RoPE; a channel stands out above {OUTLIER_FACTOR} times the median."
    ));
    out
}

/// The first few, and how many there are besides.
fn outliers(channels: &[usize]) -> String {
    const SHOWN: usize = 6;
    let first: Vec<String> = channels.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = channels.len().saturating_sub(SHOWN);
    match (channels.is_empty(), more) {
        (true, _) => "none".into(),
        (_, 0) => first.join(", "),
        _ => format!("{} and {more} more", first.join(", ")),
    }
}
