//! From pixels to tokens, and picking single tokens out of sequences.

use super::layer_norm;
use super::mix::Mixed;
use super::*;
use crate::backend::cuda::driver::Gemm;

const THREADS: usize = 256;

/// Threads of a block that copies rows.
const COPY_THREADS: usize = 128;

/// Rows of pixels that a block takes where they fit [`STRIP`].
const STRIP_ROWS: usize = 8;

/// Bytes of shared memory for the pixels of a block; every device has them without being asked for more.
const STRIP: usize = 32 * 1024;

const PATCH_EMBED: &str = "patch_embed";

/// Elements in 16 bytes if rows of `width` divide into them, else 1.
fn pack(cuda: &Cuda, width: usize) -> usize {
    let wide = 16 / cuda.real().size();
    if width.is_multiple_of(wide) { wide } else { 1 }
}

/// The sizes of an embedding: square images in square patches.
#[derive(Clone, Copy)]
struct Grid {
    batch: usize,
    side: usize,
    across: usize,
    patch: usize,
    /// Whether the pixels are u8 with the channels last.
    levels: bool,
}

impl Grid {
    fn of(cuda: &Cuda, pixels: &CudaTensor, batch: usize, tokens: usize, patch: usize) -> Result<Self> {
        let real = cuda.real();
        let found = match *pixels.shape().dims() {
            [b, h, w, 3] if h == w && pixels.dtype() == DType::U8 => Some((b, h, true)),
            [b, 3, h, w] if h == w && pixels.dtype() == real => Some((b, h, false)),
            _ => None,
        };
        if let Some((b, side, levels)) = found
            && let Some(across) = side.checked_div(patch)
            && (b, across * across + 1) == (batch, tokens)
        {
            return Ok(Grid { batch, side, across, patch, levels });
        }
        let problem = format!(
            "pixels {} of {} make no {batch}x{tokens} tokens from patches of {patch} a side",
            pixels.shape(),
            pixels.dtype()
        );
        Err(BackendError::Invalid { op: PATCH_EMBED, problem })
    }
}

pub fn patch_embed(
    cuda: &Cuda,
    pixels: &CudaTensor,
    mix: Option<&Mix<Cuda>>,
    embedding: &PatchEmbedding<Cuda>,
    patches: &mut CudaTensor,
    products: &mut CudaTensor,
    x: &mut CudaTensor,
) -> Result<()> {
    let [batch, tokens, d] = *x.shape().dims() else {
        let problem = format!("x {} is not [B, S, D]", x.shape());
        return Err(BackendError::Invalid { op: PATCH_EMBED, problem });
    };
    let grid = Grid::of(cuda, pixels, batch, tokens, embedding.patch)?;
    let (count, inputs) = (grid.across * grid.across, 3 * grid.patch * grid.patch);
    expect_shape(PATCH_EMBED, "weight", [d, inputs], embedding.projection.weight.shape())?;
    expect_matrix(PATCH_EMBED, "patches", batch * count, inputs, patches.shape())?;
    expect_matrix(PATCH_EMBED, "products", batch * count, d, products.shape())?;
    let mixed = mix.map(|mix| Mixed::of(PATCH_EMBED, mix, batch)).transpose()?;
    if batch * count > 0 {
        gather_patches(cuda, pixels, mixed, embedding, grid, patches)?;
        multiply(cuda, patches, embedding, products)?;
    }
    norm_tokens(cuda, products, embedding, x, tokens)
}

