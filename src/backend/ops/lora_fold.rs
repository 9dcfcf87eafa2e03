//! Low-rank updates into the weights beside which they stand.

use super::*;

/// A layer whose adapters are to be folded into a copy of its weight.
pub struct LoraFold<'a, B: Memory> {
    /// W.
    pub weight: &'a B::Weight,
    /// Adapters of the layer.
    pub lora: Lora<'a, B>,
    /// W + scale·B·A, of W's shape.
    pub folded: &'a mut B::Weight,
}

/// Low-rank updates into the weights beside which they stand.
pub trait LoraFoldOp: Memory {
    /// folded = W + scale·B·A for each of `layers`.
    fn lora_fold(&self, layers: &mut [LoraFold<'_, Self>]) -> Result<()> {
        const OP: &str = "lora_fold";
        for LoraFold { weight, lora, folded } in layers.iter() {
            let weight = self.weight_shape(weight);
            let inputs = lora.a.shape().columns();
            lora.width(OP, inputs)?;
            expect_shape(OP, "weight", [weight.rows(), inputs], weight)?;
            expect_shape(OP, "folded", weight, self.weight_shape(folded))?;
        }
        Self::lora_fold_checked(Checked(self), layers)
    }

    /// [`Self::lora_fold`] of what was checked.
    fn lora_fold_checked(device: Checked<'_, Self>, layers: &mut [LoraFold<'_, Self>]) -> Result<()>;
}
