//! The special tokens that templates write by name.

use std::collections::BTreeMap;

use minijinja::Value;
use serde_json::Value as Json;

use super::{CONFIG_NAME, MAX_CONFIG_BYTES};
use crate::error::LoadError;
use crate::json::Fields;
use crate::source::Source;

/// Names that transformers hands to templates.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Special tokens by name (`bos_token`, `eos_token`, ..), as text. One that is not there is undefined in a
/// template, which prints nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    /// Reads those that `tokenizer_config.json` has, each text or an object with `content`.
    ///
    /// # Errors
    /// The file is unreadable, or a token is neither of these.
    pub fn load(source: &Source) -> Result<SpecialTokens, LoadError> {
        let mut tokens = SpecialTokens::default();
        let Some(bytes) = source.read(CONFIG_NAME, MAX_CONFIG_BYTES)? else { return Ok(tokens) };
        let fields = Fields::parse(source.place(CONFIG_NAME), &bytes)?;
        for name in NAMES {
            let Some(value) = fields.get(name) else { continue };
            let text = value.as_str().or_else(|| value.get("content").and_then(Json::as_str));
            let text = text.ok_or_else(|| fields.error(name, "a token"))?;
            tokens = tokens.with(name, text);
        }
        Ok(tokens)
    }

    /// These and one more.
    #[must_use]
    pub fn with(mut self, name: &str, token: &str) -> SpecialTokens {
        self.0.insert(name.into(), token.into());
        self
    }

    /// Names and texts, for a template.
    pub(super) fn values(&self) -> impl Iterator<Item = (String, Value)> {
        self.0.iter().map(|(name, token)| (name.clone(), Value::from(token)))
    }
}