/// Copies every patch into a row, in the order of the convolution's weights; of a mixed image, its two images'
/// patches by their shares.
fn gather_patches(
    cuda: &Cuda,
    pixels: &CudaTensor,
    mixed: Option<Mixed>,
    embedding: &PatchEmbedding<Cuda>,
    grid: Grid,
    patches: &mut CudaTensor,
) -> Result<()> {
    let Grid { batch, side, across, patch, levels } = grid;
    let mut args = Args::new().address(pixels.address());
    if let Some(mixed) = mixed {
        args = args.address(mixed.partner).address(mixed.lambda).moving(Mixed::bytes(batch));
    }
    args = args.address(patches.typed(cuda.real())?).int(side).int(across).int(patch);
    args = args.moving(pixels.bytes() + patches.bytes());
    let pack = pack(cuda, patch);
    if !levels {
        // Here packs are read as well, from rows of the image.
        let pack = pack.min(self::pack(cuda, side));
        let name = match (pack > 1, mixed.is_some()) {
            (true, false) => "patch_embed_numbers_wide",
            (false, false) => "patch_embed_numbers_ones",
            (true, true) => "patch_embed_numbers_mixed_wide",
            (false, true) => "patch_embed_numbers_mixed_ones",
        };
        let packs = 3 * (across * patch).pow(2) / pack;
        return cuda.launch("embed", name, [batch, packs.div_ceil(THREADS), 1], THREADS, 0, args);
    }
    let images = 1 + usize::from(mixed.is_some());
    let rows = STRIP_ROWS.min(STRIP / (3 * side * images));
    if rows == 0 {
        let problem = format!("{images} rows of {side} pixels have more than {STRIP} bytes");
        return Err(BackendError::Invalid { op: PATCH_EMBED, problem });
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
    cuda.launch("embed", name, [batch, blocks, 1], THREADS, strips, args)
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
    expect_shape(PATCH_EMBED, "class", [d], embedding.class.shape())?;
    expect_shape(PATCH_EMBED, "position", [tokens, d], embedding.position.shape())?;
    let (weight, bias) = layer_norm::parameters(&embedding.norm, d)?;
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

/// Batch, sequence length and width of a selection of one row `picked` \[B, …, D\] from each sequence.
fn selection(
    op: &'static str,
    sequences: &CudaTensor,
    rows: &CudaTensor,
    picked: &CudaTensor,
) -> Result<(usize, usize, usize)> {
    let [batch, s, d] = *sequences.shape().dims() else {
        let problem = format!("x {} is not [B, S, D]", sequences.shape());
        return Err(BackendError::Invalid { op, problem });
    };
    expect_shape(op, "rows", [batch], rows.shape())?;
    expect_matrix(op, "y", batch, d, picked.shape())?;
    Ok((batch, s, d))
}

pub fn take_rows(cuda: &Cuda, x: &CudaTensor, rows: &CudaTensor, y: &mut CudaTensor) -> Result<()> {
    let (batch, s, d) = selection("take_rows", x, rows, y)?;
    let pack = pack(cuda, d);
    let name = if pack > 1 { "take_rows_wide" } else { "take_rows_ones" };
    let args = Args::new()
        .address(x.typed(cuda.real())?)
        .address(rows.typed(DType::U32)?)
        .address(y.typed(cuda.real())?)
        .int(s)
        .int(d)
        .moving(rows.bytes() + 2 * y.bytes());
    cuda.launch("embed", name, [batch, (d / pack).div_ceil(COPY_THREADS), 1], COPY_THREADS, 0, args)
}

pub fn take_rows_backward(
    cuda: &Cuda,
    dy: &CudaTensor,
    rows: &CudaTensor,
    dx: &mut CudaTensor,
) -> Result<()> {
    let (batch, s, d) = selection("take_rows_backward", dx, rows, dy)?;
    let pack = pack(cuda, d);
    let name = if pack > 1 { "take_rows_backward_wide" } else { "take_rows_backward_ones" };
    let args = Args::new()
        .address(dy.typed(cuda.real())?)
        .address(rows.typed(DType::U32)?)
        .address(dx.typed(cuda.real())?)
        .int(s)
        .int(d)
        .moving(rows.bytes() + 3 * dy.bytes());
    cuda.launch("embed", name, [batch, (d / pack).div_ceil(COPY_THREADS), 1], COPY_THREADS, 0, args)
}
