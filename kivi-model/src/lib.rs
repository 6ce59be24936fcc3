//! kivi-model
