//! From pixels to tokens.

use super::*;

/// The patch embedding: `weight` \[D, P\] as the convolution stores it (channel, row, column), with zeros behind its
/// 3·p·p columns where P is more ([`PatchEmbedOp::patch_columns`]), `class` \[D\] and `position` \[S, D\] in the parameter dtype, the layer norm behind them, and how u8 pixels become
/// numbers: `(v/255 − mean)/std`.
pub struct PatchEmbedding<B: Memory> {
    /// W; there is no bias.
    pub projection: Linear<B>,
    /// The token in front of the patches, the same for every image.
    pub class: B::Tensor,
    /// Added to the tokens: row 0 to the class token, row i to patch i − 1, patches counted row by row.
    pub position: B::Tensor,
    /// Over the sum of tokens and positions.
    pub norm: LayerNorm<B>,
    /// p, the side of a square patch in pixels.
    pub patch: usize,
    /// Mean of red, green and blue of u8 pixels, as shares of 255.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue of u8 pixels, as shares of 255.
    pub std: [f32; 3],
}

/// Square images in square patches.
#[derive(Debug, Clone, Copy)]
pub struct PatchGrid {
    /// Images.
    pub batch: usize,
    /// Pixels of an image's side.
    pub side: usize,
    /// Patches along it.
    pub across: usize,
    /// Pixels of a patch's side.
    pub patch: usize,
    /// Whether the pixels are u8 with the channels last.
    pub levels: bool,
}

impl PatchGrid {
    /// That of `pixels` for `x` \[B, S, D\].
    fn of<B: Memory>(
        op: &'static str,
        pixels: &B::Tensor,
        compute: DType,
        x: Shape,
        patch: usize,
    ) -> Result<Self> {
        let &[batch, tokens, _] = x.dims() else {
            return Err(BackendError::Invalid { op, problem: format!("x {x} is not [B, S, D]") });
        };
        let found = match *pixels.shape().dims() {
            [b, h, w, 3] if h == w && pixels.dtype() == DType::U8 => Some((b, h, true)),
            [b, 3, h, w] if h == w && pixels.dtype() == compute => Some((b, h, false)),
            _ => None,
        };
        if let Some((b, side, levels)) = found
            && let Some(across) = side.checked_div(patch)
            && (b, across * across + 1) == (batch, tokens)
        {
            return Ok(PatchGrid { batch, side, across, patch, levels });
        }
        let (shape, dtype) = (pixels.shape(), pixels.dtype());
        let problem = format!(
            "pixels {shape} of {dtype} make no {batch}x{tokens} tokens from patches of {patch} a side"
        );
        Err(BackendError::Invalid { op, problem })
    }

    /// Patches of an image.
    pub fn patches(&self) -> usize {
        self.across * self.across
    }

    /// Numbers in a patch.
    pub fn inputs(&self) -> usize {
        3 * self.patch * self.patch
    }
}

/// Arguments of [`PatchEmbedOp::patch_embed`].
pub struct PatchEmbed<'a, B: Memory> {
    /// u8 \[B, H, W, 3\], or numbers \[B, 3, H, W\].
    pub pixels: &'a B::Tensor,
    /// How images are mixed.
    pub mix: Option<&'a Mix<B>>,
    /// The weights.
    pub embedding: &'a PatchEmbedding<B>,
    /// Scratch \[B, S−1, P\].
    pub patches: &'a mut B::Tensor,
    /// Scratch \[B, S−1, D\].
    pub products: &'a mut B::Tensor,
    /// The tokens \[B, S, D\].
    pub x: &'a mut B::Tensor,
}

/// From pixels to tokens.
pub trait PatchEmbedOp: Memory {
    /// x = layer norm of (\[class; patches·Wᵀ\] + position). Pixels of u8 are normalised here, numbers are taken as
    /// they are; then they are mixed where `mix` is given.
    fn patch_embed(&self, args: PatchEmbed<'_, Self>) -> Result<()> {
        const OP: &str = "patch_embed";
        let PatchEmbed { pixels, embedding, .. } = args;
        let x = args.x.shape();
        let grid = PatchGrid::of::<Self>(OP, pixels, self.compute_dtype(), x, embedding.patch)?;
        let (rows, d) = (grid.batch * grid.patches(), x.columns());
        let (weight, columns) =
            (self.weight_shape(&embedding.projection.weight), self.patch_columns(grid.inputs()));
        expect_shape(OP, "weight", [d, columns], weight)?;
        expect_shape(OP, "class", [d], embedding.class.shape())?;
        expect_shape(OP, "position", [grid.patches() + 1, d], embedding.position.shape())?;
        embedding.norm.expect(OP, d)?;
        expect_matrix(OP, "patches", rows, columns, args.patches.shape())?;
        expect_matrix(OP, "products", rows, d, args.products.shape())?;
        args.mix.map_or(Ok(()), |mix| mix.expect(OP, grid.batch))?;
        Self::patch_embed_checked(Checked(self), args, grid)
    }

    /// Columns P of patches of so many numbers, and of the weight that they are multiplied with: those behind the numbers
    /// are zeros, where a product of longer rows is faster.
    fn patch_columns(&self, inputs: usize) -> usize {
        inputs
    }

    /// [`Self::patch_embed`] of what was checked.
    fn patch_embed_checked(
        device: Checked<'_, Self>,
        args: PatchEmbed<'_, Self>,
        grid: PatchGrid,
    ) -> Result<()>;
}
