//! Rows of length one.

use super::*;

/// Rows of length one.
pub trait L2NormOp: Memory {
    /// f = x/|x| per row; `norms` \[B\] keeps |x|; both in the parameter dtype.
    fn l2_norm(&self, x: &Self::Tensor, f: &mut Self::Tensor, norms: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "l2_norm";
        expect_shape(OP, "f", x.shape(), f.shape())?;
        expect_shape(OP, "norms", [x.shape().matrix().0], norms.shape())?;
        Self::l2_norm_checked(Checked(self), x, f, norms)
    }

    /// dx = (df − f·⟨f, df⟩)/|x|.
    fn l2_norm_backward(
        &self,
        df: &Self::Tensor,
        f: &Self::Tensor,
        norms: &Self::Tensor,
        dx: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "l2_norm_backward";
        expect_shape(OP, "df", f.shape(), df.shape())?;
        expect_shape(OP, "dx", f.shape(), dx.shape())?;
        expect_shape(OP, "norms", [f.shape().matrix().0], norms.shape())?;
        Self::l2_norm_backward_checked(Checked(self), df, f, norms, dx)
    }

    /// [`Self::l2_norm`] of what was checked.
    fn l2_norm_checked(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        f: &mut Self::Tensor,
        norms: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::l2_norm_backward`] of what was checked.
    fn l2_norm_backward_checked(
        device: Checked<'_, Self>,
        df: &Self::Tensor,
        f: &Self::Tensor,
        norms: &Self::Tensor,
        dx: &mut Self::Tensor,
    ) -> Result<()>;
}
