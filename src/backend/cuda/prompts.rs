//! Prompt tokens between the class token and the patches.

use super::*;

pub fn insert_prompts(
    _cuda: &Cuda,
    _x: &CudaTensor,
    _prompts: &CudaTensor,
    _layer: usize,
    _y: &mut CudaTensor,
) -> Result<()> {
    Err(BackendError::Invalid { op: "insert_prompts", problem: "is being written".into() })
}

pub fn insert_prompts_backward(
    _cuda: &Cuda,
    _dy: &CudaTensor,
    _layer: usize,
    _d_prompts: &mut CudaTensor,
    _dx: Option<&mut CudaTensor>,
) -> Result<()> {
    Err(BackendError::Invalid { op: "insert_prompts_backward", problem: "is being written".into() })
}

pub fn replace_prompts(
    _cuda: &Cuda,
    _prompts: &CudaTensor,
    _layer: usize,
    _x: &mut CudaTensor,
) -> Result<()> {
    Err(BackendError::Invalid { op: "replace_prompts", problem: "is being written".into() })
}

pub fn replace_prompts_backward(
    _cuda: &Cuda,
    _d: &mut CudaTensor,
    _layer: usize,
    _d_prompts: &mut CudaTensor,
) -> Result<()> {
    Err(BackendError::Invalid { op: "replace_prompts_backward", problem: "is being written".into() })
}
