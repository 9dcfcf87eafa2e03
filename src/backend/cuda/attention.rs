//! Scaled dot-product attention.

use super::*;

#[allow(clippy::too_many_arguments)]
pub fn attention(
    _cuda: &Cuda,
    _input: AttentionInput<'_, Cuda>,
    _shape: AttentionShape,
    _saved: &mut CudaTensor,
    _o: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("attention on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    _cuda: &Cuda,
    _d_o: &CudaTensor,
    _o: &CudaTensor,
    _input: AttentionInput<'_, Cuda>,
    _saved: &CudaTensor,
    _shape: AttentionShape,
    _scratch: &mut CudaTensor,
    _gradient: AttentionGradient<'_, Cuda>,
) -> Result<()> {
    Err(CudaError::Unsupported("attention_backward on the GPU".into()).into())
}
