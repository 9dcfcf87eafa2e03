//! Random resized crops of u8 images.

use super::*;

const THREADS: usize = 224;

/// Rows of the result that a block makes.
const ROWS: usize = 8;

/// Columns of the tensor of crops.
const FIELDS: usize = 5;

pub fn crop_resize(cuda: &Cuda, images: &CudaTensor, crops: &CudaTensor, y: &mut CudaTensor) -> Result<()> {
    const OP: &str = "crop_resize";
    let invalid = |problem: String| BackendError::Invalid { op: OP, problem };
    let (&[batch, height, width, 3], &[same, side, across, 3]) = (images.shape().dims(), y.shape().dims())
    else {
        return Err(invalid(format!("images {} and y {} are not [B, H, W, 3]", images.shape(), y.shape())));
    };
    if (same, side) != (batch, across) || side == 0 {
        return Err(invalid(format!("y {} is not {batch} square images", y.shape())));
    }
    if height == 0 || width == 0 {
        return Err(invalid(format!("images of {height}x{width} have no pixels")));
    }
    expect_shape(OP, "crops", [batch, FIELDS], crops.shape())?;
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
    cuda.launch("crop_resize", "crop_resize_levels", grid, THREADS, 0, args)
}
