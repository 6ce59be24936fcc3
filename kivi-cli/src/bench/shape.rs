//! Shapes of models without weights: some by name, others by a `config.json`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kivi_model::config::ModelConfig;

use crate::failure::Usage;
use crate::format;

/// The largest file that is read.
const MAX_BYTES: u64 = 8 << 20;

/// Shapes that have a name.
const KNOWN: [(&str, &str); 3] = [
    ("llama-2-7b", include_str!("../../assets/shapes/llama-2-7b.json")),
    ("llama-3-8b", include_str!("../../assets/shapes/llama-3-8b.json")),
    ("tiny", include_str!("../../assets/shapes/tiny.json")),
];

/// The model that `shape` names: a known one, a file, or a directory with a `config.json`.
///
/// # Errors
/// There is none, or it is not valid.
pub fn config(shape: &str) -> Result<ModelConfig> {
    if let Some((name, text)) = KNOWN.iter().find(|(name, _)| *name == shape) {
        return Ok(ModelConfig::parse(name, text.as_bytes())?);
    }
    let path = Path::new(shape);
    let path = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let name = format::path(&path);
    if !path.is_file() {
        let known = KNOWN.map(|(name, _)| name).join(", ");
        let message =
            format!("--random-weights: expected {known} or a config.json, found {name}: no such file");
        return Err(Usage(message).into());
    }
    let mut bytes = Vec::new();
    let file = File::open(&path).with_context(|| format!("{name}: cannot be opened"))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("{name}: cannot be read"))?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("{name}: is longer than {MAX_BYTES} bytes; is it a config.json?");
    }
    Ok(ModelConfig::parse(&name, &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_shapes_are_valid() {
        let sizes = KNOWN.map(|(name, _)| {
            let c = config(name).unwrap();
            (c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.max_position_embeddings)
        });
        assert_eq!(sizes, [(32, 32, 32, 128, 4096), (32, 32, 8, 128, 131_072), (2, 2, 1, 32, 4096)]);
    }
}
