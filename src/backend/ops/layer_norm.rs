//! Layer norm over the last dimension.

use super::*;

/// What the gradient that an operation computes is added to.
#[derive(Debug)]
pub enum AddTo<'a, T> {
    /// Nothing: the output is written.
    Nothing,
    /// The output's own contents.
    Output,
    /// Another tensor of the output's shape.
    Tensor(&'a T),
}

/// A frozen layer norm: `weight` and `bias` \[D\], in the parameter dtype.
pub struct LayerNorm<B: Memory> {
    /// γ.
    pub weight: B::Tensor,
    /// β, added after scaling.
    pub bias: B::Tensor,
    /// ε, added to the variance; 1e-5 in CLIP.
    pub eps: f64,
}

impl<B: Memory> LayerNorm<B> {
    /// Checks that it is one for rows of `width`.
    pub(super) fn expect(&self, op: &'static str, width: usize) -> Result<()> {
        expect_shape(op, "weight", [width], self.weight.shape())?;
        expect_shape(op, "bias", [width], self.bias.shape())
    }
}

/// Layer norm over the last dimension.
pub trait LayerNormOp: Memory {
    /// y = (x − mean(x))/√(var(x) + eps)·w + b over the last dimension; `stats` \[…, 2\] keeps the
    /// mean and 1/√(var + eps) of each row.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        norm: &LayerNorm<Self>,
        y: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "layer_norm";
        let (rows, width) = x.shape().matrix();
        norm.expect(OP, width)?;
        expect_shape(OP, "y", x.shape(), y.shape())?;
        expect_matrix(OP, "stats", rows, 2, stats.shape())?;
        Self::layer_norm_checked(Checked(self), x, norm, y, stats)
    }

    /// With x̂ = (x − mean)/σ and g = dy·w: dx = `to` + (g − mean(g) − x̂·mean(g·x̂))/σ.
    fn layer_norm_backward(
        &self,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        norm: &LayerNorm<Self>,
        stats: &Self::Tensor,
        to: AddTo<'_, Self::Tensor>,
        dx: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "layer_norm_backward";
        let (rows, width) = x.shape().matrix();
        norm.expect(OP, width)?;
        expect_shape(OP, "dy", x.shape(), dy.shape())?;
        expect_shape(OP, "dx", x.shape(), dx.shape())?;
        expect_matrix(OP, "stats", rows, 2, stats.shape())?;
        if let AddTo::Tensor(before) = &to {
            expect_shape(OP, "to", x.shape(), before.shape())?;
        }
        Self::layer_norm_backward_checked(Checked(self), dy, x, norm, stats, to, dx)
    }

    /// [`Self::layer_norm`] of what was checked.
    fn layer_norm_checked(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        norm: &LayerNorm<Self>,
        y: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::layer_norm_backward`] of what was checked.
    fn layer_norm_backward_checked(
        device: Checked<'_, Self>,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        norm: &LayerNorm<Self>,
        stats: &Self::Tensor,
        to: AddTo<'_, Self::Tensor>,
        dx: &mut Self::Tensor,
    ) -> Result<()>;
}
