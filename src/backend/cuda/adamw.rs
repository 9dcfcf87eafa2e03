//! AdamW over all trained tensors, and loss scaling.
//!
//! The kernels find their tensors in a table in device memory. It is made here and uploaded when it is seen
//! for the first time; a recorded step finds it where the step before the recording put it.

use super::*;
use bytemuck::{Pod, Zeroable};
use std::collections::HashMap;

const THREADS: usize = 256;

/// Elements that a block takes.
const CHUNK: usize = 4096;

/// Tables that are kept. They are never given back, because recordings hold their addresses; a process that
/// trains more sets of tensors than this makes a new backend.
const TABLES: usize = 1024;

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
    length: u64,
}

/// The part of a tensor that a block takes.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Chunk {
    tensor: u32,
    /// In chunks.
    index: u32,
}

/// The tables so far, by their contents.
#[derive(Default)]
pub struct Tables {
    tables: HashMap<Vec<u8>, Memory>,
}

impl Tables {
    /// Where `contents` lie in device memory.
    fn find(&mut self, driver: &Arc<dyn Driver>, contents: Vec<u8>) -> Result<Address> {
        if let Some(memory) = self.tables.get(&contents) {
            return Ok(memory.address);
        }
        if self.tables.len() == TABLES {
            let problem = format!("more than {TABLES} different sets of trained tensors on one device");
            return Err(BackendError::Invalid { op: OP, problem });
        }
        let memory = Memory::new(driver, contents.len())?;
        driver.upload(memory.address, &contents)?;
        let address = memory.address;
        self.tables.insert(contents, memory);
        Ok(address)
    }
}

/// Where the kernels find a step's tensors and chunks.
struct Table {
    tensors: Address,
    chunks: Address,
    /// Number of chunks.
    count: usize,
}

impl Table {
    fn of(cuda: &Cuda, tensors: &[AdamwTensor<'_, Cuda>]) -> Result<Self> {
        let entries = tensors.iter().map(entry).collect::<Result<Vec<Entry>>>()?;
        let mut chunks = Vec::new();
        for (tensor, entry) in (0u32..).zip(&entries) {
            let count = (entry.length as usize).div_ceil(CHUNK) as u32;
            chunks.extend((0..count).map(|index| Chunk { tensor, index }));
        }
        let mut contents = bytemuck::cast_slice(&entries).to_vec();
        contents.extend_from_slice(bytemuck::cast_slice(&chunks));
        let tensors = if chunks.is_empty() {
            Address::NULL
        } else {
            cuda.adamw_tables().find(&cuda.inner.driver, contents)?
        };
        let chunks_at = tensors.offset(size_of_val(entries.as_slice()));
        Ok(Table { tensors, chunks: chunks_at, count: chunks.len() })
    }
}

fn entry(tensor: &AdamwTensor<'_, Cuda>) -> Result<Entry> {
    let shape = tensor.value.shape();
    expect_shape(OP, "gradient", shape, tensor.gradient.shape())?;
    expect_shape(OP, "first moment", shape, tensor.first_moment.shape())?;
    expect_shape(OP, "second moment", shape, tensor.second_moment.shape())?;
    Ok(Entry {
        value: tensor.value.typed(DType::F32)?.0,
        gradient: tensor.gradient.typed(DType::F32)?.0,
        first_moment: tensor.first_moment.typed(DType::F32)?.0,
        second_moment: tensor.second_moment.typed(DType::F32)?.0,
        learning_rate: tensor.learning_rate,
        weight_decay: tensor.weight_decay,
        length: shape.elements() as u64,
    })
}

pub fn adamw(
    cuda: &Cuda,
    tensors: &mut [AdamwTensor<'_, Cuda>],
    step: AdamwStep<'_, Cuda>,
    stats: &mut CudaTensor,
) -> Result<()> {
    expect_shape(OP, "control", [Control::COUNT], step.control.shape())?;
    expect_shape(OP, "factor", [1], step.factor.shape())?;
    expect_shape(OP, "stats", [Stat::COUNT], stats.shape())?;
    let table = Table::of(cuda, tensors)?;
    let control = step.control.typed(DType::F32)?;
    let scaling = usize::from(step.scaling.is_some());
    // The corrections, two f64, come first, where they are aligned; then a sum of squares for each chunk.
    let corrections = cuda.scratch(2 * size_of::<f64>() + table.count * size_of::<f32>())?;
    let squares = corrections.offset(2 * size_of::<f64>());
    let both = Args::new().address(table.tensors).address(table.chunks).int(table.count);

    let args = both.address(control).int(scaling).double(step.beta1).double(step.beta2);
    let args = args.address(squares).address(corrections);
    cuda.launch(OP, "adamw_norm", [table.count + 1, 1, 1], THREADS, 0, args)?;

    let constants = step.scaling.unwrap_or_default();
    let args = both
        .address(squares)
        .address(corrections)
        .address(step.factor.typed(DType::F32)?)
        .address(control)
        .address(stats.typed(DType::F32)?)
        .address(cuda.counters(OP, 1)?)
        .double(step.beta1)
        .double(step.beta2)
        .double(step.eps)
        .int(scaling)
        .double(constants.growth)
        .double(constants.backoff)
        .int(constants.interval as usize);
    cuda.launch(OP, "adamw_update", [table.count.max(1), 1, 1], THREADS, 0, args)
}
