//! Text that becomes complete token by token.

use super::{TokenizeError, Tokenizer};

/// What decoders write for bytes that are not (yet) a character.
const REPLACEMENT: char = '\u{fffd}';
/// Tokens without a complete character after which text is emitted anyhow. A character has at most 4
/// bytes, so this many tokens are not one.
const MAX_PENDING: usize = 16;

/// Turns tokens into text as they come, and never emits half a character.
///
/// A token is decoded together with those before it, since decoders look at neighbours: for the
/// space before a word, and for characters that are several tokens.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// Tokens since the last complete text but one.
    ids: Vec<u32>,
    /// How many of `ids` are emitted.
    emitted: usize,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> StreamDecoder {
        StreamDecoder { tokenizer, ids: Vec::new(), emitted: 0 }
    }

    /// Adds a token and returns the text that is complete now, which may be none.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizeError> {
        // Left out before the rest is decoded, so it must not be the neighbour that is looked at.
        if self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.decode(0, self.ids.len())?;
        if !text.ends_with(REPLACEMENT) {
            return self.emit(self.ids.len(), &text);
        }
        match self.ids.len() - self.emitted {
            pending if pending < MAX_PENDING => Ok(String::new()),
            _ => self.emit_garbage(&text),
        }
    }

    /// The end of the text: returns what was held back, with replacement characters for bytes that
    /// never became a character.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn finish(&mut self) -> Result<String, TokenizeError> {
        let text = self.decode(0, self.ids.len())?;
        let rest = self.emit(self.ids.len(), &text)?;
        self.ids.clear();
        self.emitted = 0;
        Ok(rest)
    }

    /// Emits `text`, the decoded first `end` tokens, as far as it is new.
    fn emit(&mut self, end: usize, text: &str) -> Result<String, TokenizeError> {
        let before = self.decode(0, self.emitted)?;
        let new = match text.strip_prefix(before.as_str()) {
            Some(new) => new.to_string(),
            // A decoder that judges a run of bytes as a whole changed its mind about the first ones.
            None => self.decode(self.emitted, end)?,
        };
        self.ids.drain(..self.emitted);
        self.emitted = end - self.emitted;
        Ok(new)
    }

    /// Emits bytes that are no text, except a tail that may still become a character: the longest
    /// beginning that decodes by itself to the same text.
    fn emit_garbage(&mut self, text: &str) -> Result<String, TokenizeError> {
        let len = self.ids.len();
        for end in (len - 3..len).rev() {
            let (head, tail) = (self.decode(0, end)?, self.decode(end, len)?);
            if text.strip_prefix(head.as_str()) == Some(tail.as_str()) {
                return self.emit(end, &head);
            }
        }
        self.emit(len, text)
    }

    fn decode(&self, from: usize, to: usize) -> Result<String, TokenizeError> {
        self.tokenizer.decode(&self.ids[from..to], true)
    }
}
