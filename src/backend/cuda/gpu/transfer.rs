//! Bytes between host and device beside the running work: a ring of pinned buffers that feeds the device,
//! and a pool of them that results are fetched into.

use super::handles::{Context, DeviceBuffer, Event, PinnedBuffer, Stream};
use super::latest::Latest;
use crate::backend::cuda::driver::{Address, Fetch, Result};
use crate::backend::cuda::{CudaError, locked};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// From here on several threads copy into pinned memory: one alone is slower than the bus.
const PARALLEL_COPY: usize = 1 << 20;
const COPY_CHUNK: usize = 256 << 10;

/// Parts of a slot begin at multiples of this.
const ALIGNMENT: usize = 256;

/// The streams of a device.
pub struct Streams {
    /// Everything in order.
    pub compute: Stream,
    /// Copies from the host, beside it.
    pub copy: Stream,
}

/// A pinned buffer and one on the device behind it.
struct Slot {
    pinned: PinnedBuffer,
    staging: DeviceBuffer,
    /// The bytes are on the device.
    arrived: Event,
    /// The compute stream has taken them from there.
    taken: Event,
}

impl Slot {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        Ok(Slot {
            pinned: PinnedBuffer::new(context, bytes)?,
            staging: DeviceBuffer::new(context, bytes)?,
            arrived: Event::new(context)?,
            taken: Event::new(context)?,
        })
    }
}

/// Slots in the order of their last use, the longest ago first.
pub struct Ring {
    /// How many there may be, and for how many bytes each is made at least.
    slots: usize,
    minimum: usize,
    state: Mutex<RingState>,
    context: Arc<Context>,
}

#[derive(Default)]
struct RingState {
    free: VecDeque<Slot>,
    made: usize,
}

impl Ring {
    pub fn new(context: &Arc<Context>, slots: usize, minimum: usize) -> Self {
        Ring { slots, minimum, state: Mutex::default(), context: context.clone() }
    }

    /// A slot with the bytes of all parts in its pinned buffer, on their way to these addresses. Waits only while all
    /// slots are on their way. No lock is held while the bytes are copied, for that may run other tasks on this thread.
    pub fn fill(&self, parts: &[(Address, &[u8])]) -> Result<Filled<'_>> {
        let mut bytes = 0;
        let mut places = Vec::with_capacity(parts.len());
        for (to, from) in parts {
            places.push(Place { to: to.0, offset: bytes, bytes: from.len() });
            bytes += from.len().next_multiple_of(ALIGNMENT);
        }
        let slot = match self.take()? {
            Some(slot) => slot,
            None => self.make(bytes)?,
        };
        let mut filled = Filled { slot: Some(slot), bytes, places, ring: self };
        let Some(slot) = &mut filled.slot else { return Ok(filled) };
        slot.taken.synchronize()?;
        if slot.pinned.capacity() < bytes {
            let bytes = bytes.next_multiple_of(4096);
            let pinned = PinnedBuffer::new(&self.context, bytes)?;
            slot.staging = DeviceBuffer::new(&self.context, bytes)?;
            slot.pinned = pinned;
        }
        // SAFETY: the last copy from this buffer was over before `taken` was recorded behind it.
        let to = unsafe { slot.pinned.bytes_mut() };
        for ((_, from), place) in parts.iter().zip(&filled.places) {
            copy(from, &mut to[place.offset..][..place.bytes]);
        }
        Ok(filled)
    }

    /// The oldest slot if it is free, or if there may be no more slots; else none.
    fn take(&self) -> Result<Option<Slot>> {
        let mut state = locked(&self.state);
        let oldest = state.free.front().map(|slot| slot.taken.is_done()).transpose()?;
        match oldest {
            Some(done) if done || state.made >= self.slots => Ok(state.free.pop_front()),
            _ => Ok(None),
        }
    }

    fn make(&self, bytes: usize) -> Result<Slot> {
        let slot = Slot::new(&self.context, bytes.max(self.minimum).next_multiple_of(4096))?;
        locked(&self.state).made += 1;
        Ok(slot)
    }
}

/// Bytes in pinned memory, ready to be sent; goes back to its ring when it is dropped.
pub struct Filled<'a> {
    /// Some until it is dropped.
    slot: Option<Slot>,
    bytes: usize,
    places: Vec<Place>,
    ring: &'a Ring,
}

/// Where a part lies in a slot, and where it goes.
struct Place {
    to: u64,
    offset: usize,
    bytes: usize,
}

