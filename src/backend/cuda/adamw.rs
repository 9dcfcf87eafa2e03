//! AdamW over all trained tensors, and loss scaling.

use super::*;

/// The table of trained tensors as the kernel reads it.
#[derive(Default)]
pub struct Tables {}

#[allow(clippy::too_many_arguments)]
pub fn adamw(
    _cuda: &Cuda,
    _tensors: &mut [AdamwTensor<'_, Cuda>],
    _step: AdamwStep<'_, Cuda>,
    _stats: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("adamw on the GPU".into()).into())
}
