//! Rows of length one.

use super::*;

const THREADS: usize = 128;

/// Rows of a block: a warp takes one.
const ROWS: usize = 4;

/// Elements that a lane moves at a time where the width divides.
const FOUR: usize = 4;

pub fn l2_norm(cuda: &Cuda, x: &CudaTensor, f: &mut CudaTensor, norms: &mut CudaTensor) -> Result<()> {
    let (rows, width) = x.matrix();
    expect_shape("l2_norm", "f", x.shape(), f.shape())?;
    expect_shape("l2_norm", "norms", [rows], norms.shape())?;
    let name = if width.is_multiple_of(FOUR) { "l2_norm_fours" } else { "l2_norm_ones" };
    let args = Args::new()
        .address(x.typed(cuda.real())?)
        .address(f.typed(DType::F32)?)
        .address(norms.typed(DType::F32)?)
        .int(rows)
        .int(width)
        .moving(x.bytes() + f.bytes() + norms.bytes());
    cuda.launch("l2_norm", name, [rows.div_ceil(ROWS), 1, 1], THREADS, 0, args)
}

pub fn l2_norm_backward(
    cuda: &Cuda,
    df: &CudaTensor,
    f: &CudaTensor,
    norms: &CudaTensor,
    dx: &mut CudaTensor,
) -> Result<()> {
    let (rows, width) = f.matrix();
    expect_shape("l2_norm_backward", "df", f.shape(), df.shape())?;
    expect_shape("l2_norm_backward", "dx", f.shape(), dx.shape())?;
    expect_shape("l2_norm_backward", "norms", [rows], norms.shape())?;
    let name = if width.is_multiple_of(FOUR) { "l2_norm_backward_fours" } else { "l2_norm_backward_ones" };
    let args = Args::new()
        .address(df.typed(DType::F32)?)
        .address(f.typed(DType::F32)?)
        .address(norms.typed(DType::F32)?)
        .address(dx.typed(cuda.real())?)
        .int(rows)
        .int(width)
        .moving(df.bytes() + f.bytes() + norms.bytes() + dx.bytes());
    cuda.launch("l2_norm", name, [rows.div_ceil(ROWS), 1, 1], THREADS, 0, args)
}
