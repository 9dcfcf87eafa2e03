//! Batch-hard triplet loss on features.

use super::*;

#[allow(clippy::too_many_arguments)]
pub fn triplet(
    _cuda: &Cuda,
    _f: &CudaTensor,
    _labels: &CudaTensor,
    _margin: f64,
    _pairs: &mut CudaTensor,
    _distances: &mut CudaTensor,
    _stats: &mut CudaTensor,
) -> Result<()> {
    Err(BackendError::Invalid { op: "triplet", problem: "is being written".into() })
}

pub fn triplet_backward(
    _cuda: &Cuda,
    _f: &CudaTensor,
    _pairs: &CudaTensor,
    _distances: &CudaTensor,
    _weight: f64,
    _control: Option<&CudaTensor>,
    _df: &mut CudaTensor,
) -> Result<()> {
    Err(BackendError::Invalid { op: "triplet_backward", problem: "is being written".into() })
}
