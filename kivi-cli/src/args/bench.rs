//! Arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kivi_quant::{GroupSize, KvDtype};

use super::{DeviceArgs, KvBits, ModelArgs, values};

/// Lists of what is measured, for each combination; an empty list is the default.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Random weights of this shape: llama-2-7b, llama-3-8b, tiny, or a config.json of any supported family
    #[arg(long, value_name = "CONFIG", conflicts_with_all = ["dir", "model", "revision"])]
    pub random_weights: Option<String>,
    /// paper: 160 tokens and 338 new ones, at 16 and 2 bits, residual 32 and 128, batches until memory is full
    #[arg(long, value_name = "NAME", help_heading = "Measure", hide_possible_values = true)]
    pub preset: Option<Preset>,
    /// Prompt tokens to read; 0 for no such row [default: 512]
    #[arg(short = 'p', long, value_name = "LIST", value_delimiter = ',', value_parser = values::count,
          help_heading = "Measure", allow_negative_numbers = true)]
    pub n_prompt: Vec<usize>,
    /// Tokens to generate; 0 for no such row [default: 128]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = values::count,
          help_heading = "Measure", allow_negative_numbers = true)]
    pub n_gen: Vec<usize>,
    /// Sequences at a time [default: 1]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = values::sequences,
          help_heading = "Measure", allow_negative_numbers = true)]
    pub batch_size: Vec<usize>,
    /// Tokens that each sequence has in its cache already [default: 0]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = values::count,
          help_heading = "Measure", allow_negative_numbers = true)]
    pub depth: Vec<usize>,
    /// Read a prompt and generate in one row, in place of a row each
    #[arg(long, help_heading = "Measure")]
    pub together: bool,
    /// Times that each row is measured [default: 3; with --preset 1]
    #[arg(short, long, value_name = "N", value_parser = values::repetitions, help_heading = "Measure",
          allow_negative_numbers = true)]
    pub repetitions: Option<usize>,
    /// Measure at once, without a run before that does not count
    #[arg(long, help_heading = "Measure")]
    pub no_warmup: bool,
    /// Bits of keys and values, as `16,4,4:2` [default: 16,2]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "Cache",
        allow_negative_numbers = true
    )]
    pub kv_bits: Vec<KvBits>,
    /// Recent tokens kept in full precision [default: 128]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = values::tokens,
          help_heading = "Cache", alias = "residual-length", allow_negative_numbers = true)]
    pub kv_residual: Vec<usize>,
    /// Elements that share a scale: 32, 64 or 128 [default: 32]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = values::group_size,
          help_heading = "Cache", aliases = ["kv-group", "group-size"], allow_negative_numbers = true)]
    pub kv_group_size: Vec<GroupSize>,
    /// Tokens of a page; a multiple of the group size
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = values::tokens,
          help_heading = "Cache", allow_negative_numbers = true)]
    pub kv_page_tokens: usize,
    /// Type of what is kept in full precision [default: f16, with bf16 activations bf16]
    #[arg(long, value_name = "DTYPE", value_parser = values::kv_dtype, help_heading = "Cache")]
    pub kv_dtype: Option<KvDtype>,
    /// Prompt tokens of one step [default: 8192; with --preset 2048]
    #[arg(long, value_name = "TOKENS", value_parser = values::tokens, help_heading = "Run",
          allow_negative_numbers = true)]
    pub max_num_batched_tokens: Option<usize>,
    /// Rows that would take more than this, as 80GiB, are left out [default: what the device has]
    #[arg(long, value_name = "SIZE", value_parser = values::bytes, help_heading = "Run",
          allow_negative_numbers = true)]
    pub memory: Option<u64>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Write everything to this file, too: machine, settings, each row with its samples
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub json: Option<PathBuf>,
    /// Compare with the rows of a file that --json wrote
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub baseline: Option<PathBuf>,
}

/// A workload that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// The throughput workload of the KIVI paper.
    Paper,
}
