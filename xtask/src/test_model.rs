//! `cargo xtask test-model`: a whole model on CUDA against the CPU backend, teacher-forced over a text, step by step.

mod difference;
mod golden;
mod replay;

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use half::{bf16, f16};
use kivi_kernels::{Backend, DType, Element};
use kivi_kernels_cuda::Cuda;
use kivi_kernels_ref::Cpu;
use kivi_model::config::ModelConfig;
use kivi_model::engine::{Engine, EngineConfig, Event, Request};
use kivi_model::model::Model;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};

use self::difference::{Difference, Limits, log_softmax};
use crate::device::{Act, Device};
use crate::test_kernels::emulate;

/// What is read if no text is given: enough for a short run.
const TEXT: &str = include_str!("../../README.md");
/// So many have time for a comparison with PyTorch.
const GOLDEN: usize = 512;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the model runs: cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda")]
    device: Device,
    /// Type of activations [default: one after the other]
    #[arg(long, value_name = "TYPE")]
    act: Option<Act>,
    /// Checkpoint directory [default: the kivi-tiny that kivi-cli embeds]
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Text to read [default: a page that is part of the program]
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Predictions to compare; from 512 of the built-in kivi-tiny on, a PyTorch model of the cache is compared with, too
    #[arg(long, value_name = "N", default_value_t = 512)]
    positions: usize,
    /// Tokens of a window; the first quarter is its prompt
    #[arg(short, long, value_name = "TOKENS", default_value_t = 1024)]
    ctx_size: usize,
    /// Windows at a time
    #[arg(short, long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Bits of keys and values
    #[arg(long, value_name = "LIST", default_value = "16,4,2", value_delimiter = ',')]
    kv_bits: Vec<u32>,
    /// Tokens of the longest text by which recorded steps are compared with others; 0 compares none
    #[arg(long, value_name = "N", default_value_t = 200)]
    replay: usize,
    /// Run the CUDA kernels on the CPU
    #[arg(long, conflicts_with = "device")]
    emulate: bool,
}

/// Does what the arguments ask for.
pub fn run(args: &Args) -> Result<()> {
    if args.emulate {
        emulate::again(&["--device", "cuda"])?;
        return device_lost();
    }
    let Device::Cuda(ordinal) = args.device else {
        return Err(anyhow!("--device: is compared with the CPU; give cuda or cuda:N"));
    };
    ensure!(
        args.ctx_size >= 4 && args.batch_size > 0,
        "--ctx-size: expected at least 4, --batch-size at least 1"
    );
    let model = args.model.clone().unwrap_or_else(|| crate::root().join("kivi-cli/assets/kivi-tiny"));
    let source = Source::Dir(model);
    let windows = windows(args, &source)?;
    println!(
        "{:<6} {:<5} {:>9} {:>9} {:>10} {:>10}  verdict",
        "dtype", "bits", "positions", "same top", "mean KLD", "max KLD"
    );
    let mut failed = 0;
    for act in args.act.map_or(vec![Act::F16, Act::Bf16], |act| vec![act]) {
        let device = || format!("--device {}", args.device);
        failed += match act {
            Act::F16 => on(args, &Cuda::<f16>::new(ordinal).with_context(device)?, &source, &windows)?,
            Act::Bf16 => on(args, &Cuda::<bf16>::new(ordinal).with_context(device)?, &source, &windows)?,
        };
    }
    ensure!(failed == 0, "{failed} settings are too far from the CPU");
    Ok(())
}

/// Wherever the device is lost, that is one line and an exit status of 1.
fn device_lost() -> Result<()> {
    for launch in ["1", "30", "100", "300"] {
        let output = emulate::command(&["--device", "cuda"])?.env("EMULATOR_LOST", launch).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines = errors.lines().filter(|line| line.contains("LAUNCH_FAILED); the device is lost")).count();
        let told = output.status.code() == Some(1) && lines == 1 && !errors.contains("panicked");
        ensure!(told, "the device is lost at launch {launch}: {}, {errors}", output.status);
    }
    println!("a device that is lost is one line");
    Ok(())
}

