//! Batch-hard triplet loss on features.

use super::adamw::loss_scale;
use super::*;

const THREADS: usize = 256;

/// Threads of a block of the backward pass.
const LANES: usize = 32;

/// Elements that a lane moves at a time where the width divides.
const FOUR: usize = 4;

impl TripletOp for Cuda {
    fn triplet_checked(
        device: Checked<'_, Self>,
        f: &CudaTensor,
        labels: &CudaTensor,
        margin: f64,
        pairs: &mut CudaTensor,
        distances: &mut CudaTensor,
        stats: &mut CudaTensor,
    ) -> Result<()> {
        let (batch, width) = f.matrix();
        let args = Args::new()
            .address(f.typed(DType::F32)?)
            .address(labels.typed(DType::U32)?)
            .float(margin as f32)
            .address(pairs.typed(DType::U32)?)
            .address(distances.typed(DType::F32)?)
            .address(device.scratch(batch * size_of::<f32>())?)
            .address(device.counters("triplet", 1)?)
            .address(stats.typed(DType::F32)?.offset(Stat::LossTriplet as usize * size_of::<f32>()))
            .int(batch)
            .int(width)
            .moving(f.bytes() + labels.bytes() + pairs.bytes() + distances.bytes())
            // The terms of the loss, one for each image, and four numbers of stats.
            .moving((batch + 4) * size_of::<f32>())
            .multiplying(3 * batch * batch * width, false);
        let name = if width.is_multiple_of(FOUR) { "triplet_fours" } else { "triplet_ones" };
        device.launch("triplet", name, [batch, 1, 1], THREADS, 0, args)
    }

    fn triplet_backward_checked(
        device: Checked<'_, Self>,
        f: &CudaTensor,
        pairs: &CudaTensor,
        distances: &CudaTensor,
        weight: f64,
        control: Option<&CudaTensor>,
        df: &mut CudaTensor,
    ) -> Result<()> {
        let (batch, width) = f.matrix();
        let args = Args::new()
            .address(f.typed(DType::F32)?)
            .address(pairs.typed(DType::U32)?)
            .address(distances.typed(DType::F32)?)
            .float((weight / batch as f64) as f32)
            .optional(loss_scale(control)?)
            .address(df.typed(DType::F32)?)
            .int(batch)
            .int(width)
            .moving(f.bytes() + pairs.bytes() + distances.bytes() + 2 * df.bytes())
            .multiplying(12 * batch * width, false);
        let (name, columns) = match width.is_multiple_of(FOUR) {
            true => ("triplet_backward_fours", LANES * FOUR),
            false => ("triplet_backward_ones", LANES),
        };
        device.launch("triplet", name, [batch, width.div_ceil(columns), 1], LANES, 0, args)
    }
}
