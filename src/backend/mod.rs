//! The list of operations that a device must provide, one line of maths each.
//!
//! The model, the objectives and the training loop are written once over [`Backend`]: a [`Memory`] that has all of
//! [`ops`]. The CPU form of an operation ([`cpu`]) is its definition: plain loops and products in f32, or f64 for the
//! gradient checks.

/// `Copy` for what borrows tensors: derived, it would ask for a backend that is `Copy`.
macro_rules! copyable {
    ($bound:ident: $($name:ident),*) => { $(
        impl<B: $bound> Clone for $name<'_, B> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<B: $bound> Copy for $name<'_, B> {}
    )* };
}
pub(crate) use copyable;

pub mod cpu;
pub mod cuda;
mod error;
mod memory;
pub mod ops;
pub mod tally;

use crate::tensor::Shape;
pub use error::{BackendError, Result};
pub use memory::{Checked, DeviceMemory, DeviceTensor, Memory};
pub use ops::*;

/// What there is to a list of operations.
macro_rules! operations {
    ($($op:ident)*) => {
        /// A device that can run the model: it has all operations.
        pub trait Backend: Memory $(+ $op)* {}

        impl<B: Memory $(+ $op)*> Backend for B {}

        /// The operations of a device whose type is known.
        pub mod prelude {
            pub use super::{DeviceTensor as _, Memory as _, $($op as _),*};
        }
    };
}

operations! {
    AccumulateOp
    ActivationOp
    AdamwOp
    AttentionOp
    ClassFeaturesOp
    ClassTailOp
    CropResizeOp
    DropoutOp
    HeadLossOp
    L2NormOp
    LayerNormOp
    LinearOp
    LoraFoldOp
    LoraGradientsOp
    LoraLinearOp
    MixRowsOp
    PatchEmbedOp
    PromptsOp
    TakeRowsOp
    TripletOp
}

/// Checks that a tensor holds `rows`·`columns` elements in rows of `columns`, whatever its leading
/// dimensions are.
pub(crate) fn expect_matrix(
    op: &'static str,
    what: &'static str,
    rows: usize,
    columns: usize,
    found: Shape,
) -> Result<()> {
    if found.columns() == columns && found.elements() == rows * columns {
        return Ok(());
    }
    Err(BackendError::Shape { op, what, shapes: Box::new([[rows, columns].into(), found]) })
}

/// Checks that `found` is `expected`.
pub(crate) fn expect_shape(
    op: &'static str,
    what: &'static str,
    expected: impl Into<Shape>,
    found: Shape,
) -> Result<()> {
    let expected = expected.into();
    if expected == found {
        return Ok(());
    }
    Err(BackendError::Shape { op, what, shapes: Box::new([expected, found]) })
}
