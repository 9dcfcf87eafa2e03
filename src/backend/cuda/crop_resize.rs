//! Random resized crops of u8 images.

use super::*;

const THREADS: usize = 224;

/// Rows of the result that a block makes.
const ROWS: usize = 8;

impl CropResizeOp for Cuda {
    fn crop_resize_checked(
        device: Checked<'_, Self>,
        images: &CudaTensor,
        crops: &CudaTensor,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let [batch, height, width, side] =
            [images.shape().rows(), images.shape().dims()[1], images.shape().dims()[2], y.shape().dims()[1]];
        let args = Args::new()
            .address(images.typed(DType::U8)?)
            .address(crops.typed(DType::U32)?)
            .address(y.typed(DType::U8)?)
            .int(height)
            .int(width)
            .int(side)
            // At the most: how much of the images the crops are is known on the device.
            .moving(images.bytes() + crops.bytes() + y.bytes());
        let grid = [batch, (3 * side).div_ceil(THREADS), side.div_ceil(ROWS)];
        device.launch("crop_resize", "crop_resize_levels", grid, THREADS, 0, args)
    }
}
