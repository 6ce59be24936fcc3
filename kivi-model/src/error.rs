//! What can be wrong with a checkpoint, each cause with the file and the field or tensor.
//!
//! Messages are one line in lower case: where, what was found, what was expected, what to do. Text
//! that comes from a file is made printable and cut by [`clean`] before it enters a message.

/// The longest piece of untrusted text in a message, in characters.
const CLEAN_CHARS: usize = 80;
/// How many names a message lists before it only counts.
const LISTED: usize = 5;

/// Why a checkpoint directory could not be used.
///
/// `file` is the path as the user would type it, or `NAME/FILE` for an embedded model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The directory does not exist.
    #[error("{dir}: no such directory; pass the directory that holds config.json and model.safetensors")]
    NoSuchDirectory {
        /// The path that was given.
        dir: String,
    },
    /// A file was given where the checkpoint directory is wanted.
    #[error("{path}: is not a directory; pass the directory that holds config.json and model.safetensors")]
    NotADirectory {
        /// The path that was given.
        path: String,
    },
    /// A file that every checkpoint has is not there.
    #[error("{file}: no such file; {hint}")]
    MissingFile {
        /// The missing file.
        file: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The operating system refused to read a file.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Something that is not a regular file has the name of a checkpoint file.
    #[error("{file}: is not a regular file; replace it by the checkpoint's file")]
    NotAFile {
        /// The path.
        file: String,
    },
    /// A file that should be small is not.
    #[error("{file}: has {bytes} bytes, expected at most {max_bytes}; is it the right file?")]
    FileTooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
        /// The largest size that is read.
        max_bytes: u64,
    },
    /// A git-LFS pointer lies where the file itself should be.
    #[error("{file}: is a git-LFS pointer, not the file itself; run `git lfs pull` in its directory")]
    LfsPointer {
        /// The file.
        file: String,
    },
    /// A file is not JSON.
    #[error("{file}: line {line}, column {column}: invalid JSON: {reason}; restore the original file")]
    InvalidJson {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The parser's reason, without its position.
        reason: String,
    },
    /// A field of a JSON file has the wrong type or an impossible value.
    #[error("{file}: {field}: expected {expected}, found {found}")]
    Field {
        /// The file.
        file: String,
        /// The field, dotted for nested ones.
        field: String,
        /// What would be valid.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The model family is not one that is built in.
    #[error("{file}: architectures: unknown architecture {found}; known: {known}")]
    UnknownArchitecture {
        /// The file.
        file: String,
        /// The name in the file.
        found: String,
        /// All known names.
        known: String,
    },
    /// The RoPE scaling type is not one that is built in.
    #[error("{file}: {field}: unknown rope type {found}; known: {known}")]
    UnknownRopeType {
        /// The file.
        file: String,
        /// The field that names the type.
        field: String,
        /// The name in the file.
        found: String,
        /// All known names.
        known: String,
    },
    /// A field asks for mathematics that is not implemented; ignoring it would give wrong text.
    #[error("{file}: {field}: {found} is not supported ({why}); use a checkpoint without it")]
    UnsupportedField {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What it would change.
        why: &'static str,
    },
    /// The index names a shard that is not there.
    #[error("{index}: names the shard {shard}, which is not in the directory; download it")]
    MissingShard {
        /// The index file.
        index: String,
        /// The shard.
        shard: String,
    },
    /// The index names a shard outside the directory.
    #[error(
        "{index}: weight_map: expected file names without a path, found {shard}; do not use this checkpoint"
    )]
    ShardOutside {
        /// The index file.
        index: String,
        /// The shard's name.
        shard: String,
    },
    /// There are weights, but only in a format that executes code when it is read.
    #[error(
        "{dir}: has only pickled weights ({found}), expected model.safetensors; convert once with python: \
         AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
    )]
    OnlyPickledWeights {
        /// The directory.
        dir: String,
        /// One of the files.
        found: String,
    },
    /// There are no weights.
    #[error(
        "{dir}: has no weights, expected model.safetensors or model.safetensors.index.json; download them"
    )]
    NoWeights {
        /// The directory.
        dir: String,
    },
    /// A weight file ends too early.
    #[error("{file}: is truncated: expected {expected_bytes} bytes, found {found_bytes}; download it again")]
    Truncated {
        /// The file.
        file: String,
        /// The length that its header asks for.
        expected_bytes: u64,
        /// The length that it has.
        found_bytes: u64,
    },
    /// The length of the header, the first 8 bytes of the file, exceeds the file.
    #[error(
        "{file}: header of {header_bytes} bytes in a file of {file_bytes}: truncated or not safetensors; download it again"
    )]
    HeaderTooLong {
        /// The file.
        file: String,
        /// The length that the first 8 bytes state.
        header_bytes: u64,
        /// The length of the file.
        file_bytes: u64,
    },
    /// The header of a weight file is not a safetensors header.
    #[error("{file}: invalid safetensors header: {reason}; download it again")]
    InvalidHeader {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The place of a tensor within the file contradicts its neighbours or its shape.
    #[error("{file}: tensor {tensor}: {reason}; download the file again")]
    InvalidTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// Tensors that the architecture needs are not in the checkpoint.
    #[error("{file}: missing tensors: {tensors}; does config.json belong to these weights?")]
    MissingTensors {
        /// The weight file or the index.
        file: String,
        /// At most five names, then a count.
        tensors: String,
    },
    /// The checkpoint has tensors that the architecture would not use.
    #[error("{file}: unexpected tensors: {tensors}; does config.json belong to these weights?")]
    UnexpectedTensors {
        /// The weight file or the index.
        file: String,
        /// At most five names, then a count.
        tensors: String,
    },
    /// A tensor does not have the shape that config.json implies.
    #[error(
        "{file}: tensor {tensor}: expected shape {expected:?}, found {found:?}; does config.json belong to these weights?"
    )]
    TensorShape {
        /// The weight file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape that config.json implies.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// Tensors have an element type that is not supported.
    #[error(
        "{file}: unsupported dtype: {tensors}; expected F32, F16 or BF16: convert the checkpoint to bfloat16"
    )]
    TensorDtype {
        /// The weight file.
        file: String,
        /// At most five names with their dtypes, then a count.
        tensors: String,
    },
    /// The tokenizer file is JSON, but not a tokenizer.
    #[error("{file}: not a usable tokenizer: {reason}; restore the original file")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer makes ids that the model has no embedding for.
    #[error(
        "{file}: largest token id is {largest_id}, but config.json has vocab_size {vocab_size}; \
         use the tokenizer of this model"
    )]
    TokenizerVocab {
        /// The tokenizer file.
        file: String,
        /// The largest id.
        largest_id: u32,
        /// Number of embeddings of the model.
        vocab_size: usize,
    },
    /// The chat template is not valid.
    #[error(transparent)]
    ChatTemplate(#[from] crate::chat::ChatError),
}

