//! Low-rank updates into the weights beside which they stand.

use super::linear::Padded;
use super::lora_linear::Parts;
use super::number::OnHost;
use super::real::Real;
use super::*;

impl<T: Real> LoraFoldOp for Cpu<T> {
    fn lora_fold_checked(device: Checked<'_, Self>, layers: &mut [LoraFold<'_, Self>]) -> Result<()> {
        let mut layers = layers.iter_mut();
        layers.try_for_each(|layer| match (&layer.weight.0, &mut layer.folded.0) {
            (Layout::F32(weight), Layout::F32(folded)) => {
                let isa = device.f32.ok_or_else(|| foreign("lora_fold"))?;
                packed::linear::fold_f32(isa, weight, layer.lora, folded)
            }
            (Layout::Real(weight), Layout::Real(folded)) => lora_fold::<T, Self>(weight, layer.lora, folded),
            (Layout::Bf16(weight), Layout::Bf16(folded)) => {
                packed::linear::fold_bf16(weight, layer.lora, folded)
            }
            _ => Err(foreign("lora_fold")),
        })
    }
}

fn lora_fold<T: Real, B: OnHost>(weight: &Padded, lora: Lora<'_, B>, folded: &mut Padded) -> Result<()> {
    let parts = Parts::<T>::of(lora)?;
    let stride = weight.values.shape().columns();
    let folded = folded.values.typed_mut::<T>()?;
    folded.copy_from_slice(weight.values.typed::<T>()?);
    parts.fold_into(folded, stride);
    Ok(())
}
