//! Dropout of activations.

use super::*;

/// Dropout (Srivastava et al. 2014): elements are kept with probability 1 − p and then divided by it.
///
/// Element i of a tensor is kept where word i mod 4 of a Philox4x32-10 block (Salmon et al. 2011) is at least
/// p·2³². The block's key are the first two elements of `draw`, its counter \[i/4, 0, `site`, third element of
/// `draw`\]: the same mask on every device, and none to be stored for the backward pass.
pub struct Dropout<'a, B: Memory> {
    /// u32 \[4\]: the seed's low and high half, the number of the batch, 0.
    pub draw: &'a B::Tensor,
    /// Tells tensors of one batch apart.
    pub site: u32,
    /// p, at least 0 and below 1.
    pub probability: f64,
}

impl<B: Memory> Dropout<'_, B> {
    /// Checks the draw and the probability.
    pub(super) fn expect(&self, op: &'static str) -> Result<()> {
        if !(0.0..1.0).contains(&self.probability) {
            let problem = format!("{} is no probability below 1", self.probability);
            return Err(BackendError::Invalid { op, problem });
        }
        expect_shape(op, "draw", [4], self.draw.shape())
    }
}

/// Dropout of activations.
pub trait DropoutOp: Memory {
    /// y = x∘mask/(1 − p).
    fn dropout(&self, x: &Self::Tensor, dropout: Dropout<'_, Self>, y: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "dropout";
        expect_shape(OP, "y", x.shape(), y.shape())?;
        dropout.expect(OP)?;
        Self::dropout_checked(Checked(self), x, dropout, y)
    }

    /// [`Self::dropout`] of what was checked.
    fn dropout_checked(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        dropout: Dropout<'_, Self>,
        y: &mut Self::Tensor,
    ) -> Result<()>;
}
