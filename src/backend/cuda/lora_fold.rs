//! Low-rank updates into the weights beside which they stand.

use super::lora_linear::Parts;
use super::tables::Table;
use super::*;
use bytemuck::{Pod, Zeroable};

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

impl LoraFoldOp for Cuda {
    fn lora_fold_checked(device: Checked<'_, Self>, layers: &mut [LoraFold<'_, Cuda>]) -> Result<()> {
        const OP: &str = "lora_fold";
        let pack = 16 / device.real().size();
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
                weight: weight.typed(device.real())?.0,
                a: parts.a.0,
                b: parts.b.0,
                folded: folded.typed(device.real())?.0,
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
        let table = Table::of(&device, OP, &entries, &blocks)?;
        let args = Args::new().address(table.entries).address(table.chunks);
        let args = args.moving(table.bytes + bytes).multiplying(flop, false);
        device.launch("lora_fold", name, [table.count, 1, 1], 128, 0, args)
    }
}
