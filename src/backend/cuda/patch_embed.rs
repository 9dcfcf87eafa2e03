//! From pixels to tokens.

use super::layer_norm;
use super::mix_rows::Mixed;
use super::*;

const THREADS: usize = 256;

/// Rows of pixels that a block takes where they fit [`STRIP`].
const STRIP_ROWS: usize = 8;

/// Bytes of shared memory for the pixels of a block; every device has them without being asked for more.
const STRIP: usize = 32 * 1024;

impl PatchEmbedOp for Cuda {
    fn patch_embed_checked(
        device: Checked<'_, Self>,
        args: PatchEmbed<'_, Cuda>,
        grid: PatchGrid,
    ) -> Result<()> {
        let PatchEmbed { pixels, mix, embedding, patches, products, x } = args;
        let mixed = mix.map(Mixed::of).transpose()?;
        if grid.batch * grid.patches() > 0 {
            gather_patches(&device, pixels, mixed, embedding, grid, patches)?;
            multiply(&device, patches, embedding, products)?;
        }
        norm_tokens(&device, products, embedding, x, grid.patches() + 1)
    }

    fn patch_columns(&self, inputs: usize) -> usize {
        inputs.next_multiple_of(16 / self.real().size())
    }
}

/// Copies every patch into a row, in the order of the convolution's weights; of a mixed image, its two images'
/// patches by their shares.
fn gather_patches(
    cuda: &Cuda,
    pixels: &CudaTensor,
    mixed: Option<Mixed>,
    embedding: &PatchEmbedding<Cuda>,
    grid: PatchGrid,
    patches: &mut CudaTensor,
) -> Result<()> {
    let PatchGrid { batch, side, across, patch, levels } = grid;
    let mut args = Args::new().address(pixels.address());
    if let Some(mixed) = mixed {
        args = args.address(mixed.partner).address(mixed.lambda).moving(Mixed::bytes(batch));
    }
    let stride = patches.shape().columns();
    args = args.address(patches.typed(cuda.real())?).int(stride).int(side).int(across).int(patch);
    args = args.moving(pixels.bytes() + patches.bytes());
    // Rows of patches begin at whole packs.
    let pack = cuda.pack(patch);
    if !levels {
        // Here packs are read as well, from rows of the image.
        let pack = pack.min(cuda.pack(side));
        let name = match (pack > 1, mixed.is_some()) {
            (true, false) => "patch_embed_numbers_wide",
            (false, false) => "patch_embed_numbers_ones",
            (true, true) => "patch_embed_numbers_mixed_wide",
            (false, true) => "patch_embed_numbers_mixed_ones",
        };
        let packs = 3 * (across * patch).pow(2) / pack;
        return cuda.launch("patch_embed", name, [batch, packs.div_ceil(THREADS), 1], THREADS, 0, args);
    }
    let images = 1 + usize::from(mixed.is_some());
    let rows = STRIP_ROWS.min(STRIP / (3 * side * images));
    if rows == 0 {
        let problem = format!("{images} rows of {side} pixels have more than {STRIP} bytes");
        return Err(BackendError::Invalid { op: "patch_embed", problem });
    }
    args = args.int(rows);
    for value in embedding.mean.iter().chain(&embedding.std) {
        args = args.float(*value);
    }
    let name = match (pack > 1, patch.is_multiple_of(2), mixed.is_some()) {
        (true, _, false) => "patch_embed_pixels_wide",
        (false, true, false) => "patch_embed_pixels_pairs",
        (false, false, false) => "patch_embed_pixels_ones",
        (true, _, true) => "patch_embed_pixels_mixed_wide",
        (false, true, true) => "patch_embed_pixels_mixed_pairs",
        (false, false, true) => "patch_embed_pixels_mixed_ones",
    };
    let blocks = (across * patch).div_ceil(rows);
    // The second strip begins where 16 bytes do.
    let strips = images * (rows * side * 3).next_multiple_of(16);
    cuda.launch("patch_embed", name, [batch, blocks, 1], THREADS, strips, args)
}

/// products = patches·Wᵀ.
fn multiply(
    cuda: &Cuda,
    patches: &CudaTensor,
    embedding: &PatchEmbedding<Cuda>,
    products: &mut CudaTensor,
) -> Result<()> {
    let ((m, k), (_, n)) = (patches.matrix(), products.matrix());
    let gemm = Gemm {
        m,
        n,
        k,
        x: patches.typed(cuda.real())?,
        x_stride: k,
        w: embedding.projection.weight.typed(cuda.real())?,
        w_stride: k,
        transposed: true,
        bias: None,
        add: None,
        y: products.typed(cuda.real())?,
        y_stride: n,
        dtype: cuda.real(),
    };
    cuda.gemm(&gemm)
}

/// x = layer norm of (\[class; products\] + position).
fn norm_tokens(
    cuda: &Cuda,
    products: &CudaTensor,
    embedding: &PatchEmbedding<Cuda>,
    x: &mut CudaTensor,
    tokens: usize,
) -> Result<()> {
    let (rows, d) = x.matrix();
    let (weight, bias) = layer_norm::parameters(&embedding.norm)?;
    let args = Args::new()
        .address(products.typed(cuda.real())?)
        .address(embedding.class.typed(DType::F32)?)
        .address(embedding.position.typed(DType::F32)?)
        .address(weight)
        .address(bias)
        .address(x.typed(cuda.real())?)
        .int(rows)
        .int(tokens)
        .int(d)
        .float(embedding.norm.eps as f32)
        .moving(products.bytes() + embedding.class.bytes() + embedding.position.bytes() + x.bytes())
        .moving(layer_norm::bytes_of_parameters(&embedding.norm));
    layer_norm::launch_rows(cuda, &layer_norm::TOKENS, rows, d, args)
}
