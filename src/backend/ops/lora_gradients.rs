//! The gradients of low-rank updates in the weights.

use super::*;

/// A layer's adapters, and what their gradients are computed from.
pub struct LoraGradients<'a, B: Memory> {
    /// The layer's input \[…, in\].
    pub x: &'a B::Tensor,
    /// The gradient of its output.
    pub dy: &'a B::Tensor,
    /// Adapters of the layer.
    pub lora: Lora<'a, B>,
    /// Gradient of A.
    pub da: &'a mut B::Tensor,
    /// Gradient of B.
    pub db: &'a mut B::Tensor,
}

/// The gradients of low-rank updates in the weights.
pub trait LoraGradientsOp: Memory {
    /// With u = x·Aᵀ and du = scale·dy·B: dA = duᵀ·x and dB = scale·dyᵀ·u for each of `layers`.
    fn lora_gradients(&self, layers: &mut [LoraGradients<'_, Self>]) -> Result<()> {
        const OP: &str = "lora_gradients";
        for LoraGradients { x, dy, lora, da, db } in layers.iter() {
            let ((rows, inputs), (_, outputs)) = (x.shape().matrix(), dy.shape().matrix());
            lora.width(OP, inputs)?;
            expect_matrix(OP, "dy", rows, outputs, dy.shape())?;
            expect_shape(OP, "da", lora.a.shape(), da.shape())?;
            expect_shape(OP, "db", lora.b.shape(), db.shape())?;
        }
        Self::lora_gradients_checked(Checked(self), layers)
    }

    /// [`Self::lora_gradients`] of what was checked.
    fn lora_gradients_checked(
        device: Checked<'_, Self>,
        layers: &mut [LoraGradients<'_, Self>],
    ) -> Result<()>;
}
