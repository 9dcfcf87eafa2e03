//! The form with the adapters in the weights: how they get there, and their gradients, those of many layers in two
//! launches.

use super::super::tables::Table;
use super::gradients::{SLAB_BYTES, slab_bytes, slabs, tiles};
use super::*;
use bytemuck::{Pod, Zeroable};

/// Blocks of gradients for each multiprocessor: some three rounds of those that it runs at once.
const BLOCKS_EACH: usize = 20;

/// A layer to be folded as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Fold {
    weight: u64,
    a: u64,
    b: u64,
    folded: u64,
    stride: i32,
    k: i32,
    out: i32,
    rank: i32,
    part_of_segment: i32,
    scale: f32,
    across: i32,
    down: i32,
}

pub fn lora_fold(cuda: &Cuda, layers: &mut [LoraFold<'_, Cuda>]) -> Result<()> {
    const OP: &str = "lora_fold";
    let pack = 16 / cuda.real().size();
    let wide = layers.iter().all(|layer| {
        let (_, stride) = layer.weight.matrix();
        layer.lora.a.shape.columns().is_multiple_of(pack) && stride.is_multiple_of(pack)
    });
    let (name, columns) = if wide { ("lora_fold", 32 * pack) } else { ("lora_fold_any", 32) };
    let (mut entries, mut blocks, mut bytes, mut flop) = (Vec::new(), Vec::new(), 0, 0);
    for LoraFold { weight, lora, folded } in layers {
        let (n, stride) = weight.matrix();
        let k = lora.a.shape.columns();
        let parts = Parts::of(OP, *lora, k, n)?;
        let (across, down) = (stride.div_ceil(columns), parts.out.div_ceil(32));
        entries.push(Fold {
            weight: weight.typed(cuda.real())?.0,
            a: parts.a.0,
            b: parts.b.0,
            folded: folded.typed(cuda.real())?.0,
            stride: stride as i32,
            k: k as i32,
            out: parts.out as i32,
            rank: parts.rank as i32,
            part_of_segment: parts.part_of_segment as i32,
            scale: parts.scale,
            across: across as i32,
            down: down as i32,
        });
        blocks.push(across * down * (n / parts.out));
        bytes += 2 * weight.bytes() + parts.bytes(k);
        flop += 2 * parts.width * parts.out * k;
    }
    let table = Table::of(cuda, OP, &entries, &blocks)?;
    let args = Args::new().address(table.entries).address(table.chunks);
    let args = args.moving(table.bytes + bytes).multiplying(flop, false);
    cuda.launch("lora_linear", name, [table.count, 1, 1], 128, 0, args)
}

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

pub fn lora_gradients(cuda: &Cuda, layers: &mut [LoraGradients<'_, Cuda>]) -> Result<()> {
    let real = cuda.real();
    let shapes = layers.iter().map(Layer::of).collect::<Result<Vec<_>>>()?;
    let tensor_cores = cuda.has_tensor_cores() && shapes.iter().all(|s| s.parts.in_packs(s.sizes.1));
    let all_tiles: usize = shapes.iter().map(|s| s.tiles).sum();
    let wanted = (BLOCKS_EACH * cuda.driver().info().multiprocessors as usize).div_ceil(all_tiles.max(1));
    let most = shapes.iter().map(|s| slabs(s.sizes.0, wanted).0).max().unwrap_or(1);

    // In scratch memory: the slabs of all tiles, then u and du of each layer.
    let of_u = |s: &Layer| (s.sizes.0 * s.parts.width).next_multiple_of(16);
    let slab_room = all_tiles * most * SLAB_BYTES;
    let partial = cuda.scratch(slab_room + 2 * shapes.iter().map(of_u).sum::<usize>() * real.size())?;
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
        cuda.launch("lora_gradients", name, [table.count, 1, 1], 128, 0, args)
    };
    let table = Table::of(cuda, Layer::OP, &entries, &start_blocks)?;
    let args = Args::new().address(table.entries).address(table.chunks).address(narrow);
    launch(["lora_gradients_start", "lora_gradients_start_any"], &table, args, start_bytes)?;
    let table = Table::of(cuda, Layer::OP, &entries, &blocks)?;
    let args = Args::new().address(table.entries).address(table.chunks).address(narrow).address(partial);
    let args = args.address(cuda.counters(Layer::OP, all_tiles)?).int(most);
    launch(["lora_gradients", "lora_gradients_any"], &table, args, bytes)
}

/// Whether a step's layers with adapters, forward and backward, take less time with these in the weights. Without room
/// to find out they stay beside them, which takes less.
pub fn folding_pays(cuda: &Cuda, layers: &[LoraSite<'_, Cuda>]) -> Result<bool> {
    let forms = [("folded", true), ("beside", false)];
    let key = format!("adapted layers of a step {} {}", cuda.real(), description(layers));
    let mut trial = None;
    let chosen = fastest(cuda, &key, &forms, &mut |folded| {
        if trial.is_none() {
            trial = Some(Trial::new(cuda, layers)?);
        }
        trial.as_mut().map_or(Ok(()), |trial| if folded { trial.folded(cuda) } else { trial.beside(cuda) })
    });
    match chosen {
        Err(BackendError::Cuda(error)) if matches!(*error, CudaError::OutOfMemory { .. }) => Ok(false),
        chosen => chosen,
    }
}

/// Sizes of the layers, those that occur several times with their number.
fn description(layers: &[LoraSite<'_, Cuda>]) -> String {
    let mut sizes: Vec<(String, usize)> = Vec::new();
    for LoraSite { rows, layer, lora } in layers {
        let (n, _) = layer.weight.matrix();
        let (k, rank) = (lora.a.shape.columns(), lora.b.shape.columns());
        let size = format!("{rows}x{k} to {n}, {} of {rank}", lora.columns.len());
        match sizes.iter_mut().find(|(known, _)| *known == size) {
            Some((_, count)) => *count += 1,
            None => sizes.push((size, 1)),
        }
    }
    let sizes: Vec<String> = sizes.into_iter().map(|(size, count)| format!("{count} times {size}")).collect();
    sizes.join("; ")
}

/// The layers of a step with inputs and outputs of their own: what is timed leaves nothing behind.
struct Trial<'a> {
    sites: Vec<TrialSite<'a>>,
    y: CudaTensor,
    dx: CudaTensor,
    u: CudaTensor,
    du: CudaTensor,
}

struct TrialSite<'a> {
    layer: &'a Linear<Cuda>,
    lora: Lora<'a, Cuda>,
    folded: Linear<Cuda>,
    x: CudaTensor,
    dy: CudaTensor,
    da: CudaTensor,
    db: CudaTensor,
}

impl<'a> Trial<'a> {
    fn new(cuda: &Cuda, layers: &[LoraSite<'a, Cuda>]) -> Result<Self> {
        let real = cuda.real();
        let site = |&LoraSite { rows, layer, lora }: &LoraSite<'a, Cuda>| -> Result<TrialSite<'a>> {
            let (n, k) = (layer.weight.matrix().0, lora.a.shape.columns());
            Ok(TrialSite {
                layer,
                lora,
                folded: Linear { weight: cuda.empty(layer.weight.shape, real)?, bias: None },
                x: cuda.zeros([rows, k], real)?,
                dy: cuda.zeros([rows, n], real)?,
                da: cuda.empty(lora.a.shape, DType::F32)?,
                db: cuda.empty(lora.b.shape, DType::F32)?,
            })
        };
        let sites = layers.iter().map(site).collect::<Result<Vec<_>>>()?;
        let most = |elements: fn(&TrialSite<'_>) -> usize| {
            cuda.empty([sites.iter().map(elements).max().unwrap_or(0)], real)
        };
        let width = |site: &TrialSite<'_>| site.x.shape.rows() * site.lora.a.shape.rows();
        let (y, dx) = (most(|site| site.dy.shape.elements())?, most(|site| site.x.shape.elements())?);
        let (u, du) = (most(width)?, most(width)?);
        Ok(Trial { sites, y, dx, u, du })
    }

    fn folded(&mut self, cuda: &Cuda) -> Result<()> {
        let folds = self.sites.iter_mut().map(|site| LoraFold {
            weight: &site.layer.weight,
            lora: site.lora,
            folded: &mut site.folded.weight,
        });
        cuda.lora_fold(&mut folds.collect::<Vec<_>>())?;
        for TrialSite { folded, x, dy, .. } in &self.sites {
            self.y.set_shape(dy.shape)?;
            self.dx.set_shape(x.shape)?;
            cuda.linear(x, folded, None, &mut self.y)?;
            cuda.linear_backward(dy, folded, &mut self.dx)?;
        }
        let gradients = self.sites.iter_mut().map(|site| LoraGradients {
            x: &site.x,
            dy: &site.dy,
            lora: site.lora,
            da: &mut site.da,
            db: &mut site.db,
        });
        cuda.lora_gradients(&mut gradients.collect::<Vec<_>>())
    }

    fn beside(&mut self, cuda: &Cuda) -> Result<()> {
        let Trial { sites, y, dx, u, du } = self;
        for TrialSite { layer, lora, x, dy, da, db, .. } in sites {
            let (rows, width) = (x.shape.rows(), lora.a.shape.rows());
            y.set_shape(dy.shape)?;
            dx.set_shape(x.shape)?;
            u.set_shape([rows, width].into())?;
            du.set_shape([rows, width].into())?;
            cuda.lora_linear(x, None, layer, *lora, None, u, y)?;
            cuda.lora_linear_backward(dy, x, None, u, layer, *lora, du, da, db, Some(dx))?;
        }
        Ok(())
    }
}
