//! Arguments of `ablate`.

use clap::Args;
use kivi_model::fake::Axis;
use kivi_quant::{GroupSize, KvDtype};

use super::{DeviceArgs, KvBits, LayerList, MemoryArgs, ModelArgs, TextArgs, values};

/// Lists of what is compared, for each combination; without any, the settings of the study in docs/quality.md.
#[derive(Debug, Args)]
pub struct AblateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// Whether groups of keys are of a channel or of a token, as `channel,token` [default: channel]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = axis, help_heading = "Cache")]
    pub keys: Vec<Axis>,
    /// Whether groups of values are of a channel or of a token [default: token]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = axis, help_heading = "Cache")]
    pub values: Vec<Axis>,
    /// Bits of keys and values, as `4,2,4:2` [default: 2]; all settings are compared with 16
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "Cache",
        allow_negative_numbers = true
    )]
    pub kv_bits: Vec<KvBits>,
    /// Elements that share a scale: 32, 64 or 128 [default: 32]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = values::group_size,
          help_heading = "Cache", alias = "group-size", allow_negative_numbers = true)]
    pub kv_group_size: Vec<GroupSize>,
    /// Recent tokens kept in full precision; multiples of the group size [default: 128]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = values::tokens,
          help_heading = "Cache", alias = "residual-length", allow_negative_numbers = true)]
    pub kv_residual: Vec<usize>,
    /// First tokens of a text kept in full precision [default: 0]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = values::sinks,
          help_heading = "Cache", allow_negative_numbers = true)]
    pub kv_sink: Vec<usize>,
    /// Layers that are not quantized, as `0,1,-1` or `none`; again for further settings [default: none]
    #[arg(long, value_name = "LAYERS", value_parser = layers, help_heading = "Cache", allow_hyphen_values = true)]
    pub kv_skip_layers: Vec<LayerList>,
    /// Type of all rows, as they are and as they are read back: f16, bf16 or f32 [default: that of activations]
    #[arg(long, value_name = "DTYPE", value_parser = values::kv_dtype, help_heading = "Cache")]
    pub kv_dtype: Option<KvDtype>,
    /// Find numbers that are hidden in prompts of so many tokens, too [default: not]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = values::tokens,
          help_heading = "Passkey", allow_negative_numbers = true)]
    pub passkey: Vec<usize>,
    /// Prompts of each length, each with the number at another place
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = values::depths, help_heading = "Passkey",
          allow_negative_numbers = true)]
    pub trials: usize,
    /// The same seed hides the same numbers
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = values::seed, help_heading = "Passkey",
          allow_negative_numbers = true)]
    pub seed: u64,
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

/// What a group has in common.
fn axis(text: &str) -> Result<Axis, String> {
    let axis = [Axis::Channel, Axis::Token].into_iter().find(|axis| axis.to_string() == text);
    axis.ok_or_else(|| "expected channel or token".into())
}

/// Layers, or none.
fn layers(text: &str) -> Result<LayerList, String> {
    if text == "none" { Ok(LayerList(Vec::new())) } else { text.parse() }
}
