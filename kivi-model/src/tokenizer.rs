//! Text to tokens and back, with the tokenizer of the checkpoint.
//!
//! # Begin-of-text
//! The rule is that of transformers 5 for fast tokenizers. What the post-processor of
//! `tokenizer.json` adds is added (Llama 3 and kivi-tiny put their begin-of-text token there). If
//! `tokenizer_config.json` has `add_bos_token` or `add_eos_token`, these two replace the
//! post-processor. A prompt that spells the token out gets it twice, as there.

mod stream;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value;

pub use stream::StreamDecoder;

use crate::error::{LoadError, clean, invalid_json};
use crate::json::Fields;
use crate::source::Source;

const NAME: &str = "tokenizer.json";
const CONFIG_NAME: &str = "tokenizer_config.json";
/// Largest `tokenizer.json` that is read; those of 256k-token vocabularies have some 30 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Largest `tokenizer_config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The tokenizer of a model. Clones share the vocabulary.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    vocab_size: usize,
    /// What to add around a text in place of the post-processor, if the config says.
    around: Option<Around>,
}

#[derive(Clone, Debug)]
struct Around {
    bos: Option<u32>,
    eos: Option<u32>,
}

/// Text could not be turned into tokens of the model, or back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizeError {
    /// The tokenizer failed.
    #[error("tokenizer: {reason}; is tokenizer.json the one of this model?")]
    Failed {
        /// Its reason.
        reason: String,
    },
    /// The tokenizer made an id that the model has no embedding for.
    #[error("tokenizer: made token id {id}, but the model has {vocab_size}; use the tokenizer of this model")]
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Number of embeddings of the model.
        vocab_size: usize,
    },
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and from `tokenizer_config.json`, if there is one, what to add to a text.
    ///
    /// # Errors
    /// The file is missing or not a tokenizer, or it has ids from `vocab_size` on.
    pub fn load(source: &Source, vocab_size: usize) -> Result<Tokenizer, LoadError> {
        let hint = "download it; a tokenizer.model is converted by AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";
        let bytes = source.read_required(NAME, MAX_BYTES, hint)?;
        let file = source.place(NAME);
        let mut inner = parse(&file, &bytes)?;
        // The file may carry the settings of its training; transformers resets them too.
        let no_truncation = inner.with_truncation(None).map(drop);
        no_truncation
            .map_err(|e| LoadError::Tokenizer { file: file.clone(), reason: clean(&e.to_string()) })?;
        inner.with_padding(None);
        let largest_id = guarded(|| inner.get_vocab(true).into_values().max())
            .map_err(|reason| LoadError::Tokenizer { file: file.clone(), reason })?;
        match largest_id {
            None => return Err(LoadError::Tokenizer { file, reason: "its vocabulary is empty".into() }),
            Some(id) if id as usize >= vocab_size => {
                return Err(LoadError::TokenizerVocab { file, largest_id: id, vocab_size });
            }
            Some(_) => {}
        }
        let around = around(source, &inner)?;
        Ok(Tokenizer { inner: Arc::new(inner), vocab_size, around })
    }

    /// The tokens of a text; with `add_special`, those that begin and end a text as well.
    ///
    /// # Errors
    /// The tokenizer fails, or makes an id that the model does not have.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizeError> {
        let by_post_processor = add_special && self.around.is_none();
        let encoding = guarded(|| self.inner.encode_fast(text, by_post_processor));
        let encoding = encoding.and_then(|r| r.map_err(|e| clean(&e.to_string())));
        let mut ids = encoding.map_err(|reason| TokenizeError::Failed { reason })?.get_ids().to_vec();
        if let Some(around) = self.around.as_ref().filter(|_| add_special) {
            ids.splice(0..0, around.bos);
            ids.extend(around.eos);
        }
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(&id) => Err(TokenizeError::IdOutOfRange { id, vocab_size: self.vocab_size }),
            None => Ok(ids),
        }
    }

    /// The text of tokens; unknown ids have none. With `skip_special`, special tokens have none either.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizeError> {
        let text = guarded(|| self.inner.decode(ids, skip_special));
        text.and_then(|r| r.map_err(|e| clean(&e.to_string())))
            .map_err(|reason| TokenizeError::Failed { reason })
    }

    /// Whether a token is one that decoding leaves out.
    fn is_special(&self, id: u32) -> bool {
        let token = self.inner.id_to_token(id);
        token.is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// A decoder for text that is made token by token. Special tokens are left out.
    pub fn stream(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }
}

/// Calls the tokenizer library, which panics on some malformed files instead of returning an error: a
/// decoder of unknown type, a template that names a token it does not define, a merge shorter than the
/// subword prefix (all seen with 0.23.2; `tests/hostile.rs` makes them). What it was working on is
/// dropped, so nothing half-made is seen afterwards.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown cause");
        format!("the tokenizer library gave up ({})", clean(text))
    })
}

fn parse(file: &str, bytes: &[u8]) -> Result<tokenizers::Tokenizer, LoadError> {
    let fault = |reason| LoadError::Tokenizer { file: file.into(), reason };
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(bytes) {
        return Err(invalid_json(file.into(), &error));
    }
    guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
        .and_then(|result| result.map_err(|e| clean(&e.to_string())))
        .map_err(fault)
}

/// What `tokenizer_config.json` says about the ends of a text; `None` leaves it to the post-processor.
fn around(source: &Source, tokenizer: &tokenizers::Tokenizer) -> Result<Option<Around>, LoadError> {
    let Some(bytes) = source.read(CONFIG_NAME, MAX_CONFIG_BYTES)? else { return Ok(None) };
    let f = Fields::parse(source.place(CONFIG_NAME), &bytes)?;
    let (add_bos, add_eos) = (f.boolean("add_bos_token")?, f.boolean("add_eos_token")?);
    if add_bos.is_none() && add_eos.is_none() {
        return Ok(None);
    }
    let id = |add: Option<bool>, field| match add {
        Some(true) => token_id(&f, field, tokenizer),
        _ => Ok(None),
    };
    Ok(Some(Around { bos: id(add_bos, "bos_token")?, eos: id(add_eos, "eos_token")? }))
}

/// The id of a token that the config names, as a string or as an object with `content`.
fn token_id(f: &Fields, field: &str, tokenizer: &tokenizers::Tokenizer) -> Result<Option<u32>, LoadError> {
    let Some(value) = f.get(field) else { return Ok(None) };
    let content = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
    let content = content.ok_or_else(|| f.error(field, "a token"))?;
    tokenizer.token_to_id(content).map(Some).ok_or_else(|| f.error(field, "a token of tokenizer.json"))
}

#[cfg(test)]
mod tests;
