//! AdamW over all trained tensors, loss scaling and clipping.

use super::tables::{self, Table};
use super::*;
use bytemuck::{Pod, Zeroable};

const THREADS: usize = 256;

/// Sums of squares that every block of the update adds up by itself: 2048 blocks read 17 MB of L2 for it, some
/// 3 µs, as long as another launch takes. Adapters of the usual ranks have a few hundred.
const ADDED_BY_EACH: usize = 2048;

const OP: &str = "adamw";

/// One trained tensor as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Entry {
    value: u64,
    gradient: u64,
    first_moment: u64,
    second_moment: u64,
    learning_rate: f64,
    weight_decay: f64,
    scale: f64,
    length: u64,
}

fn entry(tensor: &AdamwTensor<'_, Cuda>) -> Result<Entry> {
    let shape = tensor.value.shape();
    Ok(Entry {
        value: tensor.value.typed(DType::F32)?.0,
        gradient: tensor.gradient.typed(DType::F32)?.0,
        first_moment: tensor.first_moment.typed(DType::F32)?.0,
        second_moment: tensor.second_moment.typed(DType::F32)?.0,
        learning_rate: tensor.learning_rate,
        weight_decay: tensor.weight_decay,
        scale: tensor.scale,
        length: shape.elements() as u64,
    })
}

/// Where the loss scale is, where there is one.
pub fn loss_scale(control: Option<&CudaTensor>) -> Result<Option<Address>> {
    let place = Control::LossScale as usize * size_of::<f32>();
    control.map(|control| Ok(control.typed(DType::F32)?.offset(place))).transpose()
}

impl AdamwOp for Cuda {
    fn adamw_checked(
        device: Checked<'_, Self>,
        tensors: &mut [AdamwTensor<'_, Cuda>],
        step: AdamwStep<'_, Cuda>,
        stats: &mut CudaTensor,
    ) -> Result<()> {
        let entries = tensors.iter().map(entry).collect::<Result<Vec<Entry>>>()?;
        let lengths: Vec<usize> = entries.iter().map(|entry| entry.length as usize).collect();
        let table = Table::of(&device, OP, &entries, &tables::blocks(&lengths))?;
        let control = step.control.typed(DType::F32)?;
        let scaling = usize::from(step.scaling.is_some());
        // The corrections, two f64, come first, where they are aligned; then a sum of squares for each chunk, and
        // room for the sum of these.
        let corrections = device.scratch(2 * size_of::<f64>() + (table.count + 1) * size_of::<f32>())?;
        let squares = corrections.offset(2 * size_of::<f64>());
        let numbers = lengths.iter().sum::<usize>() * size_of::<f32>();
        let both = Args::new().address(table.entries).address(table.chunks).int(table.count);

        let args = both.address(control).int(scaling).double(step.beta1).double(step.beta2);
        let args = args.address(squares).address(corrections);
        // Of an entry this kernel reads where the gradient is, its scale and its length.
        let read = table.bytes - entries.len() * (size_of::<Entry>() - 3 * size_of::<u64>());
        let args = args.moving(read + numbers + table.count * size_of::<f32>() + 2 * size_of::<f64>());
        device.launch(OP, "adamw_norm", [table.count + 1, 1, 1], THREADS, 0, args)?;

        let (squares, sums) = match table.count {
            count if count > ADDED_BY_EACH => {
                let total = squares.offset(count * size_of::<f32>());
                let moved = (count + 1) * size_of::<f32>();
                let args = Args::new().address(squares).int(count).address(total).moving(moved);
                device.launch(OP, "adamw_total", [1; 3], THREADS, 0, args)?;
                (total, 1)
            }
            count => (squares, count),
        };
        let constants = step.scaling.unwrap_or_default();
        let args = both
            .address(squares)
            .int(sums)
            .address(corrections)
            .address(step.factor.typed(DType::F32)?)
            .address(control)
            .address(stats.typed(DType::F32)?)
            .address(device.counters(OP, 1)?)
            .double(step.beta1)
            .double(step.beta2)
            .double(step.eps)
            .int(scaling)
            .double(constants.growth)
            .double(constants.backoff)
            .int(constants.interval as usize)
            .int(usize::from(step.clip.is_some()))
            .float(step.clip.unwrap_or_default() as f32)
            .moving(table.bytes + 7 * numbers + sums * size_of::<f32>() + 2 * size_of::<f64>());
        device.launch(OP, "adamw_update", [table.count.max(1), 1, 1], THREADS, 0, args)
    }
}