/// The text in windows, and as many as are needed.
fn windows(args: &Args, source: &Source) -> Result<Vec<Vec<u32>>> {
    let text = match &args.file {
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => TEXT.to_owned(),
    };
    let config = ModelConfig::load(source)?;
    let tokens = Tokenizer::load(source, config.vocab_size)?.encode(&text, true)?;
    let scored = args.ctx_size - args.ctx_size / 4;
    let mut windows: Vec<Vec<u32>> = tokens.chunks_exact(args.ctx_size).map(<[u32]>::to_vec).collect();
    windows.truncate(args.positions.div_ceil(scored));
    let missing = args.positions.saturating_sub(windows.len() * scored);
    ensure!(missing == 0, "--file: {missing} positions too few; give a longer text, or fewer --positions");
    let last = windows.len() * scored - args.positions;
    if let Some(window) = windows.last_mut() {
        window.truncate(args.ctx_size - last);
    }
    Ok(windows)
}

/// Compares at every width; returns how many failed.
fn on<B: Backend>(args: &Args, device: &B, source: &Source, windows: &[Vec<u32>]) -> Result<usize> {
    let cpu = Cpu::<f32>::new();
    let models = (Model::load(&cpu, source, &mut |_, _| {})?, Model::load(device, source, &mut |_, _| {})?);
    let rows = match B::Act::DTYPE {
        DType::Bf16 => KvDtype::Bf16,
        _ => KvDtype::F16,
    };
    // A run as short as CI's has no time for it.
    let golden = args.model.is_none() && args.positions >= GOLDEN;
    let mut failed = if golden { golden::compare(device, &models.1, rows)? } else { 0 };
    for &bits in &args.kv_bits {
        let width = Bits::try_from(bits).context("--kv-bits")?;
        let cache = KiviConfig::new(width, width, GroupSize::G32, 128)?.with_kv_dtype(rows);
        let mut difference = Difference::default();
        for windows in windows.chunks(args.batch_size) {
            let config = sizes(args.ctx_size, cache, windows.len());
            let a = Engine::new(&cpu, &models.0, config.clone())?;
            let b = Engine::new(device, &models.1, config)?;
            in_step(a, b, windows, args.ctx_size / 4, &mut difference)?;
        }
        if args.replay > 0 {
            failed += replay::compare(device, &models.1, cache, &windows[0], args.replay)?;
        }
        let pass = difference.is_within(Limits::of(B::Act::DTYPE, bits));
        failed += usize::from(!pass);
        println!("{:<6} {bits:<5} {}", B::Act::DTYPE.name(), difference.line(pass));
    }
    Ok(failed)
}

/// Room for so many windows of `tokens` tokens.
fn sizes(tokens: usize, cache: KiviConfig, windows: usize) -> EngineConfig {
    EngineConfig {
        pool_tokens: windows * cache.pages(tokens + 1).max(1) * cache.page_tokens(),
        cache: cache.into(),
        max_context: tokens + 1,
        max_seqs: windows,
        max_batched_tokens: windows * tokens,
    }
}

/// Asks for the logits of each token of a text behind its prompt.
fn request(text: &[u32], prompt: usize) -> Request {
    let mut request = Request::new(text[..prompt].to_vec(), text.len() - prompt);
    request.forced = text[prompt..].to_vec();
    request.want_logits = true;
    request
}

/// Runs both engines over the windows, and compares what they predict after each step.
fn in_step<A: Backend, B: Backend>(
    mut a: Engine<'_, A>,
    mut b: Engine<'_, B>,
    windows: &[Vec<u32>],
    prompt: usize,
    difference: &mut Difference,
) -> Result<()> {
    for window in windows {
        a.submit(request(window, prompt))?;
        b.submit(request(window, prompt))?;
    }
    while !a.is_idle() {
        let (expected, found) = (logits(a.step()?)?, logits(b.step()?)?);
        ensure!(expected.len() == found.len(), "the engines are not in step");
        expected.iter().zip(&found).for_each(|(expected, found)| difference.add(expected, found));
    }
    Ok(())
}

fn logits(events: Vec<Event>) -> Result<Vec<Vec<f32>>> {
    let logits = events.into_iter().filter_map(|event| match event {
        Event::Token { logits, .. } => logits.map(Ok),
        Event::Failed { error, .. } => Some(Err(error.into())),
        Event::Finished { .. } => None,
    });
    logits.collect()
}
