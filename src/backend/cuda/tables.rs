//! Tables in device memory of what a kernel works on, for kernels that take many tensors in one launch.
//!
//! A table is made by the launcher and uploaded when it is seen for the first time; a captured step finds it
//! where the step before the capture put it.

use super::*;
use bytemuck::{Pod, Zeroable};
use std::collections::HashMap;

/// Elements that a block takes of a tensor, where it takes a part of one.
const ELEMENTS: usize = 4096;

/// Tables that are kept. They are never given back, because captured graphs hold their addresses; a process that
/// trains more sets of tensors than this makes a new backend.
const TABLES: usize = 1024;

/// What a block takes: part `index` of an entry.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Chunk {
    entry: u32,
    index: u32,
}

/// The tables so far, by their contents.
#[derive(Default)]
pub struct Tables {
    tables: HashMap<Vec<u8>, Allocation>,
}

impl Tables {
    /// Where `contents` lie in device memory.
    fn find(&mut self, op: &'static str, driver: &Arc<dyn Driver>, contents: Vec<u8>) -> Result<Address> {
        if let Some(memory) = self.tables.get(&contents) {
            return Ok(memory.address);
        }
        if self.tables.len() == TABLES {
            let problem = format!("more than {TABLES} different sets of tensors on one device");
            return Err(BackendError::Invalid { op, problem });
        }
        let memory = Allocation::new(driver, contents.len())?;
        driver.upload(memory.address, &contents)?;
        let address = memory.address;
        self.tables.insert(contents, memory);
        Ok(address)
    }
}

/// Where the kernels find entries, and chunks, of which there are `count`: one for each block.
pub struct Table {
    pub entries: Address,
    pub chunks: Address,
    pub count: usize,
    pub bytes: usize,
}

/// Blocks for each of the tensors of so many elements.
pub fn blocks(lengths: &[usize]) -> Vec<usize> {
    lengths.iter().map(|length| length.div_ceil(ELEMENTS)).collect()
}

impl Table {
    /// Finds or uploads the table of `entries` for a kernel to read, of which each gets as many `blocks`.
    pub fn of<E: Pod>(cuda: &Cuda, op: &'static str, entries: &[E], blocks: &[usize]) -> Result<Self> {
        let mut chunks = Vec::new();
        for (entry, &count) in (0u32..).zip(blocks) {
            chunks.extend((0..count as u32).map(|index| Chunk { entry, index }));
        }
        let mut contents = bytemuck::cast_slice(entries).to_vec();
        contents.extend_from_slice(bytemuck::cast_slice(&chunks));
        let bytes = contents.len();
        let entries_at = if chunks.is_empty() {
            Address::NULL
        } else {
            locked(&cuda.inner.tables).find(op, &cuda.inner.driver, contents)?
        };
        let chunks_at = entries_at.offset(size_of_val(entries));
        Ok(Table { entries: entries_at, chunks: chunks_at, count: chunks.len(), bytes })
    }
}
