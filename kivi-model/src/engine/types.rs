//! What goes into an engine and what comes out: requests, events, and why something is refused or failed.

use kivi_kernels::KernelError;
use kivi_quant::{CacheBytes, ConfigError};

use crate::policy::CachePolicy;
use crate::sampler::SamplingParams;
use crate::saved::Mismatch;

/// Sizes of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The cache of every layer.
    pub cache: CachePolicy,
    /// Longest sequence, prompt and generated tokens together.
    pub max_context: usize,
    /// Sequences that run at a time; further ones wait.
    pub max_seqs: usize,
    /// Rows of a step. A prompt that is longer is cut into chunks, and its later chunks see a packed past.
    pub max_batched_tokens: usize,
    /// Packed tokens that the page pool holds, over all sequences.
    pub pool_tokens: usize,
}

/// One text to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt; not empty, each token below the vocabulary's size.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; at least 1.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens that end the text.
    pub eos: Vec<u32>,
    /// Tokens to take in this order instead of chosen ones (teacher forcing); then what is left is chosen.
    pub forced: Vec<u32>,
    /// Whether [`Event::Token`] carries the logits.
    pub want_logits: bool,
    /// A text that was kept: as much of its cache is used as its tokens are those of the prompt and can be restored
    /// exactly, and the rest of the prompt is computed. It is gone then; this request can keep its own.
    ///
    /// With dynamic rotary scaling, keys that are used stay rotated for the length that their text had, as those of a text that
    /// grows do.
    pub past: Option<SeqId>,
    /// Whether the cache stays when the text ends or is cancelled, as the `past` of another request; it has its place until
    /// then, or until [`super::Engine::forget`]. A text that fails is not kept, but for [`SequenceError::NoRoom`]: that
    /// leaves the request's `past` as it was, under the request's id, whether `keep` is set or not.
    pub keep: bool,
}

impl Request {
    /// A prompt to continue greedily by `max_tokens` tokens, whatever they are.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            sampling: SamplingParams::default(),
            eos: Vec::new(),
            forced: Vec::new(),
            want_logits: false,
            past: None,
            keep: false,
        }
    }
}

/// Names a submitted request; unique within an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub(super) u64);

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token, or a stop string found by the caller.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// The caller cancelled it.
    Cancelled,
}

impl FinishReason {
    /// The name in machine-readable output: `stop`, `length` or `cancelled`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a sequence's cache took at its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheUse {
    /// Bytes in use, by part.
    pub used: CacheBytes,
    /// Bytes of whole pages, rings and sinks.
    pub allocated: usize,
    /// Tokens in the cache.
    pub tokens: usize,
    /// Tokens that were in the cache already when the request began.
    pub reused: usize,
}

impl std::ops::Add for CacheUse {
    type Output = Self;

    /// What two sequences take together.
    fn add(self, other: Self) -> Self {
        Self {
            used: self.used + other.used,
            allocated: self.allocated + other.allocated,
            tokens: self.tokens + other.tokens,
            reused: self.reused + other.reused,
        }
    }
}

/// The pages of the layers that share a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageUse {
    /// Pages that nobody has.
    pub free: usize,
    /// Pages of running, waiting and kept texts.
    pub owned: usize,
    /// All of them.
    pub all: usize,
}

/// What happened to a sequence in a step.
#[derive(Clone, Debug)]
pub enum Event {
    /// It has a new token.
    Token {
        /// The sequence.
        id: SeqId,
        /// The token; an end token is reported too.
        token: u32,
        /// `[vocab_size]`, what the token was chosen from, if asked for.
        logits: Option<Vec<f32>>,
    },
    /// It is complete and has left the engine.
    Finished {
        /// The sequence.
        id: SeqId,
        /// Why.
        reason: FinishReason,
        /// What its cache took.
        cache: CacheUse,
    },
    /// It failed and has left the engine; others go on.
    Failed {
        /// The sequence.
        id: SeqId,
        /// Why.
        error: SequenceError,
    },
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// There is nothing to continue.
    #[error("prompt: expected at least 1 token, found none")]
    EmptyPrompt,
    /// Nothing is to be generated.
    #[error("max tokens: expected at least 1, found 0")]
    NoTokens,
    /// The prompt does not fit the context.
    #[error(
        "prompt: has {prompt} tokens, but the context holds {context} with at least 1 to generate; shorten the prompt or raise --ctx-size"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A token that the model does not have.
    #[error("prompt: token id {token} at place {place} is not below the vocabulary's size {vocab_size}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Where it stands.
        place: usize,
        /// What the model has.
        vocab_size: usize,
    },
    /// There is no such text.
    #[error("past: expected a text that was kept and has not been continued since, found another id")]
    UnknownPast,
    /// The page pool could never hold it.
    #[error("prompt: {tokens} tokens need more cache pages than the pool of {pool_tokens} tokens has")]
    PoolTooSmall {
        /// Tokens of the sequence.
        tokens: usize,
        /// Tokens of the pool.
        pool_tokens: usize,
    },
}

/// Why one sequence failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SequenceError {
    /// No page is free and no other sequence will give one back.
    #[error("out of cache pages after {tokens} tokens: the pool of {pool_tokens} tokens is full")]
    OutOfPages {
        /// Tokens of the sequence.
        tokens: usize,
        /// Tokens of the pool.
        pool_tokens: usize,
    },
    /// Texts that are kept have all the room, and nothing runs that would give some back.
    #[error("no room: {kept} kept texts hold the cache; continue or forget one")]
    NoRoom {
        /// How many.
        kept: usize,
    },
    /// The model computed NaN or infinity.
    #[error("logits are not finite: {place}")]
    NotFinite {
        /// Where it shows first, and what that means.
        place: String,
    },
}

/// Why a saved cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError<E: KernelError> {
    /// It is not of this engine's kind.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// There is no place for it.
    #[error("no room: the saved cache has {tokens} tokens; raise --ctx-size, or forget a kept text")]
    NoRoom {
        /// Its tokens.
        tokens: usize,
    },
    /// The device failed.
    #[error("restoring the cache: {0}")]
    Device(#[source] E),
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError<E: KernelError> {
    /// The cache settings do not fit the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The backend has no kernels for this cache and model.
    #[error("{backend} has no kernels for {what}")]
    Unsupported {
        /// The backend.
        backend: String,
        /// The cache.
        what: String,
    },
    /// An engine of no rows or no sequences would never get anywhere.
    #[error(
        "engine: expected at least 1 for max_seqs and max_batched_tokens, found {max_seqs} and {max_batched_tokens}"
    )]
    Empty {
        /// Sequences at a time.
        max_seqs: usize,
        /// Rows of a step.
        max_batched_tokens: usize,
    },
    /// The device failed.
    #[error("allocating the cache: {0}")]
    Device(#[source] E),
}
