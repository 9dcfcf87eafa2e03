//! Batch-hard triplet loss on features.

use super::*;

const THREADS: usize = 256;

/// Threads of a block of the backward pass.
const LANES: usize = 32;

/// Elements that a lane moves at a time where the width divides.
const FOUR: usize = 4;

/// Batch and width, after all shapes were compared.
fn extents(
    op: &'static str,
    f: &CudaTensor,
    pairs: &CudaTensor,
    distances: &CudaTensor,
) -> Result<(usize, usize)> {
    let (batch, width) = f.matrix();
    expect_shape(op, "f", [batch, width], f.shape())?;
    expect_shape(op, "pairs", [batch, 2], pairs.shape())?;
    expect_shape(op, "distances", [batch, 2], distances.shape())?;
    if batch == 0 || width == 0 {
        let problem = format!("a batch of {batch}, {width} features: neither may be 0");
        return Err(BackendError::Invalid { op, problem });
    }
    Ok((batch, width))
}

pub fn triplet(
    cuda: &Cuda,
    f: &CudaTensor,
    labels: &CudaTensor,
    margin: f64,
    pairs: &mut CudaTensor,
    distances: &mut CudaTensor,
    stats: &mut CudaTensor,
) -> Result<()> {
    const OP: &str = "triplet";
    let (batch, width) = extents(OP, f, pairs, distances)?;
    expect_shape(OP, "labels", [batch], labels.shape())?;
    expect_shape(OP, "stats", [Stat::COUNT], stats.shape())?;
    let args = Args::new()
        .address(f.typed(DType::F32)?)
        .address(labels.typed(DType::U32)?)
        .float(margin as f32)
        .address(pairs.typed(DType::U32)?)
        .address(distances.typed(DType::F32)?)
        .address(cuda.scratch(batch * size_of::<f32>())?)
        .address(cuda.counters(OP, 1)?)
        .address(stats.typed(DType::F32)?.offset(Stat::LossTriplet as usize * size_of::<f32>()))
        .int(batch)
        .int(width)
        .moving(f.bytes() + labels.bytes() + pairs.bytes() + distances.bytes())
        // The terms of the loss, one for each image, and four numbers of stats.
        .moving((batch + 4) * size_of::<f32>())
        .multiplying(3 * batch * batch * width, false);
    let name = if width.is_multiple_of(FOUR) { "triplet_fours" } else { "triplet_ones" };
    cuda.launch("triplet", name, [batch, 1, 1], THREADS, 0, args)
}

pub fn triplet_backward(
    cuda: &Cuda,
    f: &CudaTensor,
    pairs: &CudaTensor,
    distances: &CudaTensor,
    weight: f64,
    control: Option<&CudaTensor>,
    df: &mut CudaTensor,
) -> Result<()> {
    const OP: &str = "triplet_backward";
    let (batch, width) = extents(OP, f, pairs, distances)?;
    expect_shape(OP, "df", f.shape(), df.shape())?;
    let loss_scale = match control {
        Some(control) => {
            expect_shape(OP, "control", [Control::COUNT], control.shape())?;
            let scale = Control::LossScale as usize * size_of::<f32>();
            Some(control.typed(DType::F32)?.offset(scale))
        }
        None => None,
    };
    let args = Args::new()
        .address(f.typed(DType::F32)?)
        .address(pairs.typed(DType::U32)?)
        .address(distances.typed(DType::F32)?)
        .float((weight / batch as f64) as f32)
        .optional(loss_scale)
        .address(df.typed(DType::F32)?)
        .int(batch)
        .int(width)
        .moving(f.bytes() + pairs.bytes() + distances.bytes() + 2 * df.bytes())
        .multiplying(12 * batch * width, false);
    let (name, columns) = match width.is_multiple_of(FOUR) {
        true => ("triplet_backward_fours", LANES * FOUR),
        false => ("triplet_backward_ones", LANES),
    };
    cuda.launch("triplet", name, [batch, width.div_ceil(columns), 1], LANES, 0, args)
}
