//! MixUp of the rows of a matrix; and what kernels that mix along the way are handed.

use super::*;

const THREADS: usize = 128;

/// Elements that a thread moves where the width divides.
const FOUR: usize = 4;

/// A [`Mix`] as kernels take it.
#[derive(Clone, Copy)]
pub struct Mixed {
    pub partner: Address,
    pub inverse: Address,
    pub lambda: Address,
}

impl Mixed {
    /// Bytes that a kernel reads of it for `batch` rows: one of the indices, and λ.
    pub fn bytes(batch: usize) -> usize {
        batch * (size_of::<u32>() + size_of::<f32>())
    }

    /// That of `batch` rows or images, after shapes and types were checked. The kernels check the indices.
    pub fn of(op: &'static str, mix: &Mix<Cuda>, batch: usize) -> Result<Self> {
        expect_shape(op, "partner", [batch], mix.partner.shape())?;
        expect_shape(op, "inverse", [batch], mix.inverse.shape())?;
        expect_shape(op, "lambda", [batch], mix.lambda.shape())?;
        Ok(Mixed {
            partner: mix.partner.typed(DType::U32)?,
            inverse: mix.inverse.typed(DType::U32)?,
            lambda: mix.lambda.typed(DType::F32)?,
        })
    }
}

pub fn mix_rows(cuda: &Cuda, x: &CudaTensor, mix: &Mix<Cuda>, y: &mut CudaTensor) -> Result<()> {
    const OP: &str = "mix_rows";
    let (batch, width) = x.matrix();
    expect_shape(OP, "y", x.shape(), y.shape())?;
    let mixed = Mixed::of(OP, mix, batch)?;
    let (name, pack) = match width.is_multiple_of(FOUR) {
        true => ("mix_rows_fours", FOUR),
        false => ("mix_rows_ones", 1),
    };
    let args = Args::new()
        .address(x.typed(DType::F32)?)
        .address(mixed.partner)
        .address(mixed.lambda)
        .address(y.typed(DType::F32)?)
        .int(width)
        .moving(x.bytes() + y.bytes() + Mixed::bytes(batch));
    cuda.launch("mix", name, [batch, (width / pack).div_ceil(THREADS), 1], THREADS, 0, args)
}

pub fn mix_rows_backward(cuda: &Cuda, dy: &CudaTensor, mix: &Mix<Cuda>, dx: &mut CudaTensor) -> Result<()> {
    const OP: &str = "mix_rows_backward";
    let (batch, width) = dy.matrix();
    expect_shape(OP, "dx", dy.shape(), dx.shape())?;
    let mixed = Mixed::of(OP, mix, batch)?;
    let (name, pack) = match width.is_multiple_of(FOUR) {
        true => ("mix_rows_backward_fours", FOUR),
        false => ("mix_rows_backward_ones", 1),
    };
    let args = Args::new()
        .address(dy.typed(DType::F32)?)
        .address(mixed.inverse)
        .address(mixed.lambda)
        .address(dx.typed(DType::F32)?)
        .int(width)
        .moving(dy.bytes() + dx.bytes() + Mixed::bytes(batch));
    cuda.launch("mix", name, [batch, (width / pack).div_ceil(THREADS), 1], THREADS, 0, args)
}
