//! Gradients of several batches added up, over all trained tensors.

use super::tables::{self, Table};
use super::*;
use bytemuck::{Pod, Zeroable};

const THREADS: usize = 256;

const OP: &str = "accumulate";

/// A gradient and its sum as the kernel reads them.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Entry {
    gradient: u64,
    sum: u64,
    length: u64,
}

fn entry((gradient, sum): &(&CudaTensor, &mut CudaTensor)) -> Result<Entry> {
    Ok(Entry {
        gradient: gradient.typed(DType::F32)?.0,
        sum: sum.typed(DType::F32)?.0,
        length: sum.shape().elements() as u64,
    })
}

impl AccumulateOp for Cuda {
    fn accumulate_checked(
        device: Checked<'_, Self>,
        pairs: &mut [(&CudaTensor, &mut CudaTensor)],
        first: bool,
    ) -> Result<()> {
        let entries = pairs.iter().map(entry).collect::<Result<Vec<Entry>>>()?;
        let lengths: Vec<usize> = entries.iter().map(|entry| entry.length as usize).collect();
        let table = Table::of(&device, OP, &entries, &tables::blocks(&lengths))?;
        let moved =
            table.bytes + lengths.iter().sum::<usize>() * size_of::<f32>() * if first { 2 } else { 3 };
        let args =
            Args::new().address(table.entries).address(table.chunks).int(usize::from(first)).moving(moved);
        device.launch("accumulate", "accumulate_chunks", [table.count, 1, 1], THREADS, 0, args)
    }
}
