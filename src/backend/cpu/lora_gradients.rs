//! The gradients of low-rank updates in the weights.

use super::lora_linear::{Parts, gradients, narrow_product};
use super::number::OnHost;
use super::real::Real;
use super::*;

impl<T: Real> LoraGradientsOp for Cpu<T> {
    fn lora_gradients_checked(
        _device: Checked<'_, Self>,
        layers: &mut [LoraGradients<'_, Self>],
    ) -> Result<()> {
        layers.iter_mut().try_for_each(|layer| {
            // Of bf16 too.
            let [x, dy] = [layer.x, layer.dy].map(|tensor| tensor.view().to_tensor(T::DTYPE));
            lora_gradients::<T, Self>(&x?, &dy?, layer)
        })
    }
}

/// Copies x and dy, and makes u and du for itself: no step of this backend's own takes its gradients in this form.
fn lora_gradients<T: Real, B: OnHost>(
    x: &Tensor,
    dy: &Tensor,
    LoraGradients { lora, da, db, .. }: &mut LoraGradients<'_, B>,
) -> Result<()> {
    let (rows, _) = x.shape().matrix();
    let parts = Parts::<T>::of(*lora)?;
    let [mut u, mut du] = [(); 2].map(|()| Tensor::zeros([rows, parts.width()], T::DTYPE));
    narrow_product(x, &parts, u.typed_mut::<T>()?)?;
    gradients::<T, B>(dy, x, &u, *lora, &mut du, da, db)
}
