//! Loading of models, the policy of the KIVI cache, and generation, generic over the backend.
#![deny(unsafe_code)] // One exception: the module that maps files.

pub mod alibi;
pub mod cache;
pub mod chat;
pub mod config;
pub mod engine;
pub mod error;
pub mod fake;
mod falcon;
pub mod generate;
pub mod generation_config;
mod json;
mod llama;
mod loader;
mod map;
pub mod model;
pub mod perplexity;
pub mod policy;
mod random;
pub mod rope;
pub mod sampler;
pub mod saved;
pub mod source;
pub mod stop;
pub mod tokenizer;
pub mod weights;
