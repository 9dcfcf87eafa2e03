//! dA and dB in one launch.

use super::*;

/// Columns of x or dy, and of du or u, that a block sums; rows per turn.
const COLUMNS: usize = 64;
const WIDTH: usize = 32;
const ROWS: usize = 32;

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
        let tiles = k.div_ceil(COLUMNS) * parts.width.div_ceil(WIDTH)
            + parts.count * parts.out.div_ceil(COLUMNS) * parts.rank.div_ceil(WIDTH);
        let (slabs, slab_rows) = slabs(m, tiles, cuda.driver().info().multiprocessors as usize);
        let tensor_cores = cuda.has_tensor_cores() && parts.in_packs(k);
        // Sums in tensor cores come in tiles of 8.
        let sums = |width: usize| width.next_multiple_of(if tensor_cores { 8 } else { 1 });
        let slab_bytes = COLUMNS
            * size_of::<f32>()
            * (k.div_ceil(COLUMNS) * sums(parts.width)
                + parts.count * parts.out.div_ceil(COLUMNS) * sums(parts.rank));
        let partial = cuda.scratch(tiles * slabs * WIDTH * COLUMNS * size_of::<f32>())?;
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
            .moving(parts.bytes(k) + slabs * slab_bytes)
            .multiplying(parts.flop(m, k), tensor_cores);
        let name = match tensor_cores {
            true => "lora_linear_gradients",
            false => "lora_linear_gradients_any",
        };
        cuda.launch("lora_linear", name, [tiles, slabs, 1], 128, 0, args)
    }
}

/// How many slabs the rows are cut into, and of how many rows: four blocks for each multiprocessor, but no
/// slab of less than two turns. No rows make one empty slab: the gradients are zero then.
fn slabs(rows: usize, tiles: usize, multiprocessors: usize) -> (usize, usize) {
    let wanted = (4 * multiprocessors / tiles).clamp(1, rows.div_ceil(2 * ROWS).max(1));
    let slab_rows = rows.div_ceil(wanted).next_multiple_of(ROWS).max(ROWS);
    (rows.div_ceil(slab_rows).max(1), slab_rows)
}
