//! Device memory on the host: every piece known, poisoned, and apart from the next.

use crate::backend::cuda::CudaError;
use crate::backend::cuda::driver::{Address, Result};
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;

const ALIGNMENT: usize = 256;
/// Behind every piece, so that one element too many never lands in the next.
const GAP: usize = 4096;

/// From `start` up to `end`; read by the runtime.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub start: u64,
    pub end: u64,
}

#[derive(Default)]
pub struct Memory {
    /// Bytes asked for, by start address.
    pieces: BTreeMap<u64, usize>,
    /// The pieces as the runtime reads them.
    buffers: Vec<Buffer>,
    used: usize,
    peak: usize,
}

impl Memory {
    pub fn allocate(&mut self, bytes: usize) -> Result<Address> {
        let layout = layout(bytes)?;
        // SAFETY: the layout is not of size 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(CudaError::Twin(format!("the host has no {bytes} bytes for the twin's memory")));
        }
        // SAFETY: `start` points to `layout.size()` bytes of ours. 0xff is NaN in every number type.
        unsafe { start.write_bytes(0xff, layout.size()) };
        let address = start.expose_provenance() as u64;
        self.pieces.insert(address, bytes);
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        self.list();
        Ok(Address(address))
    }

    /// Freeing what is not allocated is reported where the memory is used next, as on a GPU.
    pub fn free(&mut self, address: Address) {
        let Some(bytes) = self.pieces.remove(&address.0) else { return };
        self.used -= bytes;
        self.list();
        if let Ok(layout) = layout(bytes) {
            // SAFETY: the piece came from `alloc` with this layout and has just been forgotten.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(address.0 as usize), layout) };
        }
    }

    fn list(&mut self) {
        let buffer = |(&start, &bytes): (&u64, &usize)| Buffer { start, end: start + bytes as u64 };
        self.buffers = self.pieces.iter().map(buffer).collect();
    }

    /// Now and at most.
    pub fn allocated(&self) -> (usize, usize) {
        (self.used, self.peak)
    }

    /// All pieces, by address.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Checks that `bytes` from `address` on lie in one piece; `what` wants to use them.
    pub fn check(&self, address: Address, bytes: usize, what: &str) -> Result<()> {
        let at = address.0;
        let piece = self.pieces.range(..=at).next_back().map(|(&start, &size)| (start, start + size as u64));
        match piece {
            Some((_, end)) if at <= end && bytes as u64 <= end - at => Ok(()),
            Some((start, end)) if at < end => Err(CudaError::Twin(format!(
                "{what}: {bytes} bytes from byte {} on, in a buffer of {} bytes",
                at - start,
                end - start
            ))),
            _ => Err(CudaError::Twin(format!("{what}: {bytes} bytes at {at:#x}, which is not allocated"))),
        }
    }

    pub fn bytes(&self, address: Address, bytes: usize, what: &str) -> Result<&[u8]> {
        self.check(address, bytes, what)?;
        let start = std::ptr::with_exposed_provenance(address.0 as usize);
        // SAFETY: the bytes are within one piece, were written when it was made, and live as long as it.
        Ok(unsafe { std::slice::from_raw_parts(start, bytes) })
    }

    pub fn bytes_mut(&mut self, address: Address, bytes: usize, what: &str) -> Result<&mut [u8]> {
        self.check(address, bytes, what)?;
        let start = std::ptr::with_exposed_provenance_mut(address.0 as usize);
        // SAFETY: as above, and `self` is borrowed exclusively, so no other slice of it exists.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, bytes) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let starts: Vec<u64> = self.pieces.keys().copied().collect();
        for start in starts {
            self.free(Address(start));
        }
    }
}

fn layout(bytes: usize) -> Result<Layout> {
    let size = bytes.checked_add(GAP);
    size.and_then(|size| Layout::from_size_align(size, ALIGNMENT).ok())
        .ok_or_else(|| CudaError::Twin(format!("no memory can have {bytes} bytes")))
}
