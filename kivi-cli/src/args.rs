//! The command line as it is typed; `settings.rs` and `commands/` say what it means.

mod ablate;
mod bench;
mod eval;
mod plot;
mod values;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use kivi_quant::{Bits, GroupSize, KvDtype};

pub use crate::device::{Device, Dtype};
pub use ablate::AblateArgs;
pub use bench::{BenchArgs, Preset};
pub use eval::{
    DataArgs, EvalArgs, EvalTask, GridArgs, Gsm8kArgs, LinesArgs, LongBenchArgs, NeedleArgs, PasskeyArgs,
    TaskArgs,
};
pub use plot::{PlotArgs, PlotKind};
pub use values::{KvBits, LayerList, MAX_TOKENS, PromptIds};

/// Transformer inference with a 2-bit key/value cache (KIVI).
#[derive(Debug, Parser)]
#[command(name = "kivi-cli", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Logs more, to standard error; twice for still more (RUST_LOG wins)
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet", help_heading = "Run")]
    pub verbose: u8,
    /// Nothing but the text and errors: no progress, no statistics
    #[arg(short, long, global = true, help_heading = "Run")]
    pub quiet: bool,
}

/// A subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue one or several prompts
    #[command(after_help = GENERATE_HELP)]
    Generate(Box<GenerateArgs>),
    /// Talk with a model, line by line
    #[command(after_help = CHAT_HELP)]
    Chat(Box<ChatArgs>),
    /// Say what 2 bits cost on a text: perplexity, and divergence from a 16-bit cache
    #[command(after_help = PERPLEXITY_HELP)]
    Perplexity(Box<PerplexityArgs>),
    /// Say what each choice of a cache costs: axes, bits, groups, windows
    #[command(after_help = ABLATE_HELP)]
    Ablate(Box<AblateArgs>),
    /// Say what a cache costs on a task
    Eval(Box<EvalArgs>),
    /// Time prompts and generation, and say what memory they take
    #[command(after_help = BENCH_HELP)]
    Bench(Box<BenchArgs>),
    /// Say what a checkpoint is, and what its cache takes, without loading its weights
    #[command(after_help = INSPECT_HELP)]
    Inspect(Box<InspectArgs>),
    /// Draw what bench, perplexity, eval, ablate or inspect found, as SVG or PNG
    #[command(after_help = PLOT_HELP)]
    Plot(PlotArgs),
    /// Say where kivi can compute, and why not elsewhere
    Devices(DevicesArgs),
}

