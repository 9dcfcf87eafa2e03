//! Prompt tokens between the class token and the patches.

use super::*;

const THREADS: usize = 256;

/// Packs of the prompts' gradient that a block adds up.
const LANES: usize = 32;

/// The sizes of sequences with prompts in them.
struct Extents {
    batch: usize,
    /// Tokens with the prompts, prompts, and width.
    tokens: usize,
    count: usize,
    width: usize,
    /// Where the prompts of the layer begin.
    prompts: Address,
    /// Elements that a thread moves at a time.
    pack: usize,
}

impl Extents {
    /// `sequences` \[B, tokens, D\] have room for the prompts, \[n, m, D\].
    fn of(
        cuda: &Cuda,
        op: &'static str,
        sequences: Shape,
        prompts: &CudaTensor,
        layer: usize,
    ) -> Result<Self> {
        match (sequences.dims(), prompts.shape().dims()) {
            (&[batch, tokens, width], &[layers, count, same])
                if same == width && layer < layers && tokens > count && width > 0 =>
            {
                let start = layer * count * width * size_of::<f32>();
                let prompts = prompts.typed(DType::F32)?.offset(start);
                let wide = 16 / cuda.real().size();
                let pack = if width.is_multiple_of(wide) { wide } else { 1 };
                Ok(Extents { batch, tokens, count, width, prompts, pack })
            }
            _ => {
                let prompts = prompts.shape();
                let problem = format!("prompts {prompts} of layer {layer} do not go into {sequences}");
                Err(BackendError::Invalid { op, problem })
            }
        }
    }

    /// The shape of sequences without the prompts.
    fn without(&self) -> Shape {
        [self.batch, self.tokens - self.count, self.width].into()
    }

    /// Blocks in which each of so many threads moves one pack of `rows` rows.
    fn blocks(&self, rows: usize, threads: usize) -> usize {
        (rows * self.width).div_ceil(self.pack * threads)
    }

    /// Bytes of a layer's prompts, and of their places in the sequences.
    fn bytes(&self, cuda: &Cuda) -> (usize, usize) {
        let elements = self.count * self.width;
        (elements * size_of::<f32>(), self.batch * elements * cuda.real().size())
    }

    /// The form of a kernel for these sizes.
    fn form(&self, wide: &'static str, ones: &'static str) -> &'static str {
        if self.pack > 1 { wide } else { ones }
    }

    /// `args` and the sizes of a sequence, which are every kernel's last parameters.
    fn with_sizes(&self, args: Args) -> Args {
        args.int(self.tokens).int(self.count).int(self.width)
    }
}

pub fn insert_prompts(
    cuda: &Cuda,
    x: &CudaTensor,
    prompts: &CudaTensor,
    layer: usize,
    y: &mut CudaTensor,
) -> Result<()> {
    const OP: &str = "insert_prompts";
    let extents = Extents::of(cuda, OP, y.shape(), prompts, layer)?;
    expect_shape(OP, "x", extents.without(), x.shape())?;
    let args =
        Args::new().address(x.typed(cuda.real())?).address(extents.prompts).address(y.typed(cuda.real())?);
    let args = args.moving(x.bytes() + extents.bytes(cuda).0 + y.bytes());
    let grid = [extents.batch, extents.blocks(extents.tokens, THREADS), 1];
    let name = extents.form("insert_prompts_wide", "insert_prompts_ones");
    cuda.launch("prompts", name, grid, THREADS, 0, extents.with_sizes(args))
}

pub fn insert_prompts_backward(
    cuda: &Cuda,
    dy: &CudaTensor,
    layer: usize,
    d_prompts: &mut CudaTensor,
    dx: Option<&mut CudaTensor>,
) -> Result<()> {
    const OP: &str = "insert_prompts_backward";
    let extents = Extents::of(cuda, OP, dy.shape(), d_prompts, layer)?;
    if let Some(dx) = &dx {
        expect_shape(OP, "dx", extents.without(), dx.shape())?;
    }
    let sum_blocks = extents.blocks(extents.count, LANES);
    let (own, places) = extents.bytes(cuda);
    // The gradient is added to.
    let moved = 2 * own + places + dx.as_ref().map_or(0, |dx| 2 * dx.bytes());
    let copy_blocks = match dx {
        Some(_) => extents.batch * extents.blocks(extents.tokens - extents.count, THREADS),
        None => 0,
    };
    let args = Args::new()
        .address(dy.typed(cuda.real())?)
        .address(extents.prompts)
        .optional(dx.map(|dx| dx.typed(cuda.real())).transpose()?)
        .int(sum_blocks)
        .int(extents.batch)
        .moving(moved);
    let name = extents.form("insert_prompts_backward_wide", "insert_prompts_backward_ones");
    let args = extents.with_sizes(args);
    cuda.launch("prompts", name, [sum_blocks + copy_blocks, 1, 1], THREADS, 0, args)
}

pub fn replace_prompts(cuda: &Cuda, prompts: &CudaTensor, layer: usize, x: &mut CudaTensor) -> Result<()> {
    let extents = Extents::of(cuda, "replace_prompts", x.shape(), prompts, layer)?;
    let (own, places) = extents.bytes(cuda);
    let args = Args::new().address(extents.prompts).address(x.typed(cuda.real())?).moving(own + places);
    let grid = [extents.batch, extents.blocks(extents.count, THREADS), 1];
    let name = extents.form("replace_prompts_wide", "replace_prompts_ones");
    cuda.launch("prompts", name, grid, THREADS, 0, extents.with_sizes(args))
}

pub fn replace_prompts_backward(
    cuda: &Cuda,
    d: &mut CudaTensor,
    layer: usize,
    d_prompts: &mut CudaTensor,
) -> Result<()> {
    let extents = Extents::of(cuda, "replace_prompts_backward", d.shape(), d_prompts, layer)?;
    let args = Args::new().address(d.typed(cuda.real())?).address(extents.prompts).int(extents.batch);
    let (own, places) = extents.bytes(cuda);
    let args = args.moving(2 * (own + places));
    let blocks = extents.blocks(extents.count, LANES);
    let name = extents.form("replace_prompts_backward_wide", "replace_prompts_backward_ones");
    cuda.launch("prompts", name, [blocks, 1, 1], THREADS, 0, extents.with_sizes(args))
}
