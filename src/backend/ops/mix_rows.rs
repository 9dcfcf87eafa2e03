//! MixUp of the rows of a matrix.

use super::*;

/// MixUp (Zhang et al. 2018) of a batch of B: row i becomes λᵢ·row i + (1 − λᵢ)·row `partner`\[i\].
pub struct Mix<B: Memory> {
    /// u32 \[B\], a permutation of the batch.
    pub partner: B::Tensor,
    /// u32 \[B\], the inverse permutation: `partner`\[`inverse`\[i\]\] = i.
    pub inverse: B::Tensor,
    /// \[B\], in the parameter dtype.
    pub lambda: B::Tensor,
}

impl<B: Memory> Mix<B> {
    /// Checks that it is one of `batch` rows or images.
    pub(super) fn expect(&self, op: &'static str, batch: usize) -> Result<()> {
        expect_shape(op, "partner", [batch], self.partner.shape())?;
        expect_shape(op, "inverse", [batch], self.inverse.shape())?;
        expect_shape(op, "lambda", [batch], self.lambda.shape())
    }
}

/// MixUp of the rows of a matrix.
pub trait MixRowsOp: Memory {
    /// y = the mixed rows of x; both \[B, E\] in the parameter dtype.
    fn mix_rows(&self, x: &Self::Tensor, mix: &Mix<Self>, y: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "mix_rows";
        expect_shape(OP, "y", x.shape(), y.shape())?;
        mix.expect(OP, x.shape().matrix().0)?;
        Self::mix_rows_checked(Checked(self), x, mix, y)
    }

    /// dx\[i\] = λᵢ·dy\[i\] + (1 − λₖ)·dy\[k\] with k = `inverse`\[i\].
    fn mix_rows_backward(&self, dy: &Self::Tensor, mix: &Mix<Self>, dx: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "mix_rows_backward";
        expect_shape(OP, "dx", dy.shape(), dx.shape())?;
        mix.expect(OP, dy.shape().matrix().0)?;
        Self::mix_rows_backward_checked(Checked(self), dy, mix, dx)
    }

    /// [`Self::mix_rows`] of what was checked.
    fn mix_rows_checked(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        mix: &Mix<Self>,
        y: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::mix_rows_backward`] of what was checked.
    fn mix_rows_backward_checked(
        device: Checked<'_, Self>,
        dy: &Self::Tensor,
        mix: &Mix<Self>,
        dx: &mut Self::Tensor,
    ) -> Result<()>;
}
