//! Rows of length one.

use super::*;

#[allow(clippy::too_many_arguments)]
pub fn l2_norm(_cuda: &Cuda, _x: &CudaTensor, _f: &mut CudaTensor, _norms: &mut CudaTensor) -> Result<()> {
    Err(CudaError::Unsupported("l2_norm on the GPU".into()).into())
}

#[allow(clippy::too_many_arguments)]
pub fn l2_norm_backward(
    _cuda: &Cuda,
    _df: &CudaTensor,
    _f: &CudaTensor,
    _norms: &CudaTensor,
    _dx: &mut CudaTensor,
) -> Result<()> {
    Err(CudaError::Unsupported("l2_norm_backward on the GPU".into()).into())
}
