//! What settings of the cache cost kivi-tiny: perplexity of the second half of pieces of a text, each token chosen by decoding
//! over the cached past, and bytes of the cache.
//!
//! ```sh
//! cargo run --release -p kivi-model --example cache_quality -- TEXT [PIECES]
//! ```
//!
//! `TEXT` is any file; it is cut into pieces of 2,048 tokens, of which the first `PIECES` (24) are read.

use std::error::Error;
use std::path::PathBuf;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{CacheUse, Engine, EngineConfig, Event, Request};
use kivi_model::model::Model;
use kivi_model::policy::CachePolicy;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_quant::{Bits, GroupSize, KiviConfig};

/// Tokens of a piece, and how many of them are the prompt.
const PIECE: usize = 2048;
const PROMPT: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let text = std::fs::read_to_string(args.next().ok_or("give a text file")?)?;
    let pieces: usize = args.next().map_or(Ok(24), |n| n.parse())?;
    let backend = Cpu::<f32>::new();
    let source = Source::Dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../kivi-cli/assets/kivi-tiny"));
    let model = Model::load(&backend, &source, &mut |_, _| {})?;
    let tokens = Tokenizer::load(&source, model.config().vocab_size)?.encode(&text, true)?;
    let pieces: Vec<&[u32]> = tokens.chunks_exact(PIECE).take(pieces).collect();
    println!("{} pieces, {} tokens scored", pieces.len(), pieces.len() * (PIECE - PROMPT));
    println!("| cache | perplexity | of 16 bits | bits an element | cache of {} tokens |", PIECE - 1);
    println!("|---|---|---|---|---|");
    let mut full = None;
    for (name, policy) in policies(model.config().n_layers)? {
        let (nll, cache) = score(&backend, &model, policy, &pieces)?;
        let full = *full.get_or_insert(nll);
        let (bits, kib) = (cache.used.bits_per_element(), cache.used.used() as f64 / 1024.0);
        println!(
            "| {name} | {:.3} | {:+.2} % | {bits:.2} | {kib:.0} KiB |",
            nll.exp(),
            ((nll - full).exp() - 1.0) * 100.0
        );
    }
    Ok(())
}

/// The settings that are compared, with their names; the first one is full precision.
fn policies(n_layers: usize) -> Result<Vec<(String, CachePolicy)>, Box<dyn Error>> {
    let bits = |k, v| KiviConfig::new(k, v, GroupSize::G32, 128);
    let (b16, b4, b2) = (bits(Bits::B16, Bits::B16)?, bits(Bits::B4, Bits::B4)?, bits(Bits::B2, Bits::B2)?);
    let with = |layers: &[usize], config| {
        layers.iter().fold(CachePolicy::from(b2), |policy, layer| policy.with_layer(*layer, config))
    };
    let last = n_layers - 1;
    let mut policies = vec![("16 bits".to_owned(), b16.into()), ("4 bits".to_owned(), b4.into())];
    policies.push(("2 bits".to_owned(), b2.into()));
    for sinks in [1, 4, 16] {
        policies.push((format!("2 bits, `--kv-sink {sinks}`"), b2.with_sink_tokens(sinks)?.into()));
    }
    for layers in [vec![0], vec![last], vec![0, last], vec![0, 1], (0..n_layers / 2).collect()] {
        let list = layers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        policies.push((format!("2 bits, `--kv-skip-layers {list}`"), with(&layers, b16)));
    }
    policies.push(("2 bits, layers 0 and 1 at 4 (`--kv-policy`)".to_owned(), with(&[0, 1], b4)));
    policies.push((format!("2 bits, layers 0 and {last} at 4 (`--kv-policy`)"), with(&[0, last], b4)));
    Ok(policies)
}

/// Mean negative log-likelihood of a token (nats), and what the cache of a piece took.
fn score(
    backend: &Cpu<f32>,
    model: &Model<Cpu<f32>>,
    cache: CachePolicy,
    pieces: &[&[u32]],
) -> Result<(f64, CacheUse), Box<dyn Error>> {
    let max_seqs = pieces.len().min(8);
    let config = EngineConfig {
        cache,
        max_context: PIECE + 1,
        max_seqs,
        max_batched_tokens: PROMPT * max_seqs,
        pool_tokens: (PIECE + 128) * max_seqs,
    };
    let mut engine = Engine::new(backend, model, config)?;
    for piece in pieces {
        let forced = piece[PROMPT..].to_vec();
        let prompt = piece[..PROMPT].to_vec();
        engine.submit(Request { forced, want_logits: true, ..Request::new(prompt, PIECE - PROMPT) })?;
    }
    let (mut sum, mut n, mut last) = (0.0, 0, CacheUse::default());
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Token { token, logits, .. } => {
                    sum += nll(&logits.unwrap_or_default(), token as usize);
                    n += 1;
                }
                Event::Finished { cache, .. } => last = cache,
                Event::Failed { error, .. } => return Err(error.into()),
            }
        }
    }
    Ok((sum / f64::from(n), last))
}

fn nll(logits: &[f32], token: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    sum.ln() - f64::from(logits[token] - max)
}
