//! Class features from the features of their prompts.

use super::*;

const THREADS: usize = 128;

/// Elements that a thread moves at a time where the width divides.
const FOUR: usize = 4;

/// Classes, prompts of each and width, after all shapes were compared.
fn extents(
    op: &'static str,
    f: &CudaTensor,
    t: &CudaTensor,
    norms: &CudaTensor,
) -> Result<(usize, usize, usize)> {
    let ((prompts, width), (classes, _)) = (f.matrix(), t.matrix());
    if classes == 0 || prompts == 0 || !prompts.is_multiple_of(classes) {
        let problem = format!("{prompts} prompts are not the same number for each of {classes} classes");
        return Err(BackendError::Invalid { op, problem });
    }
    expect_shape(op, "f", [prompts, width], f.shape())?;
    expect_shape(op, "t", [classes, width], t.shape())?;
    expect_shape(op, "norms", [classes], norms.shape())?;
    Ok((classes, prompts / classes, width))
}

pub fn class_features(cuda: &Cuda, f: &CudaTensor, t: &mut CudaTensor, norms: &mut CudaTensor) -> Result<()> {
    let (classes, prompts, width) = extents("class_features", f, t, norms)?;
    let name = if width.is_multiple_of(FOUR) { "class_features_fours" } else { "class_features_ones" };
    let args = Args::new()
        .address(f.typed(DType::F32)?)
        .address(t.typed(DType::F32)?)
        .address(norms.typed(DType::F32)?)
        .int(prompts)
        .int(width)
        .moving(f.bytes() + t.bytes() + norms.bytes());
    cuda.launch("class_features", name, [classes, 1, 1], THREADS, 0, args)
}

pub fn class_features_backward(
    cuda: &Cuda,
    dt: &CudaTensor,
    t: &CudaTensor,
    norms: &CudaTensor,
    df: &mut CudaTensor,
) -> Result<()> {
    const OP: &str = "class_features_backward";
    let (classes, prompts, width) = extents(OP, df, t, norms)?;
    expect_shape(OP, "dt", t.shape(), dt.shape())?;
    let name = match width.is_multiple_of(FOUR) {
        true => "class_features_backward_fours",
        false => "class_features_backward_ones",
    };
    let args = Args::new()
        .address(dt.typed(DType::F32)?)
        .address(t.typed(DType::F32)?)
        .address(norms.typed(DType::F32)?)
        .address(df.typed(DType::F32)?)
        .int(prompts)
        .int(width)
        .moving(dt.bytes() + t.bytes() + norms.bytes() + df.bytes());
    cuda.launch("class_features", name, [classes, 1, 1], THREADS, 0, args)
}
