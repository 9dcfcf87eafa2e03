//! The gradients of low-rank updates in the weights, those of many layers in two launches.

use super::lora_linear::Parts;
use super::lora_linear::gradients::{SLAB_BYTES, slab_bytes, slabs, tiles};
use super::tables::Table;
use super::*;
use bytemuck::{Pod, Zeroable};

/// Blocks of gradients for each multiprocessor: some three rounds of those that it runs at once.
const BLOCKS_EACH: usize = 20;

/// A layer whose gradients are wanted as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Grouped {
    x: u64,
    dy: u64,
    a: u64,
    b: u64,
    da: u64,
    db: u64,
    /// Elements behind where u and du of all layers begin.
    u: u64,
    du: u64,
    first_tile: u64,
    m: i32,
    k: i32,
    n: i32,
    out: i32,
    rank: i32,
    width: i32,
    segment_of_part: i32,
    scale: f32,
    slabs: i32,
    slab_rows: i32,
}

/// Shapes of a layer, checked.
struct Layer {
    sizes: (usize, usize, usize),
    parts: Parts,
    /// Tiles of its gradients.
    tiles: usize,
}

impl Layer {
    const OP: &str = "lora_gradients";

    fn of(layer: &LoraGradients<'_, Cuda>) -> Result<Self> {
        let ((m, k), (_, n)) = (layer.x.matrix(), layer.dy.matrix());
        let parts = Parts::of(Self::OP, layer.lora, k, n)?;
        Ok(Layer { sizes: (m, k, n), tiles: tiles(&parts, k), parts })
    }
}

impl LoraGradientsOp for Cuda {
    fn lora_gradients_checked(
        device: Checked<'_, Self>,
        layers: &mut [LoraGradients<'_, Cuda>],
    ) -> Result<()> {
        let real = device.real();
        let shapes = layers.iter().map(Layer::of).collect::<Result<Vec<_>>>()?;
        let tensor_cores = device.has_tensor_cores() && shapes.iter().all(|s| s.parts.in_packs(s.sizes.1));
        let all_tiles: usize = shapes.iter().map(|s| s.tiles).sum();
        let wanted =
            (BLOCKS_EACH * device.driver().info().multiprocessors as usize).div_ceil(all_tiles.max(1));
        let most = shapes.iter().map(|s| slabs(s.sizes.0, wanted).0).max().unwrap_or(1);

        // In scratch memory: the slabs of all tiles, then u and du of each layer.
        let of_u = |s: &Layer| (s.sizes.0 * s.parts.width).next_multiple_of(16);
        let slab_room = all_tiles * most * SLAB_BYTES;
        let partial = device.scratch(slab_room + 2 * shapes.iter().map(of_u).sum::<usize>() * real.size())?;
        let narrow = partial.offset(slab_room);
        let (mut at, mut first_tile) = (0, 0);
        let (mut entries, mut start_blocks, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        let (mut start_bytes, mut bytes, mut flop) = (0, 0, 0);
        let rows_each = if tensor_cores { 64 } else { 16 };
        for (layer, shape) in layers.iter_mut().zip(&shapes) {
            let Layer { sizes: (m, k, n), parts, tiles } = shape;
            let (count, slab_rows) = slabs(*m, wanted);
            let (u, du) = (at, at + of_u(shape));
            at += 2 * of_u(shape);
            entries.push(Grouped {
                x: layer.x.typed(real)?.0,
                dy: layer.dy.typed(real)?.0,
                a: parts.a.0,
                b: parts.b.0,
                u: u as u64,
                du: du as u64,
                first_tile: first_tile as u64,
                da: layer.da.typed(DType::F32)?.0,
                db: layer.db.typed(DType::F32)?.0,
                m: *m as i32,
                k: *k as i32,
                n: *n as i32,
                out: parts.out as i32,
                rank: parts.rank as i32,
                width: parts.width as i32,
                segment_of_part: parts.segment_of_part as i32,
                scale: parts.scale,
                slabs: count as i32,
                slab_rows: slab_rows as i32,
            });
            first_tile += tiles;
            start_blocks.push(m.div_ceil(rows_each) * (1 + parts.count));
            blocks.push(tiles * count);
            let numbers = m * (k + parts.count * parts.out + 2 * parts.width) * real.size();
            start_bytes += numbers + if *m > 0 { parts.bytes(*k) } else { 0 };
            bytes += numbers + parts.bytes(*k) + count * slab_bytes(parts, *k, tensor_cores);
            flop += parts.flop(*m, *k);
        }
        let launch = |names: [&'static str; 2], table: &Table, args: Args, bytes: usize| {
            let args = args.moving(table.bytes + bytes).multiplying(flop, tensor_cores);
            let name = if tensor_cores { names[0] } else { names[1] };
            device.launch("lora_gradients", name, [table.count, 1, 1], 128, 0, args)
        };
        let table = Table::of(&device, Layer::OP, &entries, &start_blocks)?;
        let args = Args::new().address(table.entries).address(table.chunks).address(narrow);
        launch(["lora_gradients_start", "lora_gradients_start_any"], &table, args, start_bytes)?;
        let table = Table::of(&device, Layer::OP, &entries, &blocks)?;
        let args = Args::new().address(table.entries).address(table.chunks).address(narrow).address(partial);
        let args = args.address(device.counters(Layer::OP, all_tiles)?).int(most);
        launch(["lora_gradients", "lora_gradients_any"], &table, args, bytes)
    }
}