impl Command {
    /// Where it computes and with which weights; none if it does not.
    pub fn computes(&self) -> Option<(&DeviceArgs, WeightsFrom<'_>)> {
        let checkpoint = WeightsFrom::Checkpoint;
        match self {
            Self::Generate(args) => Some((&args.run.device, checkpoint(&args.model))),
            Self::Chat(args) => Some((&args.run.device, checkpoint(&args.model))),
            Self::Perplexity(args) => Some((&args.device, checkpoint(&args.model))),
            Self::Ablate(args) => Some((&args.device, checkpoint(&args.model))),
            Self::Eval(args) => {
                let run = args.task.run();
                Some((&run.device, checkpoint(&run.model)))
            }
            Self::Bench(args) => match &args.random_weights {
                Some(shape) => Some((&args.device, WeightsFrom::Random(shape))),
                None => Some((&args.device, checkpoint(&args.model))),
            },
            Self::Inspect(args) => args.reads_text().then(|| (&args.device, checkpoint(&args.model))),
            Self::Plot(_) | Self::Devices(_) => None,
        }
    }
}

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightsFrom<'a> {
    /// A checkpoint.
    Checkpoint(&'a ModelArgs),
    /// Nowhere: they are random, in the shape that this names.
    Random(&'a str),
}

const GENERATE_HELP: &str = "\
Standard output has the new text and a line end, not the prompt. The text of one prompt is shown as it is made. \
Several prompts run as one batch; their texts follow each other in the order of -p, -f, --prompt-ids, each under a \
line `==> prompt 1 <==`. Statistics go to standard error.

Examples:
  kivi-cli generate --prompt \"Once upon a time there was a king who\"
  kivi-cli generate -m Llama-3.2-1B -f story.txt -n 100 --kv-bits 4:2 --json";

const CHAT_HELP: &str = "\
Each line is what you say; the cache keeps the conversation, so that only what is new is computed. Ctrl-C ends an answer, \
Ctrl-D or /exit the program; /help lists the other commands.

Examples:
  kivi-cli chat -m Qwen2.5-0.5B-Instruct --system \"Answer in one sentence.\"
  echo \"What is 2 + 2?\" | kivi-cli chat -n 20";

const PERPLEXITY_HELP: &str = "\
The first part of a window is read as a prompt; then each token is scored and taken, one a step, over the quantized cache that \
decoding sees. docs/quality.md has the protocol and what the columns mean.

Examples:
  kivi-cli perplexity -f story.txt
  kivi-cli perplexity -m Llama-3.2-1B -f wiki.txt -c 4096 --kv-bits 16,4,4:2,2 --limit 20 --json";

const ABLATE_HELP: &str = "\
The cache is not quantized: after each step, rows that a quantized one would have packed are replaced by what they would be read back \
as. So keys and values can be tried per channel and per token, and no memory is saved. Protocol and columns are those of `perplexity`.

Examples:
  kivi-cli ablate -f story.txt --limit 8
  kivi-cli ablate -f story.txt --keys channel,token --values token,channel --kv-bits 4,2 --json
  kivi-cli ablate -f story.txt --kv-skip-layers none --kv-skip-layers 0,-1 --passkey 2000";

const BENCH_HELP: &str = "\
Each list is combined with each other. Generation takes the likeliest token and prints nothing. A cache of --depth tokens is \
filled with what a short text left in its pages, again and again: it is as long, and lies as a real one does, but is not computed.

Examples:
  kivi-cli bench -p 512 -n 128 -d 0,4096 --kv-bits 16,2
  kivi-cli bench --random-weights llama-2-7b --preset paper --memory 80GiB --json results.json";

const INSPECT_HELP: &str = "\
Examples:
  kivi-cli inspect Llama-3.2-1B -c 32768 --batch-size 8
  kivi-cli inspect Llama-3.2-1B -f story.txt --layers 0,8,-1 --json > kv.json";

const PLOT_HELP: &str = "\
Text in a PNG is of the font that is part of the program. Several results are drawn together: rows of bench, caches of perplexity, \
and answers of eval beside each other.

Examples:
  kivi-cli plot bench.json --kind step-time -o step-time.svg
  kivi-cli plot 16-bits.json 2-bits.json -o passkey.png
  kivi-cli plot bench.json -o figures/";

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    /// Take each prompt as what a user says, and put it in the model's chat template
    #[arg(long, help_heading = "Prompt", conflicts_with_all = ["prompt_ids", "load_cache"])]
    pub chat: bool,
    #[command(flatten)]
    pub template: TemplateArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub bits: BitsArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    #[command(flatten)]
    pub files: CacheFileArgs,
    /// Longest sequence, prompt and new text together [default: the model's context]
    #[arg(short, long, value_name = "TOKENS", value_parser = values::tokens, help_heading = "Cache",
          aliases = ["max-model-len", "max-seq-len"], allow_negative_numbers = true)]
    pub ctx_size: Option<usize>,
    #[command(flatten)]
    pub run: RunArgs,
    /// Print one JSON object instead of text and statistics; times are in seconds
    #[arg(long, help_heading = "Run")]
    pub json: bool,
}

/// Arguments of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub template: TemplateArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub bits: BitsArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// Begin with the conversation in this file, which /save wrote
    #[arg(long, value_name = "FILE", help_heading = "Cache", conflicts_with = "system")]
    pub load_cache: Option<PathBuf>,
    /// Longest conversation [default: the model's context]
    #[arg(short, long, value_name = "TOKENS", value_parser = values::tokens, help_heading = "Cache",
          aliases = ["max-model-len", "max-seq-len"], allow_negative_numbers = true)]
    pub ctx_size: Option<usize>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// How a conversation becomes a prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
pub struct TemplateArgs {
    /// What the system says before the conversation
    #[arg(long, value_name = "TEXT", alias = "system-prompt")]
    pub system: Option<String>,
    /// Jinja file to use in place of the checkpoint's chat template
    #[arg(long, value_name = "PATH")]
    pub chat_template: Option<PathBuf>,
}

/// Where to compute.
#[derive(Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct DeviceArgs {
    /// Where to compute: auto (CUDA if it works), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
    /// Type of weights and activations on CUDA: auto (the checkpoint's; f16 if it is f32), f16 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "auto", hide_possible_values = true)]
    pub dtype: Dtype,
    /// Threads of the CPU to compute with; 0 means one a processor
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = values::threads,
          allow_negative_numbers = true)]
    pub threads: usize,
}

/// Where and how to compute.
#[derive(Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Prompt tokens of one step; longer prompts are cut, and later parts see a packed past
    #[arg(long, value_name = "TOKENS", default_value_t = 8192, value_parser = values::tokens,
          allow_negative_numbers = true)]
    pub max_num_batched_tokens: usize,
}

