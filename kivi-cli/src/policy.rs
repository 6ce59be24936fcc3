//! Which layers keep their cache otherwise than the flags say for all: `--kv-skip-layers` and `--kv-policy`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use kivi_model::policy::CachePolicy;
use kivi_quant::{Bits, ConfigError, GroupSize, KiviConfig};
use serde::Deserialize;

use crate::args::LayerArgs;
use crate::failure::Usage;
use crate::format;

/// The largest policy file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// A policy file: a list of exceptions, the later ones over the earlier ones.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    layers: Vec<Exception>,
}

/// Settings of some layers; what is absent is as the flags say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    layers: Vec<i64>,
    k_bits: Option<u32>,
    v_bits: Option<u32>,
    group_size: Option<usize>,
    residual: Option<usize>,
    sink: Option<usize>,
}

/// The policy that the flags ask for on top of `base`: those of the file, then skipped layers.
pub fn read(args: &LayerArgs, base: KiviConfig, n_layers: usize) -> Result<CachePolicy> {
    let mut policy = CachePolicy::from(base);
    if let Some(path) = &args.kv_policy {
        let name = format::path(path);
        for (i, exception) in parse(path, &name)?.layers.iter().enumerate() {
            let place = || format!("{name}: layers[{i}]");
            let config = exception.config(base).map_err(|error| anyhow!("{}: {error}", place()))?;
            for &layer in &exception.layers {
                let layer = index(layer, n_layers).map_err(|error| anyhow!("{}.layers: {error}", place()))?;
                policy = policy.with_layer(layer, config);
            }
        }
    }
    for &layer in args.kv_skip_layers.iter().flat_map(|list| &list.0) {
        let layer = index(layer, n_layers).map_err(|error| Usage(format!("--kv-skip-layers: {error}")))?;
        policy = policy.with_layer(layer, full_precision(base)?);
    }
    Ok(policy)
}

/// The place of a layer; negative ones count from the last.
pub fn index(layer: i64, n_layers: usize) -> Result<usize, String> {
    let n = n_layers as i64;
    let index = if layer < 0 { layer.saturating_add(n) } else { layer };
    let known = (0..n).contains(&index).then_some(index as usize);
    known.ok_or_else(|| format!("expected layers from {} to {}, found {layer}", -n, n - 1))
}

fn full_precision(base: KiviConfig) -> Result<KiviConfig, ConfigError> {
    let group = GroupSize::try_from(base.group_size())?;
    let config = KiviConfig::new(Bits::B16, Bits::B16, group, base.residual_length())?;
    config.with_kv_dtype(base.kv_dtype()).with_page_tokens(base.page_tokens())
}

impl Exception {
    fn config(&self, base: KiviConfig) -> Result<KiviConfig, ConfigError> {
        let bits = |own: Option<u32>, base| own.map_or(Ok(base), Bits::try_from);
        let group = GroupSize::try_from(self.group_size.unwrap_or(base.group_size()))?;
        let (k_bits, v_bits) = (bits(self.k_bits, base.k_bits())?, bits(self.v_bits, base.v_bits())?);
        let residual = self.residual.unwrap_or(base.residual_length());
        let config = KiviConfig::new(k_bits, v_bits, group, residual)?.with_kv_dtype(base.kv_dtype());
        let config = config.with_page_tokens(base.page_tokens())?;
        config.with_sink_tokens(self.sink.unwrap_or(base.sink_tokens()))
    }
}

/// Reads a file, as JSON if it is called so, else as TOML.
fn parse(path: &Path, name: &str) -> Result<PolicyFile> {
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("{name}: cannot be opened"))?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).with_context(|| format!("{name}: cannot be read"))?;
    if text.len() as u64 > MAX_BYTES {
        bail!("{name}: is longer than {MAX_BYTES} bytes; is it the right file?");
    }
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        return serde_json::from_str(&text).map_err(|error| anyhow!("{name}: {error}"));
    }
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        anyhow!("{name}: line {line}: {}", error.message())
    })
}
