//! The form in one kernel: for 16-bit types on sm_80 and later, ranks up to 16 and widths in multiples of 8.

use super::*;

/// A block's share of the result, and the kernel for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub kernel: &'static str,
    rows: usize,
    columns: usize,
    threads: usize,
    shared: usize,
}

/// Terms and stages of the pipeline, as in the kernels; a term of a row is 2 bytes.
const DEPTH: usize = 32;
const STAGES: usize = 4;

/// Columns of du that have room beside the stages.
const BACKWARD_WIDTH: usize = 48;

/// The tiles that a layer can be computed in, the one to take without a clock first.
pub type Tiles = [Option<Tile>; 2];

/// The kernels for y; none where the fused form cannot compute it.
pub fn forward_tiles(cuda: &Cuda, work: &Forward) -> Tiles {
    let Parts { out, rank, .. } = work.parts;
    let Some(padded) = padded_rank(cuda, &work.frozen, &work.parts) else { return [None; 2] };
    let shared = |rows, columns| STAGES * ((rows + columns) * DEPTH * 2 + padded * (DEPTH + 8) * 4);
    let names = match padded {
        8 => ["lora_linear_fused_128x128_r8", "lora_linear_fused_64x64_r8"],
        _ => ["lora_linear_fused_128x128_r16", "lora_linear_fused_64x64_r16"],
    };
    debug_assert!(rank <= padded);
    // A tile never reaches across two segments.
    let segments = work.frozen.sizes.n / out;
    pick(cuda, names, shared, |tile| {
        work.frozen.sizes.m.div_ceil(tile.rows) * segments * out.div_ceil(tile.columns)
    })
}

/// The kernels for du and dx; none where the fused form cannot compute them.
pub fn backward_tiles(cuda: &Cuda, work: &Backward) -> Tiles {
    let Some(padded) = padded_rank(cuda, &work.frozen, &work.parts) else { return [None; 2] };
    if work.parts.width > BACKWARD_WIDTH {
        return [None; 2];
    }
    let shared = |rows, columns| {
        let stage = (rows + columns) * DEPTH * 2 + padded * DEPTH * 4;
        STAGES * stage + rows * (BACKWARD_WIDTH + 8) * 2
    };
    let names = match padded {
        8 => ["lora_linear_backward_fused_128x128_r8", "lora_linear_backward_fused_64x64_r8"],
        _ => ["lora_linear_backward_fused_128x128_r16", "lora_linear_backward_fused_64x64_r16"],
    };
    let Sizes { m, k, .. } = work.frozen.sizes;
    pick(cuda, names, shared, |tile| m.div_ceil(tile.rows) * k.div_ceil(tile.columns))
}

/// The rank in whole 8-column tiles, if the fused form can be had at all.
fn padded_rank(cuda: &Cuda, frozen: &Frozen, parts: &Parts) -> Option<usize> {
    let Sizes { k, weight_stride, .. } = frozen.sizes;
    let fits = cuda.has_tensor_cores() && parts.in_packs(k) && weight_stride.is_multiple_of(8);
    (fits && parts.rank <= 16).then(|| parts.rank.next_multiple_of(8))
}

/// The tiles that have the shared memory they need: the large one first if it makes enough blocks for all
/// multiprocessors. Fewer large blocks read less, which only a clock can weigh against that.
fn pick(
    cuda: &Cuda,
    [large, small]: [&'static str; 2],
    shared: impl Fn(usize, usize) -> usize,
    blocks: impl Fn(&Tile) -> usize,
) -> Tiles {
    let info = cuda.driver().info();
    let large = Tile { kernel: large, rows: 128, columns: 128, threads: 128, shared: shared(128, 128) };
    let small = Tile { kernel: small, rows: 64, columns: 64, threads: 128, shared: shared(64, 64) };
    let fits = |tile: Tile| (tile.shared <= info.shared_memory_per_block).then_some(tile);
    match (fits(large), fits(small)) {
        (Some(large), small) if blocks(&large) >= info.multiprocessors as usize => [Some(large), small],
        (large, Some(small)) => [Some(small), large],
        (large, None) => [large, None],
    }
}

pub fn forward(cuda: &Cuda, work: &Forward, tile: Tile) -> Result<()> {
    let Forward { frozen, parts, u, .. } = work;
    let added = |args: Args| args.optional(frozen.bias).optional(frozen.residual);
    let across = frozen.sizes.n / parts.out * parts.out.div_ceil(tile.columns);
    launch(cuda, tile, across, frozen, parts, added, *u)
}

pub fn backward(cuda: &Cuda, work: &Backward, tile: Tile) -> Result<()> {
    let Backward { frozen, parts, du, .. } = work;
    launch(cuda, tile, frozen.sizes.k.div_ceil(tile.columns), frozen, parts, |args| args, *du)
}

/// `across` tiles side by side; `narrow` is u or du, and `added` adds what the kernel takes besides.
fn launch(
    cuda: &Cuda,
    tile: Tile,
    across: usize,
    frozen: &Frozen,
    parts: &Parts,
    added: impl FnOnce(Args) -> Args,
    narrow: Address,
) -> Result<()> {
    let Sizes { m, k, n, weight_stride } = frozen.sizes;
    let gemm = frozen.as_gemm().work();
    let factors = Args::new().address(frozen.from).address(frozen.weight).address(parts.a).address(parts.b);
    let args = added(factors)
        .address(narrow)
        .address(frozen.to)
        .int(m)
        .int(k)
        .int(n)
        .int(weight_stride)
        .int(parts.out)
        .int(parts.rank)
        .int(parts.width)
        .int(parts.part_of_segment)
        .float(parts.scale)
        .moving(gemm.bytes + parts.bytes(k) + m * parts.width * frozen.dtype.size())
        .multiplying(gemm.tensor_flop + parts.flop(m, k), true);
    let grid = [across, m.div_ceil(tile.rows), 1];
    cuda.launch("lora_linear_fused", tile.kernel, grid, tile.threads, tile.shared, args)
}
