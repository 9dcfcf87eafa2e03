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

    /// The kernels check the indices.
    pub fn of(mix: &Mix<Cuda>) -> Result<Self> {
        Ok(Mixed {
            partner: mix.partner.typed(DType::U32)?,
            inverse: mix.inverse.typed(DType::U32)?,
            lambda: mix.lambda.typed(DType::F32)?,
        })
    }
}

impl MixRowsOp for Cuda {
    fn mix_rows_checked(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        mix: &Mix<Cuda>,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let (batch, width) = x.matrix();
        let mixed = Mixed::of(mix)?;
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
        device.launch("mix_rows", name, [batch, (width / pack).div_ceil(THREADS), 1], THREADS, 0, args)
    }

    fn mix_rows_backward_checked(
        device: Checked<'_, Self>,
        dy: &CudaTensor,
        mix: &Mix<Cuda>,
        dx: &mut CudaTensor,
    ) -> Result<()> {
        let (batch, width) = dy.matrix();
        let mixed = Mixed::of(mix)?;
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
        device.launch("mix_rows", name, [batch, (width / pack).div_ceil(THREADS), 1], THREADS, 0, args)
    }
}
