//! The MLP's non-linearity.

use super::*;

/// The non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// z·σ(1.702·z), as OpenAI trained CLIP.
    QuickGelu,
    /// z·Φ(z) with the exact normal distribution function.
    Gelu,
}

/// The MLP's non-linearity.
pub trait ActivationOp: Memory {
    /// g = act(z), or act(z + bias) with the same bias \[columns\] for every row.
    fn activation(
        &self,
        kind: Activation,
        z: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        g: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "activation";
        expect_bias(OP, z.shape().columns(), bias)?;
        expect_shape(OP, "g", z.shape(), g.shape())?;
        Self::activation_checked(Checked(self), kind, z, bias, g)
    }

    /// dz = dg·act′(z), or dg·act′(z + bias), in place: `d` holds dg and then dz.
    fn activation_backward(
        &self,
        kind: Activation,
        z: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        d: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "activation_backward";
        expect_bias(OP, z.shape().columns(), bias)?;
        expect_shape(OP, "d", z.shape(), d.shape())?;
        Self::activation_backward_checked(Checked(self), kind, z, bias, d)
    }

    /// [`Self::activation`] of what was checked.
    fn activation_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        g: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::activation_backward`] of what was checked.
    fn activation_backward_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        d: &mut Self::Tensor,
    ) -> Result<()>;
}
