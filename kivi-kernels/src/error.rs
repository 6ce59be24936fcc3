//! Errors: what a backend may report, and what a constructor refuses.

use core::fmt::Debug;

/// The kinds of failure that a caller can act on, whatever the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The device has no memory left for a buffer.
    OutOfMemory,
    /// The backend has no kernel for what was asked ([`crate::Backend::supports`] says so beforehand).
    Unsupported,
    /// A kernel could not be compiled.
    Compile,
    /// The device is gone; no further call will succeed.
    DeviceLost,
    /// Anything else.
    Other,
}

/// An error of a backend.
pub trait KernelError: std::error::Error + Send + Sync + 'static {
    /// What kind of failure it is.
    fn kind(&self) -> ErrorKind;
}

/// Operands that do not fit together; the fault of the caller, found before anything runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {operand} needs {expected}, got {found}")]
pub struct ShapeError {
    /// The operation.
    pub op: &'static str,
    /// The operand at fault.
    pub operand: &'static str,
    /// What it needs.
    pub expected: String,
    /// What was given.
    pub found: String,
}

/// Why a step could not be run: its ops or its plan are wrong, or the device failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError<E: KernelError> {
    /// Operands do not fit together.
    #[error(transparent)]
    Shape(ShapeError),
    /// The plan does not fit the batch or the cache.
    #[error(transparent)]
    Plan(crate::PlanError),
    /// The device failed.
    #[error(transparent)]
    Device(E),
}

impl<E: KernelError> From<ShapeError> for StepError<E> {
    fn from(error: ShapeError) -> Self {
        Self::Shape(error)
    }
}

impl<E: KernelError> From<crate::PlanError> for StepError<E> {
    fn from(error: crate::PlanError) -> Self {
        Self::Plan(error)
    }
}

impl<E: KernelError> From<E> for StepError<E> {
    fn from(error: E) -> Self {
        Self::Device(error)
    }
}

/// Fails with a [`ShapeError`] unless `ok`.
pub(crate) fn ensure(
    ok: bool,
    op: &'static str,
    operand: &'static str,
    expected: impl FnOnce() -> String,
    found: impl Debug,
) -> Result<(), ShapeError> {
    if ok {
        Ok(())
    } else {
        Err(ShapeError { op, operand, expected: expected(), found: format!("{found:?}") })
    }
}
