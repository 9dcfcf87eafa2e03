//! The MLP's activation functions.

use super::*;

#[allow(clippy::too_many_arguments)]
pub fn activation(_cuda: &Cuda, _kind: Activation, _z: &CudaTensor, _g: &mut CudaTensor) -> Result<()> {
    Err(CudaError::Unsupported("activation on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn activation_backward(
    _cuda: &Cuda,
    _kind: Activation,
    _z: &CudaTensor,
    _d: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("activation_backward on the GPU".into()).into())
}