/// How much memory to take.
#[derive(Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct MemoryArgs {
    /// Share of a GPU's memory that may be in use; the cache has what weights and activations leave
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = values::share,
          allow_negative_numbers = true)]
    pub gpu_memory_utilization: f64,
    /// Most memory of the cache, as 512MiB or 20GiB, whatever --gpu-memory-utilization says
    #[arg(long, value_name = "SIZE", value_parser = values::bytes, allow_negative_numbers = true)]
    pub kv_cache_memory: Option<u64>,
}

/// A text to score, and how it is cut.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// Text to score; `-` reads standard input
    #[arg(short, long, value_name = "PATH", help_heading = "Text")]
    pub file: PathBuf,
    /// Tokens of a window [default: 2048, or the model's context]
    #[arg(short, long, value_name = "TOKENS", value_parser = values::tokens, help_heading = "Text",
          allow_negative_numbers = true)]
    pub ctx_size: Option<usize>,
    /// Tokens from one window to the next: the last so many of each are scored [default: half a window]
    #[arg(long, value_name = "TOKENS", value_parser = values::tokens, help_heading = "Text",
          allow_negative_numbers = true)]
    pub stride: Option<usize>,
    /// Windows to score [default: all]
    #[arg(long, value_name = "N", value_parser = values::tokens, help_heading = "Text",
          allow_negative_numbers = true)]
    pub limit: Option<usize>,
}

/// Arguments of `perplexity`.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// Bits of keys and values of each setting, as `16,4,4:2`; all are compared with 16, which need not be named
    #[arg(
        long,
        value_name = "LIST",
        default_value = "16,8,4,2",
        value_delimiter = ',',
        help_heading = "Cache",
        allow_negative_numbers = true
    )]
    pub kv_bits: Vec<KvBits>,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// Windows at a time
    #[arg(short, long, value_name = "N", default_value_t = 8, value_parser = values::batch_size, help_heading = "Run",
          allow_negative_numbers = true)]
    pub batch_size: usize,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Print one JSON object
    #[arg(long, help_heading = "Run")]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Tokens in the cache of each sequence [default: the model's context]
    #[arg(short, long, value_name = "TOKENS", value_parser = values::tokens, help_heading = "Cache",
          aliases = ["max-model-len", "max-seq-len"], allow_negative_numbers = true)]
    pub ctx_size: Option<usize>,
    /// Sequences
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = values::tokens,
          help_heading = "Cache", allow_negative_numbers = true)]
    pub batch_size: usize,
    /// Load the model, read this text over a 16-bit cache, and say how large its keys and values are; `-` reads standard input
    #[arg(long, value_name = "PROMPT", help_heading = "Keys and values", group = "text")]
    pub kv: Option<String>,
    /// The same with the text of this file
    #[arg(short, long, value_name = "PATH", help_heading = "Keys and values", group = "text")]
    pub file: Option<PathBuf>,
    /// Layers to show, as `0,3,-1` [default: four from the first to the last]
    #[arg(
        long,
        value_name = "LAYERS",
        allow_hyphen_values = true,
        help_heading = "Keys and values",
        requires = "text"
    )]
    pub layers: Option<LayerList>,
    /// KV head whose magnitudes --json gives
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = values::head, help_heading = "Keys and values",
          requires = "text", allow_negative_numbers = true)]
    pub head: usize,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Print one JSON object
    #[arg(long, help_heading = "Run")]
    pub json: bool,
}

impl InspectArgs {
    /// Whether there is a text whose keys and values are asked for.
    pub fn reads_text(&self) -> bool {
        self.kv.is_some() || self.file.is_some()
    }
}

/// Arguments of `devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print one JSON array
    #[arg(long, help_heading = "Run")]
    pub json: bool,
}

/// Which model.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Checkpoint directory in the Hugging Face layout, or ORG/NAME of the hub [default: the built-in kivi-tiny]
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub dir: Option<PathBuf>,
    /// The same, as a flag
    #[arg(short, long, value_name = "MODEL", alias = "model-id")]
    pub model: Option<PathBuf>,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "REV", value_parser = crate::hub_name::revision)]
    pub revision: Option<String>,
    /// Use of the hub what was downloaded before (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub offline: bool,
}

/// What to continue.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
pub struct PromptArgs {
    /// Text to continue; `-` reads standard input. May be repeated
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// File with the text to continue, without its last line end. May be repeated
    #[arg(short, long, value_name = "PATH")]
    pub file: Vec<PathBuf>,
    /// Token ids to continue, as `1,2,3`; nothing is added to them. May be repeated
    #[arg(long, value_name = "IDS")]
    pub prompt_ids: Vec<PromptIds>,
}

