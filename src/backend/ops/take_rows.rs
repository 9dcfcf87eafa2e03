//! Picking single rows out of sequences.

use super::*;

/// Checks a selection of one row `picked` \[B, …, D\] from each of `sequences` \[B, S, D\].
fn expect_selection<B: Memory>(
    op: &'static str,
    sequences: &B::Tensor,
    rows: &B::Tensor,
    picked: &B::Tensor,
) -> Result<()> {
    let &[batch, _, d] = sequences.shape().dims() else {
        let problem = format!("x {} is not [B, S, D]", sequences.shape());
        return Err(BackendError::Invalid { op, problem });
    };
    expect_shape(op, "rows", [batch], rows.shape())?;
    expect_matrix(op, "y", batch, d, picked.shape())
}

/// Picking single rows out of sequences.
pub trait TakeRowsOp: Memory {
    /// y\[b\] = x\[b, rows\[b\]\]: `x` \[B, S, D\], `rows` u32 \[B\], `y` \[B, …, D\].
    fn take_rows(&self, x: &Self::Tensor, rows: &Self::Tensor, y: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "take_rows";
        expect_selection::<Self>(OP, x, rows, y)?;
        Self::take_rows_checked(Checked(self), x, rows, y)
    }

    /// dx\[b, rows\[b\]\] += dy\[b\]; adds to `dx`.
    fn take_rows_backward(
        &self,
        dy: &Self::Tensor,
        rows: &Self::Tensor,
        dx: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "take_rows_backward";
        expect_selection::<Self>(OP, dx, rows, dy)?;
        Self::take_rows_backward_checked(Checked(self), dy, rows, dx)
    }

    /// [`Self::take_rows`] of what was checked.
    fn take_rows_checked(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        rows: &Self::Tensor,
        y: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::take_rows_backward`] of what was checked.
    fn take_rows_backward_checked(
        device: Checked<'_, Self>,
        dy: &Self::Tensor,
        rows: &Self::Tensor,
        dx: &mut Self::Tensor,
    ) -> Result<()>;
}
