//! What kernels are specialised on.

use kivi_quant::PageLayout;

use crate::DType;

/// Query heads per key/value head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GqaRatio(pub usize);

/// The properties of a model's attention that select or compile a kernel; asked once, at load
/// ([`crate::Backend::supports`]), so that no kernel is found missing in mid-generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Bits, group size, residual length, page and head size, type of full-precision rows.
    pub layout: PageLayout,
    /// Query heads per KV head.
    pub gqa: GqaRatio,
    /// Type of activations.
    pub act: DType,
    /// Whether a sliding window limits the keys seen.
    pub window: bool,
    /// Whether ALiBi slopes are added to the logits.
    pub alibi: bool,
}
