//! Gradients of several batches added up.

use super::*;

/// Adding up the gradients of several batches.
pub trait AccumulateOp: Memory {
    /// Adds gradients up over several batches: sum = gradient for the `first`, sum += gradient for the others.
    /// Pairs of a gradient and its sum, of the same shape, in the parameter dtype.
    fn accumulate(&self, pairs: &mut [(&Self::Tensor, &mut Self::Tensor)], first: bool) -> Result<()> {
        const OP: &str = "accumulate";
        for (gradient, sum) in pairs.iter() {
            expect_shape(OP, "sum", gradient.shape(), sum.shape())?;
        }
        Self::accumulate_checked(Checked(self), pairs, first)
    }

    /// [`Self::accumulate`] of what was checked.
    fn accumulate_checked(
        device: Checked<'_, Self>,
        pairs: &mut [(&Self::Tensor, &mut Self::Tensor)],
        first: bool,
    ) -> Result<()>;
}
