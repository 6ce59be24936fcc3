//! What a device must be able to do to run a transformer with a KIVI cache: the [`Backend`] trait, one
//! validated struct per operation ([`ops`]), the cache of a layer ([`KvLayer`]) and the description of a step
//! ([`Batch`]). Nothing here runs on any device.
//!
//! # Contract
//! * **Constructors are the only validators.** An op's fields are private; holding the struct proves that
//!   shapes agree and every view lies inside its buffer. A [`Batch`] is checked when it is planned, once a step.
//! * **One in-order queue.** Ops enqueue and return; only [`Backend::read`] and [`Backend::synchronize`] wait,
//!   and they may report a fault of an earlier op. [`Backend::upload`] and [`Backend::write`] have taken their
//!   source when they return.
//! * **Lengths are device data.** [`ops::Attend`] and [`ops::Append`] read lengths, packed counts and page
//!   tables from the batch's device arrays, so that a recorded step can be replayed for other lengths.
//! * **Operands never alias**: outputs are `&mut`, inputs `&`. A buffer belongs to the backend value that made it.
//! * Shapes are `[tokens, heads, head_dim]`, row-major, unless an op says otherwise.
#![forbid(unsafe_code)]

mod backend;
mod batch;
mod cache;
mod element;
mod error;
pub mod ops;
mod spec;
mod view;

pub use backend::{Backend, Buffer, Memory, Patch, StepKey, Words};
pub use batch::{Batch, BatchCapacity, GroupArrays, GroupStep, PlanError, SeqStep, StepPlan};
pub use cache::KvLayer;
pub use element::{DType, Element};
pub use error::{ErrorKind, KernelError, ShapeError, StepError};
pub use spec::{GqaRatio, Spec};
pub use view::{Rows, RowsMut, Weight};
