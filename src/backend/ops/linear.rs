//! Frozen linear layers.

use super::*;

/// A frozen linear layer: `weight` \[out, in\], `bias` \[out\].
pub struct Linear<B: Memory> {
    /// W, in the compute type.
    pub weight: B::Weight,
    /// b, in the compute type; none adds nothing.
    pub bias: Option<B::Tensor>,
}

/// What is kept of z = x·Wᵀ + b for the backward pass through the activation function behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// z.
    Sum,
    /// x·Wᵀ, to which b is added again.
    Product,
}

impl Kept {
    /// What is still to be added to what was kept.
    pub fn bias<B: Memory>(self, layer: &Linear<B>) -> Option<&B::Tensor> {
        layer.bias.as_ref().filter(|_| self == Kept::Product)
    }
}

/// Checks what is added to each row of so many columns.
pub(super) fn expect_bias<T: DeviceTensor>(op: &'static str, columns: usize, bias: Option<&T>) -> Result<()> {
    bias.map_or(Ok(()), |bias| expect_shape(op, "bias", [columns], bias.shape()))
}

/// Checks a layer of `device` with so many inputs and outputs.
pub(super) fn expect_layer<B: Memory>(
    device: &B,
    op: &'static str,
    layer: &Linear<B>,
    inputs: usize,
    outputs: usize,
) -> Result<()> {
    expect_shape(op, "weight", [outputs, inputs], device.weight_shape(&layer.weight))?;
    expect_bias(op, outputs, layer.bias.as_ref())
}

/// Checks the output of a layer for `x`, and what is added to it.
pub(super) fn expect_output<B: Memory>(
    op: &'static str,
    x: &B::Tensor,
    residual: Option<&B::Tensor>,
    y: &B::Tensor,
) -> Result<()> {
    expect_matrix(op, "y", x.shape().matrix().0, y.shape().columns(), y.shape())?;
    residual.map_or(Ok(()), |residual| expect_shape(op, "residual", y.shape(), residual.shape()))
}

/// Frozen linear layers.
pub trait LinearOp: ActivationOp {
    /// y = x·Wᵀ + b (+ residual).
    fn linear(
        &self,
        x: &Self::Tensor,
        layer: &Linear<Self>,
        residual: Option<&Self::Tensor>,
        y: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "linear";
        expect_layer(self, OP, layer, x.shape().columns(), y.shape().columns())?;
        expect_output::<Self>(OP, x, residual, y)?;
        Self::linear_checked(Checked(self), x, layer, residual, y)
    }

    /// dx = dy·W. There is no dW: the layer is frozen.
    fn linear_backward(&self, dy: &Self::Tensor, layer: &Linear<Self>, dx: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "linear_backward";
        let (rows, outputs) = dy.shape().matrix();
        expect_layer(self, OP, layer, dx.shape().columns(), outputs)?;
        expect_matrix(OP, "dx", rows, dx.shape().columns(), dx.shape())?;
        Self::linear_backward_checked(Checked(self), dy, layer, dx)
    }

    /// g = act(z) with z = x·Wᵀ + b, and in `z` what is kept of it, as is said.
    fn linear_activation(
        &self,
        x: &Self::Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &mut Self::Tensor,
        g: &mut Self::Tensor,
    ) -> Result<Kept> {
        const OP: &str = "linear_activation";
        expect_layer(self, OP, layer, x.shape().columns(), z.shape().columns())?;
        expect_output::<Self>(OP, x, None, z)?;
        expect_shape(OP, "g", z.shape(), g.shape())?;
        Self::linear_activation_checked(Checked(self), x, layer, kind, z, g)
    }

    /// dz = (dy·W)·act′(z), or (dy·W)·act′(z + bias): see [`Kept::bias`], of the layer in front of the function.
    fn linear_activation_backward(
        &self,
        dy: &Self::Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        dz: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "linear_activation_backward";
        let (rows, outputs) = dy.shape().matrix();
        expect_layer(self, OP, layer, dz.shape().columns(), outputs)?;
        expect_matrix(OP, "dz", rows, dz.shape().columns(), dz.shape())?;
        expect_shape(OP, "z", dz.shape(), z.shape())?;
        expect_bias(OP, z.shape().columns(), bias)?;
        Self::linear_activation_backward_checked(Checked(self), dy, layer, kind, z, bias, dz)
    }

    /// [`Self::linear`] of what was checked.
    fn linear_checked(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        layer: &Linear<Self>,
        residual: Option<&Self::Tensor>,
        y: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::linear_backward`] of what was checked.
    fn linear_backward_checked(
        device: Checked<'_, Self>,
        dy: &Self::Tensor,
        layer: &Linear<Self>,
        dx: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::linear_activation`] of what was checked: two operations where a device has no better form.
    fn linear_activation_checked(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &mut Self::Tensor,
        g: &mut Self::Tensor,
    ) -> Result<Kept> {
        Self::linear_checked(device, x, layer, None, z)?;
        Self::activation_checked(device, kind, z, None, g)?;
        Ok(Kept::Sum)
    }

    /// [`Self::linear_activation_backward`] of what was checked: two operations where a device has no better form.
    fn linear_activation_backward_checked(
        device: Checked<'_, Self>,
        dy: &Self::Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        dz: &mut Self::Tensor,
    ) -> Result<()> {
        Self::linear_backward_checked(device, dy, layer, dz)?;
        Self::activation_backward_checked(device, kind, z, bias, dz)
    }
}
