//! Arguments of `eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::eval::longbench::tasks::{PAPER, Parts};

use super::{BitsArgs, CacheArgs, DeviceArgs, LayerArgs, MemoryArgs, ModelArgs, values};

const PASSKEY_HELP: &str = "\
The whole prompt is read in full precision, as any prompt; the answer is made over the quantized cache. It is right if it has the \
number.

Examples:
  kivi-cli eval passkey --lengths 2000 --kv-bits 2 --out answers.jsonl";

const NEEDLE_HELP: &str = "\
The number stands at an end of a sentence, in essays that are cut to the length. They are those of gkamradt/LLMTest_NeedleInAHaystack. \
docs/quality.md has the protocol.

Examples:
  kivi-cli eval needle -m Llama-3.2-1B --data DIR --lengths 4000,8000,16000,32000 --kv-bits 2 --json";

const GSM8K_HELP: &str = "\
The examples are the first problems of the training set with their solutions; the problems are those of the test set, in order. \
The data is that of openai/grade-school-math. docs/quality.md has the protocol.

Examples:
  kivi-cli eval gsm8k -m Llama-3.2-1B --data DIR --kv-bits 2 --out answers.jsonl
  kivi-cli eval gsm8k --data DIR --limit 20 --json";

const LINES_HELP: &str = "\
The lines are made up, in the format of LongChat's test: `line NAME: REGISTER_CONTENT is <N>`. An answer is right if its first number is \
that of the line.

Examples:
  kivi-cli eval lines -m Llama-3.2-1B --lines 200,400,600 --kv-bits 2";

const LONGBENCH_HELP: &str = "\
LIST is of all (21 tasks), e (the 13 of LongBench-E, by length), or names as qasper or, for LongBench-E, qasper_e; without it, the 8 \
tasks of the KIVI paper. --limit is rows of each task. The data is that of THUDM/LongBench. docs/quality.md has the protocol.

Examples:
  kivi-cli eval longbench -m Llama-3.2-1B --data DIR --kv-bits 2 --max-length 8000 --out answers.jsonl
  kivi-cli eval longbench --data DIR --tasks multi_news --limit 5 --json";

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The task
    #[command(subcommand)]
    pub task: EvalTask,
}

/// A task.
#[derive(Debug, Subcommand)]
pub enum EvalTask {
    /// Find a number of five digits that is hidden in a long text
    #[command(after_help = PASSKEY_HELP)]
    Passkey(PasskeyArgs),
    /// Find a number of seven digits that is hidden in essays
    #[command(after_help = NEEDLE_HELP)]
    Needle(NeedleArgs),
    /// Solve problems of grade-school arithmetic, step by step
    #[command(after_help = GSM8K_HELP)]
    Gsm8k(Gsm8kArgs),
    /// Say the number of one line among many
    #[command(after_help = LINES_HELP)]
    Lines(LinesArgs),
    /// Answer, summarise and complete over long texts: LongBench
    #[command(name = "longbench", after_help = LONGBENCH_HELP)]
    LongBench(LongBenchArgs),
}

impl EvalTask {
    /// What every task has.
    pub fn run(&self) -> &TaskArgs {
        match self {
            Self::Passkey(args) => &args.run,
            Self::Needle(args) => &args.run,
            Self::Gsm8k(args) => &args.run,
            Self::Lines(args) => &args.run,
            Self::LongBench(args) => &args.run,
        }
    }
}

/// Arguments of every task.
#[derive(Debug, Args)]
pub struct TaskArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The first so many prompts only
    #[arg(long, value_name = "N", value_parser = values::tokens, help_heading = "Task", allow_negative_numbers = true)]
    pub limit: Option<usize>,
    /// JSON lines with the answers; the same command again goes on
    #[arg(long, value_name = "PATH", help_heading = "Task")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub bits: BitsArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// Prompts at a time
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = values::batch_size, help_heading = "Run",
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

/// Arguments of a task that needs files.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Folder with the data of the tasks [default: that of the variable KIVI_DATA]
    #[arg(long, value_name = "DIR", help_heading = "Task")]
    pub data: Option<PathBuf>,
}

/// Prompts of several lengths, with something hidden at several depths.
#[derive(Debug, Args)]
pub struct GridArgs {
    /// Tokens of the prompts, at most
    #[arg(long, value_name = "LIST", default_value = "500,2000,7900", value_delimiter = ',',
          value_parser = values::tokens, help_heading = "Task", allow_negative_numbers = true)]
    pub lengths: Vec<usize>,
    /// Places of the number in a text
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = values::depths, help_heading = "Task",
          allow_negative_numbers = true)]
    pub depths: usize,
    /// Prompts of each length and place
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = values::batch_size, help_heading = "Task",
          allow_negative_numbers = true)]
    pub trials: usize,
    /// The same seed hides the same numbers
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = values::seed, help_heading = "Task",
          allow_negative_numbers = true)]
    pub seed: u64,
}

/// Arguments of `eval passkey`.
#[derive(Debug, Args)]
pub struct PasskeyArgs {
    #[command(flatten)]
    pub grid: GridArgs,
    #[command(flatten)]
    pub run: TaskArgs,
}

/// Arguments of `eval needle`.
#[derive(Debug, Args)]
pub struct NeedleArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub grid: GridArgs,
    /// Digits of the number
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = values::digits, help_heading = "Task",
          allow_negative_numbers = true)]
    pub digits: u32,
    #[command(flatten)]
    pub run: TaskArgs,
}

/// Arguments of `eval gsm8k`.
#[derive(Debug, Args)]
pub struct Gsm8kArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Worked examples before each problem: the first of the training set
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = values::count, help_heading = "Task",
          allow_negative_numbers = true)]
    pub shots: usize,
    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, value_parser = values::tokens,
          help_heading = "Task", allow_negative_numbers = true)]
    pub max_tokens: usize,
    /// Take examples and problem as what a user says, and put them in the model's chat template
    #[arg(long, help_heading = "Task")]
    pub chat: bool,
    #[command(flatten)]
    pub run: TaskArgs,
}

/// Arguments of `eval lines`.
#[derive(Debug, Args)]
pub struct LinesArgs {
    /// Lines of a prompt; each takes 15 to 30 tokens
    #[arg(long, value_name = "LIST", default_value = "20,100,200", value_delimiter = ',',
          value_parser = values::lines, help_heading = "Task", allow_negative_numbers = true)]
    pub lines: Vec<usize>,
    /// Prompts of each number of lines
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = values::batch_size, help_heading = "Task",
          allow_negative_numbers = true)]
    pub trials: usize,
    /// The same seed makes the same lines
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = values::seed, help_heading = "Task",
          allow_negative_numbers = true)]
    pub seed: u64,
    #[command(flatten)]
    pub run: TaskArgs,
}

/// Arguments of `eval longbench`.
#[derive(Debug, Args)]
pub struct LongBenchArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Tasks, as qasper,trec
    #[arg(long, value_name = "LIST", default_value = PAPER, hide_default_value = true, help_heading = "Task")]
    pub tasks: Parts,
    /// Tokens of a prompt, at most: of a longer one the middle is left out [default: what the answer leaves of the context]
    #[arg(long, value_name = "N", value_parser = values::long, help_heading = "Task", allow_negative_numbers = true)]
    pub max_length: Option<usize>,
    /// Put prompts in the model's chat template, but for the tasks that go on with a text
    #[arg(long, help_heading = "Task")]
    pub chat: bool,
    #[command(flatten)]
    pub run: TaskArgs,
}
