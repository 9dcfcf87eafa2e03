//! From pixels to tokens, and picking single tokens out of sequences.

use super::*;

#[allow(clippy::too_many_arguments)]
pub fn patch_embed(
    _cuda: &Cuda,
    _pixels: &CudaTensor,
    _embedding: &PatchEmbedding<Cuda>,
    _patches: &mut CudaTensor,
    _products: &mut CudaTensor,
    _x: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("patch_embed on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn take_rows(_cuda: &Cuda, _x: &CudaTensor, _rows: &CudaTensor, _y: &mut CudaTensor) -> Result<()> {
    Err(CudaError::Unsupported("take_rows on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn take_rows_backward(
    _cuda: &Cuda,
    _dy: &CudaTensor,
    _rows: &CudaTensor,
    _dx: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("take_rows_backward on the GPU".into()).into())
}
