//! dA and dB in one launch.

use super::*;

/// Columns of x or dy, and of du or u, that a block sums; rows per turn.
const COLUMNS: usize = 64;
const WIDTH: usize = 32;
const ROWS: usize = 32;

/// Bytes that a block leaves its sums in.
pub const SLAB_BYTES: usize = WIDTH * COLUMNS * size_of::<f32>();

/// Tiles of dA and of dB that blocks sum, for `k` inputs.
pub fn tiles(parts: &Parts, k: usize) -> usize {
    k.div_ceil(COLUMNS) * parts.width.div_ceil(WIDTH)
        + parts.count * parts.out.div_ceil(COLUMNS) * parts.rank.div_ceil(WIDTH)
}

/// Bytes that the blocks of one slab write of all tiles, and read again.
pub fn slab_bytes(parts: &Parts, k: usize, tensor_cores: bool) -> usize {
    // Sums in tensor cores come in tiles of 8.
    let sums = |width: usize| width.next_multiple_of(if tensor_cores { 8 } else { 1 });
    let columns = k.div_ceil(COLUMNS) * sums(parts.width)
        + parts.count * parts.out.div_ceil(COLUMNS) * sums(parts.rank);
    COLUMNS * size_of::<f32>() * columns
}

/// dA = duᵀ·x and dB = scale·dyᵀ·u.
pub struct Gradients {
    pub du: Address,
    pub x: Address,
    pub u: Address,
    pub dy: Address,
    pub da: Address,
    pub db: Address,
    pub sizes: Sizes,
}

impl Gradients {
    pub fn launch(&self, cuda: &Cuda, parts: &Parts) -> Result<()> {
        let Sizes { m, k, n, .. } = self.sizes;
        let tiles = tiles(parts, k);
        // Four blocks for each multiprocessor.
        let wanted = 4 * cuda.driver().info().multiprocessors as usize / tiles;
        let (slabs, slab_rows) = slabs(m, wanted);
        let tensor_cores = cuda.has_tensor_cores() && parts.in_packs(k);
        let partial = cuda.scratch(tiles * slabs * SLAB_BYTES)?;
        let args = Args::new()
            .address(self.du)
            .address(self.x)
            .address(self.u)
            .address(self.dy)
            .address(self.da)
            .address(self.db)
            .address(partial)
            .address(cuda.counters("lora_linear_backward", tiles)?)
            .int(m)
            .int(k)
            .int(n)
            .int(parts.out)
            .int(parts.rank)
            .int(parts.width)
            .int(parts.segment_of_part)
            .float(parts.scale)
            .int(slab_rows)
            .moving(m * (k + parts.count * parts.out + 2 * parts.width) * cuda.real().size())
            .moving(parts.bytes(k) + slabs * slab_bytes(parts, k, tensor_cores))
            .multiplying(parts.flop(m, k), tensor_cores);
        let name = match tensor_cores {
            true => "lora_linear_gradients",
            false => "lora_linear_gradients_any",
        };
        cuda.launch("lora_linear", name, [tiles, slabs, 1], 128, 0, args)
    }
}

/// How many slabs the rows are cut into where so many are wanted, and of how many rows: no slab of less than two turns.
/// No rows make one empty slab: the gradients are zero then.
pub fn slabs(rows: usize, wanted: usize) -> (usize, usize) {
    let wanted = wanted.clamp(1, rows.div_ceil(2 * ROWS).max(1));
    let slab_rows = rows.div_ceil(wanted).next_multiple_of(ROWS).max(ROWS);
    (rows.div_ceil(slab_rows).max(1), slab_rows)
}
