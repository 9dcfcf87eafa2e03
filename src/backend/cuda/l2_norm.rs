//! Rows of length one.

use super::*;

const THREADS: usize = 128;

/// Rows of a block: a warp takes one.
const ROWS: usize = 4;

/// Elements that a lane moves at a time where the width divides.
const FOUR: usize = 4;

impl L2NormOp for Cuda {
    fn l2_norm_checked(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        f: &mut CudaTensor,
        norms: &mut CudaTensor,
    ) -> Result<()> {
        let (rows, width) = x.matrix();
        let name = if width.is_multiple_of(FOUR) { "l2_norm_fours" } else { "l2_norm_ones" };
        let args = Args::new()
            .address(x.typed(device.real())?)
            .address(f.typed(DType::F32)?)
            .address(norms.typed(DType::F32)?)
            .int(rows)
            .int(width)
            .moving(x.bytes() + f.bytes() + norms.bytes());
        device.launch("l2_norm", name, [rows.div_ceil(ROWS), 1, 1], THREADS, 0, args)
    }

    fn l2_norm_backward_checked(
        device: Checked<'_, Self>,
        df: &CudaTensor,
        f: &CudaTensor,
        norms: &CudaTensor,
        dx: &mut CudaTensor,
    ) -> Result<()> {
        let (rows, width) = f.matrix();
        let name =
            if width.is_multiple_of(FOUR) { "l2_norm_backward_fours" } else { "l2_norm_backward_ones" };
        let args = Args::new()
            .address(df.typed(DType::F32)?)
            .address(f.typed(DType::F32)?)
            .address(norms.typed(DType::F32)?)
            .address(dx.typed(device.real())?)
            .int(rows)
            .int(width)
            .moving(df.bytes() + f.bytes() + norms.bytes() + dx.bytes());
        device.launch("l2_norm", name, [rows.div_ceil(ROWS), 1, 1], THREADS, 0, args)
    }
}
