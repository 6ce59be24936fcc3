//! The operations: one struct each, whose constructor is the only validator. The equation is on the struct.
//!
//! An op is opaque; a backend takes it apart with `into_parts`.

/// Declares an op `$name` around its operands `$parts`, which only `$name::new` can put together.
macro_rules! op {
    ($(#[$doc:meta])* $name:ident, $parts:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        pub struct $name<'a, B: Backend>(pub(super) $parts<'a, B>);

        #[doc = concat!("The operands of [`", stringify!($name), "`], checked.")]
        pub struct $parts<'a, B: Backend> {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl<'a, B: Backend> $name<'a, B> {
            /// The operands, for the backend that runs the op.
            pub fn into_parts(self) -> $parts<'a, B> {
                self.0
            }
        }
    };
}

mod attention;
mod cache;
mod elementwise;
mod linear;
mod norm;
mod rope;
mod sample;
mod select;

pub(crate) use attention::Planned;
pub use attention::{Attend, AttendParts, PlanAttend, PlanAttendParts};
pub use cache::{Append, AppendParts, ClearPages, ClearPagesParts};
pub use elementwise::{Activate, ActivateParts, Activation, Add, AddParts};
pub use linear::{Embed, EmbedParts, Linear, LinearParts};
pub use norm::{AddRmsNorm, AddRmsNormParts, LayerNorm, LayerNormParts, RmsNorm, RmsNormParts};
pub use rope::{Rope, RopeParts};
pub use sample::{Draw, Sample, SampleParts};
pub use select::{Argmax, ArgmaxParts, Gather, GatherParts, TopK, TopKParts};
