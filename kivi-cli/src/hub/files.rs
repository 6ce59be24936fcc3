//! Which files of a repository a checkpoint is.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kivi_model::error::clean;
use serde_json::Value;

use super::{MAX_LIST_BYTES, Wanted};
use crate::hub_name::is_plain;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Small files that not every checkpoint has.
const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The small files: what says how the weights are used.
pub fn small(names: &[String], wanted: &Wanted) -> Result<Vec<String>> {
    let has = |file: &&str| names.iter().any(|name| name == file);
    if let Some(file) = [CONFIG, TOKENIZER].iter().find(|file| !has(file)) {
        let Wanted { name, revision } = wanted;
        bail!("{name}: revision {revision} has no {file}, so it cannot be run; take another model");
    }
    if !has(&WEIGHTS) && !has(&INDEX) {
        bail!("{}: {}", wanted.name, no_weights(names));
    }
    let all = [CONFIG, TOKENIZER].into_iter().chain(OPTIONAL).filter(has);
    // The index says which other files there are.
    let all = all.chain((!has(&WEIGHTS)).then_some(INDEX));
    Ok(all.map(str::to_owned).collect())
}

/// What else there is instead of weights.
fn no_weights(names: &[String]) -> String {
    let pickled =
        |name: &&String| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end)) && !name.contains('/');
    match names.iter().find(pickled) {
        Some(found) => format!(
            "has only pickled weights ({}), expected model.safetensors; convert once with python: \
             AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(NEW_DIR)",
            clean(found)
        ),
        None => "has no weights, expected model.safetensors or model.safetensors.index.json".to_owned(),
    }
}

/// The large files, by the index in the snapshot if there are several.
pub fn weights(names: &[String], wanted: &Wanted, snapshot: &Path) -> Result<Vec<String>> {
    if names.iter().any(|name| name == WEIGHTS) {
        return Ok(vec![WEIGHTS.to_owned()]);
    }
    let shards = shards(snapshot)?;
    match shards.iter().find(|shard| !names.contains(shard)) {
        Some(shard) => {
            bail!("{}: {INDEX} names the shard {shard}, which is not in the repository", wanted.name)
        }
        None => Ok(shards),
    }
}

/// The shards that the index of a snapshot names.
fn shards(snapshot: &Path) -> Result<Vec<String>> {
    let path = snapshot.join(INDEX);
    let place = path.display();
    let len = std::fs::metadata(&path).with_context(|| format!("{place}: cannot be read"))?.len();
    if len > MAX_LIST_BYTES {
        bail!("{place}: has {len} bytes, expected at most {MAX_LIST_BYTES}");
    }
    let text = std::fs::read(&path).with_context(|| format!("{place}: cannot be read"))?;
    let index: Value = serde_json::from_slice(&text).with_context(|| format!("{place}: is not JSON"))?;
    let map = index["weight_map"]
        .as_object()
        .with_context(|| format!("{place}: weight_map: expected an object"))?;
    let shards: BTreeSet<&str> = map.values().map(|shard| shard.as_str().unwrap_or_default()).collect();
    match shards.iter().find(|shard| !is_plain(shard) || !shard.ends_with(".safetensors")) {
        Some(shard) => bail!(
            "{place}: weight_map: expected names of safetensors files without a path, found {}; do not use this \
             checkpoint",
            clean(shard)
        ),
        None => Ok(shards.into_iter().map(str::to_owned).collect()),
    }
}

/// The first file without which a snapshot cannot be used.
pub fn first_missing(snapshot: &Path) -> Result<Option<String>> {
    let missing = |file: &str| !snapshot.join(file).exists();
    if let Some(file) = [CONFIG, TOKENIZER].into_iter().find(|file| missing(file)) {
        return Ok(Some(file.to_owned()));
    }
    if !missing(WEIGHTS) {
        return Ok(None);
    }
    if missing(INDEX) {
        return Ok(Some(WEIGHTS.to_owned()));
    }
    Ok(shards(snapshot)?.into_iter().find(|shard| missing(shard)))
}
