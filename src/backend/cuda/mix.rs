//! MixUp of the rows of a matrix.

use super::*;

pub fn mix_rows(_cuda: &Cuda, _x: &CudaTensor, _mix: &Mix<Cuda>, _y: &mut CudaTensor) -> Result<()> {
    Err(BackendError::Invalid { op: "mix_rows", problem: "is being written".into() })
}

pub fn mix_rows_backward(
    _cuda: &Cuda,
    _dy: &CudaTensor,
    _mix: &Mix<Cuda>,
    _dx: &mut CudaTensor,
) -> Result<()> {
    Err(BackendError::Invalid { op: "mix_rows_backward", problem: "is being written".into() })
}