impl Filled<'_> {
    /// Sends the bytes to where they go, in order with the compute stream.
    ///
    /// # Safety
    /// As many bytes must be allocated at each address.
    pub unsafe fn send(self, streams: &Streams) -> Result<()> {
        let Some(slot) = &self.slot else { return Ok(()) };
        // SAFETY: both buffers are large enough and stay until `taken`, which is waited for before they
        // are used again; where the parts go is the caller's promise.
        let sent = unsafe {
            streams
                .copy
                .copy_from_host(slot.staging.address(), slot.pinned.pointer(), self.bytes)
                .and_then(|()| slot.arrived.record(&streams.copy))
                .and_then(|()| streams.compute.wait_for(&slot.arrived))
                .and_then(|()| {
                    let from = slot.staging.address();
                    let mut places = self.places.iter();
                    places.try_for_each(|p| streams.compute.copy(p.to, from + p.offset as u64, p.bytes))
                })
                .and_then(|()| slot.taken.record(&streams.compute))
        };
        if sent.is_err() {
            // `taken` may not cover what was enqueued before the failure.
            let _ = streams.copy.synchronize();
            let _ = streams.compute.synchronize();
        }
        sent
    }
}

impl Drop for Filled<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            locked(&self.ring.state).free.push_back(slot);
        }
    }
}

fn copy(from: &[u8], to: &mut [u8]) {
    if from.len() <= PARALLEL_COPY {
        return to.copy_from_slice(from);
    }
    let chunks = to.par_chunks_mut(COPY_CHUNK).zip(from.par_chunks(COPY_CHUNK));
    chunks.for_each(|(to, from)| to.copy_from_slice(from));
}

/// A pinned buffer that bytes are fetched into, and the event behind them.
struct Landing {
    pinned: PinnedBuffer,
    arrived: Event,
}

/// Landings that are not in use.
pub struct Landings {
    free: Mutex<Vec<Landing>>,
    latest: Arc<Latest>,
    context: Arc<Context>,
}

impl Landings {
    pub fn new(context: &Arc<Context>, latest: &Arc<Latest>) -> Arc<Self> {
        Arc::new(Landings { free: Mutex::default(), latest: latest.clone(), context: context.clone() })
    }

    /// Enqueues a copy to the host.
    ///
    /// # Safety
    /// `bytes` bytes must be allocated at `from`.
    pub unsafe fn fetch(self: &Arc<Self>, from: u64, bytes: usize, stream: &Stream) -> Result<PinnedFetch> {
        let landing = self.take(bytes)?;
        // SAFETY: nothing else uses the buffer, which is large enough and is not dropped before the event;
        // `from` is the caller's promise.
        let sent = unsafe { stream.copy_to_host(landing.pinned.pointer(), from, bytes) };
        if let Err(error) = sent.and_then(|()| landing.arrived.record(stream)) {
            // The event does not cover a copy that was enqueued before the failure.
            let _ = stream.synchronize();
            return Err(error);
        }
        Ok(PinnedFetch { landing: Some(landing), bytes, pool: self.clone() })
    }

    /// A landing for `bytes` bytes that nothing is on its way to.
    fn take(&self, bytes: usize) -> Result<Landing> {
        let mut free = locked(&self.free);
        for i in 0..free.len() {
            if free[i].pinned.capacity() >= bytes && free[i].arrived.is_done()? {
                return Ok(free.swap_remove(i));
            }
        }
        drop(free);
        let capacity = bytes.next_power_of_two().max(4096);
        Ok(Landing {
            pinned: PinnedBuffer::new(&self.context, capacity)?,
            arrived: Event::new(&self.context)?,
        })
    }
}

/// Bytes on their way to pinned memory.
pub struct PinnedFetch {
    /// None once the bytes were handed out.
    landing: Option<Landing>,
    bytes: usize,
    pool: Arc<Landings>,
}

impl PinnedFetch {
    fn landing(&self) -> Result<&Landing> {
        self.landing.as_ref().ok_or_else(|| CudaError::Call {
            call: "fetch",
            problem: "the bytes were handed out before".into(),
        })
    }

    /// The bytes; the event must be done.
    fn hand_out(&mut self) -> Result<Vec<u8>> {
        // SAFETY: the copy is done, as the event behind it is.
        let bytes = unsafe { self.landing()?.pinned.bytes() }[..self.bytes].to_vec();
        self.give_back();
        Ok(bytes)
    }

    fn give_back(&mut self) {
        if let Some(landing) = self.landing.take() {
            locked(&self.pool.free).push(landing);
        }
    }
}

impl Fetch for PinnedFetch {
    fn poll(&mut self) -> Result<Option<Vec<u8>>> {
        let done = self.pool.latest.explain(self.landing()?.arrived.is_done())?;
        if done { self.hand_out().map(Some) } else { Ok(None) }
    }

    fn wait(&mut self) -> Result<Vec<u8>> {
        self.pool.latest.explain(self.landing()?.arrived.synchronize())?;
        self.hand_out()
    }
}

impl Drop for PinnedFetch {
    /// The landing may still be waited for by the device; whoever takes it next looks at its event.
    fn drop(&mut self) {
        self.give_back();
    }
}