/// Prompts that `generate` runs at a time of a batch file.
pub const DEFAULT_BATCH: usize = 16;

/// Many prompts, in a file.
#[derive(Debug, Args)]
#[command(next_help_heading = "Batch file")]
pub struct BatchArgs {
    /// JSON lines with `prompt` or `prompt_ids`; may have id, max_tokens, stop, seed, temperature
    #[arg(long, value_name = "PATH", requires = "out",
          conflicts_with_all = ["prompt", "file", "prompt_ids", "load_cache", "save_cache", "json"])]
    pub batch_file: Option<PathBuf>,
    /// JSON lines with the results, as they are complete; the same command again goes on
    #[arg(long, value_name = "PATH", requires = "batch_file")]
    pub out: Option<PathBuf>,
    /// Prompts that run at a time [default: 16]
    #[arg(long, value_name = "N", value_parser = values::batch_size, requires = "batch_file",
          allow_negative_numbers = true)]
    pub batch_size: Option<usize>,
}

/// How tokens are chosen, and when to end.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text (defaults from generation_config.json, else greedy)")]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 256, value_parser = values::tokens,
          aliases = ["max-new-tokens", "n-predict", "predict", "sample-len"], allow_negative_numbers = true)]
    pub max_tokens: usize,
    /// 0 takes the likeliest token, 1 samples from what the model says
    #[arg(long, value_name = "T", value_parser = values::real, alias = "temp", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Sample from the K likeliest tokens; 0 means all
    #[arg(long, value_name = "K", value_parser = values::top_k, allow_negative_numbers = true)]
    pub top_k: Option<usize>,
    /// Sample from the fewest tokens whose probabilities reach P
    #[arg(long, value_name = "P", value_parser = values::real, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Sample from tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", value_parser = values::real, allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Makes tokens that were there before less likely; 1 is off
    #[arg(long, value_name = "X", value_parser = values::real, alias = "repeat-penalty",
          allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// The same seed gives the same text [default: random, and printed]
    #[arg(long, value_name = "N", value_parser = values::seed, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// End before this text. May be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on after the model's end token
    #[arg(long)]
    pub ignore_eos: bool,
}

/// Widths of the cache.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cache")]
pub struct BitsArgs {
    /// Bits of keys and values, 2, 4, 8 or 16 (not quantized), or `4:2` for keys 4 and values 2
    #[arg(long, value_name = "BITS|K:V", default_value = "2", allow_negative_numbers = true)]
    pub kv_bits: KvBits,
    /// Bits of keys, whatever --kv-bits says
    #[arg(long, value_name = "BITS", value_parser = values::bits, allow_negative_numbers = true)]
    pub k_bits: Option<Bits>,
    /// Bits of values, whatever --kv-bits says
    #[arg(long, value_name = "BITS", value_parser = values::bits, allow_negative_numbers = true)]
    pub v_bits: Option<Bits>,
}

/// The other settings of the cache.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheArgs {
    /// Elements that share a scale: 32, 64 or 128
    #[arg(long, value_name = "N", default_value = "32", value_parser = values::group_size,
          alias = "group-size", allow_negative_numbers = true)]
    pub kv_group_size: GroupSize,
    /// Recent tokens kept in full precision; a multiple of the group size
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = values::tokens,
          alias = "residual-length", allow_negative_numbers = true)]
    pub kv_residual: usize,
    /// First tokens of a text kept in full precision; the paper has none
    #[arg(long, value_name = "TOKENS", default_value_t = 0, value_parser = values::sinks,
          allow_negative_numbers = true)]
    pub kv_sink: usize,
    /// Type of what is kept in full precision: f16, bf16 or f32 [default: f16, with bf16 activations bf16]
    #[arg(long, value_name = "DTYPE", value_parser = values::kv_dtype)]
    pub kv_dtype: Option<KvDtype>,
}

/// Layers whose cache has settings of its own.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cache")]
pub struct LayerArgs {
    /// Layers that are not quantized, as `0,1,-1`; negative ones count from the last
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    pub kv_skip_layers: Option<LayerList>,
    /// TOML or JSON file with settings for some layers; see docs/quality.md
    #[arg(long, value_name = "PATH")]
    pub kv_policy: Option<PathBuf>,
}

/// Caches in files.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheFileArgs {
    /// Continue the text whose cache is in this file; the prompt, if there is one, comes after it
    #[arg(long, value_name = "FILE")]
    pub load_cache: Option<PathBuf>,
    /// Write the cache of the text to this file, to be loaded by another run
    #[arg(long, value_name = "FILE")]
    pub save_cache: Option<PathBuf>,
}
