//! Loading of models, the policy of the KIVI cache, and generation, generic over the backend.
#![deny(unsafe_code)] // One exception: the module that maps files.

pub mod config;
pub mod error;
mod json;
mod map;
pub mod rope;
pub mod source;
pub mod weights;
