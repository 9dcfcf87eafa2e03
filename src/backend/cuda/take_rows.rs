//! Picking single rows out of sequences.

use super::*;

const THREADS: usize = 128;

impl TakeRowsOp for Cuda {
    fn take_rows_checked(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        rows: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let (batch, s, d) = (rows.shape().rows(), x.shape().dims()[1], x.shape().columns());
        let pack = device.pack(d);
        let name = if pack > 1 { "take_rows_wide" } else { "take_rows_ones" };
        let args = Args::new()
            .address(x.typed(device.real())?)
            .address(rows.typed(DType::U32)?)
            .address(y.typed(device.real())?)
            .int(s)
            .int(d)
            .moving(rows.bytes() + 2 * y.bytes());
        device.launch("take_rows", name, [batch, (d / pack).div_ceil(THREADS), 1], THREADS, 0, args)
    }

    fn take_rows_backward_checked(
        device: Checked<'_, Self>,
        dy: &CudaTensor,
        rows: &CudaTensor,
        dx: &mut CudaTensor,
    ) -> Result<()> {
        let (batch, s, d) = (rows.shape().rows(), dx.shape().dims()[1], dx.shape().columns());
        let pack = device.pack(d);
        let name = if pack > 1 { "take_rows_backward_wide" } else { "take_rows_backward_ones" };
        let args = Args::new()
            .address(dy.typed(device.real())?)
            .address(rows.typed(DType::U32)?)
            .address(dx.typed(device.real())?)
            .int(s)
            .int(d)
            .moving(rows.bytes() + 3 * dy.bytes());
        device.launch("take_rows", name, [batch, (d / pack).div_ceil(THREADS), 1], THREADS, 0, args)
    }
}
