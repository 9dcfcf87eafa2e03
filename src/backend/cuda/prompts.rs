//! Prompt tokens between the class token and the patches.

use super::*;

const THREADS: usize = 256;

/// Packs of the prompts' gradient that a block adds up.
const LANES: usize = 32;

/// The sizes of sequences with prompts in them, and where these are.
struct Places {
    sizes: PromptExtents,
    /// Where the prompts of the layer begin.
    prompts: Address,
    /// Elements that a thread moves at a time.
    pack: usize,
}

impl std::ops::Deref for Places {
    type Target = PromptExtents;

    fn deref(&self) -> &PromptExtents {
        &self.sizes
    }
}

impl Places {
    fn of(cuda: &Cuda, sizes: PromptExtents, prompts: &CudaTensor) -> Result<Self> {
        let prompts = prompts.typed(DType::F32)?.offset(sizes.first() * size_of::<f32>());
        Ok(Places { sizes, prompts, pack: cuda.pack(sizes.width) })
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

impl PromptsOp for Cuda {
    fn insert_prompts_checked(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        prompts: &CudaTensor,
        extents: PromptExtents,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let extents = Places::of(&device, extents, prompts)?;
        let args = Args::new()
            .address(x.typed(device.real())?)
            .address(extents.prompts)
            .address(y.typed(device.real())?);
        let args = args.moving(x.bytes() + extents.bytes(&device).0 + y.bytes());
        let grid = [extents.batch, extents.blocks(extents.tokens, THREADS), 1];
        let name = extents.form("insert_prompts_wide", "insert_prompts_ones");
        device.launch("prompts", name, grid, THREADS, 0, extents.with_sizes(args))
    }

    fn insert_prompts_backward_checked(
        device: Checked<'_, Self>,
        dy: &CudaTensor,
        extents: PromptExtents,
        d_prompts: &mut CudaTensor,
        dx: Option<&mut CudaTensor>,
    ) -> Result<()> {
        let extents = Places::of(&device, extents, d_prompts)?;
        let sum_blocks = extents.blocks(extents.count, LANES);
        let (own, places) = extents.bytes(&device);
        // The gradient is added to.
        let moved = 2 * own + places + dx.as_ref().map_or(0, |dx| 2 * dx.bytes());
        let copy_blocks = match dx {
            Some(_) => extents.batch * extents.blocks(extents.tokens - extents.count, THREADS),
            None => 0,
        };
        let args = Args::new()
            .address(dy.typed(device.real())?)
            .address(extents.prompts)
            .optional(dx.map(|dx| dx.typed(device.real())).transpose()?)
            .int(sum_blocks)
            .int(extents.batch)
            .moving(moved);
        let name = extents.form("insert_prompts_backward_wide", "insert_prompts_backward_ones");
        let args = extents.with_sizes(args);
        device.launch("prompts", name, [sum_blocks + copy_blocks, 1, 1], THREADS, 0, args)
    }

    fn replace_prompts_checked(
        device: Checked<'_, Self>,
        prompts: &CudaTensor,
        extents: PromptExtents,
        x: &mut CudaTensor,
    ) -> Result<()> {
        let extents = Places::of(&device, extents, prompts)?;
        let (own, places) = extents.bytes(&device);
        let args = Args::new().address(extents.prompts).address(x.typed(device.real())?).moving(own + places);
        let grid = [extents.batch, extents.blocks(extents.count, THREADS), 1];
        let name = extents.form("replace_prompts_wide", "replace_prompts_ones");
        device.launch("prompts", name, grid, THREADS, 0, extents.with_sizes(args))
    }

    fn replace_prompts_backward_checked(
        device: Checked<'_, Self>,
        d: &mut CudaTensor,
        extents: PromptExtents,
        d_prompts: &mut CudaTensor,
    ) -> Result<()> {
        let extents = Places::of(&device, extents, d_prompts)?;
        let args = Args::new().address(d.typed(device.real())?).address(extents.prompts).int(extents.batch);
        let (own, places) = extents.bytes(&device);
        let args = args.moving(2 * (own + places));
        let blocks = extents.blocks(extents.count, LANES);
        let name = extents.form("replace_prompts_backward_wide", "replace_prompts_backward_ones");
        device.launch("prompts", name, [blocks, 1, 1], THREADS, 0, extents.with_sizes(args))
    }
}
