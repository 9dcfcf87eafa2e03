//! Head and text logits, their cross entropies, and the gradients of both.

use super::*;

#[allow(clippy::too_many_arguments)]
pub fn head_loss(
    _cuda: &Cuda,
    _f: &CudaTensor,
    _classifier: Classifier<'_, Cuda>,
    _labels: &CudaTensor,
    _head: &mut CudaTensor,
    _text: &mut CudaTensor,
    _stats: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("head_loss on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn head_loss_backward(
    _cuda: &Cuda,
    _f: &CudaTensor,
    _classifier: Classifier<'_, Cuda>,
    _labels: &CudaTensor,
    _weights: LossWeights,
    _control: Option<&CudaTensor>,
    _head: &mut CudaTensor,
    _text: &mut CudaTensor,
    _d_weight: &mut CudaTensor,
    _d_bias: &mut CudaTensor,
    _df: Option<&mut CudaTensor>,
) -> Result<()> {
    Err(CudaError::Unsupported("head_loss_backward on the GPU".into()).into())
}
