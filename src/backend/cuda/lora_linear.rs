//! Frozen linear layers, with and without a low-rank update beside them.

use super::*;

#[allow(clippy::too_many_arguments)]
pub fn linear(
    _cuda: &Cuda,
    _x: &CudaTensor,
    _layer: &Linear<Cuda>,
    _residual: Option<&CudaTensor>,
    _y: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("linear on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn linear_backward(
    _cuda: &Cuda,
    _dy: &CudaTensor,
    _layer: &Linear<Cuda>,
    _dx: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("linear_backward on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    _cuda: &Cuda,
    _x: &CudaTensor,
    _layer: &Linear<Cuda>,
    _lora: Lora<'_, Cuda>,
    _residual: Option<&CudaTensor>,
    _u: &mut CudaTensor,
    _y: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("lora_linear on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn lora_linear_backward(
    _cuda: &Cuda,
    _dy: &CudaTensor,
    _x: &CudaTensor,
    _u: &CudaTensor,
    _layer: &Linear<Cuda>,
    _lora: Lora<'_, Cuda>,
    _du: &mut CudaTensor,
    _da: &mut CudaTensor,
    _db: &mut CudaTensor,
    _dx: Option<&mut CudaTensor>,
) -> Result<()> {
    Err(CudaError::Unsupported("lora_linear_backward on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn lora_fold(
    _cuda: &Cuda,
    _weight: &CudaTensor,
    _lora: Lora<'_, Cuda>,
    _folded: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("lora_fold on the GPU".into()).into())
}