/// Makes untrusted text fit for a message: one line, printable, at most 80 characters.
pub fn clean(text: &str) -> String {
    let mut out: String = text.chars().take(CLEAN_CHARS).map(|c| if is_plain(c) { c } else { '?' }).collect();
    if text.chars().nth(CLEAN_CHARS).is_some() {
        out.push_str("...");
    }
    out
}

/// Whether a character neither breaks the line nor changes how the rest of it is shown.
fn is_plain(c: char) -> bool {
    // Format characters: zero-width, line and paragraph separators, and those that reorder text.
    let reorders = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !reorders
}

/// Lists at most five names, then how many more there are.
pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    let mut out = names.iter().take(LISTED).map(|n| clean(n.as_ref())).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        out.push_str(&format!(" and {} more", names.len() - LISTED));
    }
    out
}

/// Describes where JSON is invalid; serde's message ends with the position, which is a field here.
pub(crate) fn invalid_json(file: String, error: &serde_json::Error) -> LoadError {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    LoadError::InvalidJson { file, line: error.line(), column: error.column(), reason: clean(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_is_one_short_line() {
        assert_eq!(clean("a\nb\u{1b}[31m\u{202e}c"), "a?b?[31m?c");
        assert_eq!(clean(&"é".repeat(200)).chars().count(), 83);
        assert_eq!(clean(&"é".repeat(80)).chars().count(), 80);
    }

    #[test]
    fn lists_stop_after_five() {
        assert_eq!(list(&["a", "b"]), "a, b");
        assert_eq!(list(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }
}
