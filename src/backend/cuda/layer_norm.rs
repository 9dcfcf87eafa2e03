//! Layer norm over the last dimension, and its gradient with respect to the input.

use super::*;

#[allow(clippy::too_many_arguments)]
pub fn layer_norm(
    _cuda: &Cuda,
    _x: &CudaTensor,
    _norm: &LayerNorm<Cuda>,
    _y: &mut CudaTensor,
    _stats: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("layer_norm on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(
    _cuda: &Cuda,
    _dy: &CudaTensor,
    _x: &CudaTensor,
    _norm: &LayerNorm<Cuda>,
    _stats: &CudaTensor,
    _dx: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("layer_norm_backward on the GPU".into()).into())
}
