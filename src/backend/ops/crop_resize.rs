//! Random resized crops of u8 images.

use super::*;

/// Columns of the tensor of crops.
pub(crate) const CROP_FIELDS: usize = 5;

/// Random resized crops of u8 images.
pub trait CropResizeOp: Memory {
    /// Random resized crops: y\[b\] = the rectangle `crops`\[b\] of `images`\[b\], resized by an antialiased
    /// bicubic filter (a = −0.5, as Pillow's; the support grows with the reduction, taps end at the
    /// rectangle) and mirrored where asked. `images` u8 \[B, H, W, 3\]; `crops` u32 \[B, 5\]: top, left,
    /// height, width (at least 1, inside the image), 1 for mirrored; `y` u8 \[B, S, S, 3\], rounded to
    /// nearest, once (Pillow also rounds between its passes). A crop that is not inside the image is an error
    /// where the host sees it; a device moves and cuts it until it is.
    fn crop_resize(&self, images: &Self::Tensor, crops: &Self::Tensor, y: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "crop_resize";
        let invalid = |problem: String| BackendError::Invalid { op: OP, problem };
        let (&[batch, height, width, 3], &[same, side, across, 3]) =
            (images.shape().dims(), y.shape().dims())
        else {
            let (images, y) = (images.shape(), y.shape());
            return Err(invalid(format!("images {images} and y {y} are not [B, H, W, 3]")));
        };
        if (same, side) != (batch, across) || side == 0 {
            return Err(invalid(format!("y {} is not {batch} square images", y.shape())));
        }
        if height == 0 || width == 0 {
            return Err(invalid(format!("images of {height}x{width} have no pixels")));
        }
        expect_shape(OP, "crops", [batch, CROP_FIELDS], crops.shape())?;
        Self::crop_resize_checked(Checked(self), images, crops, y)
    }

    /// [`Self::crop_resize`] of what was checked.
    fn crop_resize_checked(
        device: Checked<'_, Self>,
        images: &Self::Tensor,
        crops: &Self::Tensor,
        y: &mut Self::Tensor,
    ) -> Result<()>;
}
