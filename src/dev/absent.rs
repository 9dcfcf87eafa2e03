//! A device that is not there: launchers find out what they would launch on it, and nothing runs.
//!
//! Addresses are handed out without memory behind them, what is enqueued is dropped, and what comes back are
//! zeros. With a [`Listing`](super::listing::Listing) around it, it tells what a step launches on a GPU that
//! nobody has, at any size and at once.

use crate::backend::cuda::driver::{Address, DeviceInfo, Driver, Fetch, Gemm, Graph, Launch, Result};
use crate::backend::cuda::{CudaError, locked};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Mutex;

/// A device of which only its description is there.
pub struct Absent {
    info: DeviceInfo,
    memory: Mutex<Memory>,
}

/// Addresses that are given out.
struct Memory {
    next: u64,
    /// Bytes of each that is allocated.
    pieces: HashMap<Address, usize>,
    used: usize,
    peak: usize,
}

struct Nothing;

impl Graph for Nothing {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Zeros(usize);

impl Fetch for Zeros {
    fn poll(&mut self) -> Result<Option<Vec<u8>>> {
        self.wait().map(Some)
    }

    fn wait(&mut self) -> Result<Vec<u8>> {
        Ok(vec![0; self.0])
    }
}

impl Absent {
    /// As addresses of a device are aligned.
    const ALIGNMENT: u64 = 256;

    pub fn new(info: DeviceInfo) -> Self {
        let memory = Memory { next: Self::ALIGNMENT, pieces: HashMap::new(), used: 0, peak: 0 };
        Absent { info, memory: Mutex::new(memory) }
    }

    /// An H100 with SXM5 socket, as NVIDIA's data sheet and the CUDA programming guide describe it.
    pub fn h100() -> Self {
        Absent::new(DeviceInfo {
            name: "NVIDIA H100 80GB HBM3, not there".into(),
            index: 0,
            compute_capability: 90,
            multiprocessors: 132,
            shared_memory_per_block: 227 << 10,
            cooperative: true,
            overlap: false,
            l2_cache: 50 << 20,
            memory: 80 << 30,
            software: "none".into(),
        })
    }
}

impl Driver for Absent {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        let mut memory = locked(&self.memory);
        let free = self.info.memory.saturating_sub(memory.used);
        if bytes > free {
            return Err(CudaError::OutOfMemory { bytes, free, total: self.info.memory });
        }
        let address = Address(memory.next);
        memory.next += (bytes as u64).next_multiple_of(Self::ALIGNMENT).max(Self::ALIGNMENT);
        memory.pieces.insert(address, bytes);
        memory.used += bytes;
        memory.peak = memory.peak.max(memory.used);
        Ok(address)
    }

    fn free(&self, address: Address) {
        let mut memory = locked(&self.memory);
        memory.used -= memory.pieces.remove(&address).unwrap_or_default();
    }

    fn allocated(&self) -> (usize, usize) {
        let memory = locked(&self.memory);
        (memory.used, memory.peak)
    }

    fn clear(&self, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    fn copy(&self, _: Address, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    fn upload(&self, _: Address, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&self, _: Address, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn feed(&self, _: &[(Address, &[u8])]) -> Result<()> {
        Ok(())
    }

    fn fetch(&self, _: Address, bytes: usize) -> Result<Box<dyn Fetch>> {
        Ok(Box::new(Zeros(bytes)))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        launch.args.check().map_err(|problem| CudaError::Call { call: "launch", problem })
    }

    unsafe fn gemm(&self, _: &Gemm) -> Result<()> {
        Ok(())
    }

    fn begin_capture(&self) -> Result<()> {
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        Ok(Box::new(Nothing))
    }

    fn replay(&self, _: &dyn Graph) -> Result<()> {
        Ok(())
    }

    fn measures(&self) -> bool {
        false
    }

    fn recall(&self, _: &str) -> Option<String> {
        None
    }

    fn remember(&self, _: &str, choice: &str) -> Result<String> {
        Ok(choice.to_owned())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn seconds(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        body()?;
        Ok(0.0)
    }
}
