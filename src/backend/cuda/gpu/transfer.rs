//! Bytes between host and device beside the running work: a ring of pinned buffers that feeds the device,
//! and a pool of them that results are fetched into.

use super::handles::{Context, Event, PinnedBuffer, Stream};
use super::latest::Latest;
use crate::backend::cuda::driver::{Address, Fetch, Result};
use crate::backend::cuda::{CudaError, locked};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// From here on several threads copy into pinned memory: one alone is slower than the bus.
const PARALLEL_COPY: usize = 1 << 20;
const COPY_CHUNK: usize = 256 << 10;

/// Places in a slot begin at multiples of this.
const ALIGNMENT: usize = 256;

/// The streams of a device.
pub struct Streams {
    /// Everything in order.
    pub compute: Stream,
    /// Copies from the host, beside it.
    pub copy: Stream,
}

/// A pinned buffer that bytes are sent from.
struct Slot {
    pinned: PinnedBuffer,
    /// The bytes are on the device.
    arrived: Event,
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

    /// A slot with the bytes of all pieces in its pinned buffer, to be sent to these addresses. Waits only while all
    /// slots are on their way. No lock is held while the bytes are copied, for that may run other tasks on this thread.
    pub fn fill(&self, pieces: &[(Address, &[u8])]) -> Result<Filled<'_>> {
        let places = places(pieces);
        let bytes = places.last().map_or(0, |last| last.offset + last.bytes);
        let slot = match self.take()? {
            Some(slot) => slot,
            None => self.make(bytes)?,
        };
        let mut filled = Filled { slot: Some(slot), places, ring: self };
        let Some(slot) = &mut filled.slot else { return Ok(filled) };
        slot.arrived.synchronize()?;
        if slot.pinned.capacity() < bytes {
            slot.pinned = PinnedBuffer::new(&self.context, bytes.next_multiple_of(4096))?;
        }
        // SAFETY: the last copy from this buffer was over when `arrived` was.
        copy(pieces, &filled.places, unsafe { slot.pinned.bytes_mut() });
        Ok(filled)
    }

    /// The oldest slot if it is free, or if there may be no more slots; else none.
    fn take(&self) -> Result<Option<Slot>> {
        let mut state = locked(&self.state);
        let oldest = state.free.front().map(|slot| slot.arrived.is_done()).transpose()?;
        match oldest {
            Some(done) if done || state.made >= self.slots => Ok(state.free.pop_front()),
            _ => Ok(None),
        }
    }

    fn make(&self, bytes: usize) -> Result<Slot> {
        let pinned = PinnedBuffer::new(&self.context, bytes.max(self.minimum).next_multiple_of(4096))?;
        let slot = Slot { pinned, arrived: Event::new(&self.context)? };
        locked(&self.state).made += 1;
        Ok(slot)
    }
}

/// Bytes in pinned memory, ready to be sent; goes back to its ring when it is dropped.
pub struct Filled<'a> {
    /// Some until it is dropped.
    slot: Option<Slot>,
    places: Vec<Place>,
    ring: &'a Ring,
}

/// Bytes that lie together, in a slot and where they go.
struct Place {
    to: Range<u64>,
    offset: usize,
    bytes: usize,
}

/// The places of pieces: those that follow one another on the device are one.
fn places(pieces: &[(Address, &[u8])]) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for (to, from) in pieces {
        let (bytes, end) = (from.len(), to.0 + from.len() as u64);
        match places.last_mut() {
            Some(last) if last.to.end == to.0 => (last.to.end, last.bytes) = (end, last.bytes + bytes),
            last => {
                let offset = last.map_or(0, |last| (last.offset + last.bytes).next_multiple_of(ALIGNMENT));
                places.push(Place { to: to.0..end, offset, bytes });
            }
        }
    }
    places
}

/// Where feeds come in the order of the work.
pub struct Order {
    /// Recorded as the last feed came: behind everything that was enqueued before it.
    before: Event,
    /// Where the last two feeds went, the last one first.
    targets: [Vec<Range<u64>>; 2],
}

impl Order {
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Order { before: Event::new(context)?, targets: Default::default() })
    }

    /// For when memory changes hands.
    pub fn forget(&mut self) {
        self.targets = Default::default();
    }

    /// Holds the copy stream back until what is overwritten is no longer read. Where feeds go to two sets of targets in
    /// turns, these are read before the feed to the other set: the work since then goes on.
    fn admit(&mut self, places: &[Place], streams: &Streams) -> Result<()> {
        let targets: Vec<_> = places.iter().map(|place| place.to.clone()).collect();
        let [last, before_last] = &self.targets;
        let starts = |targets: &[Range<u64>]| targets.iter().map(|to| to.start).collect::<Vec<_>>();
        let overlaps = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        let in_turns = starts(&targets) == starts(before_last)
            && !targets.iter().any(|to| last.iter().any(|other| overlaps(to, other)));
        if !in_turns {
            self.before.record(&streams.compute)?;
        }
        streams.copy.wait_for(&self.before)?;
        if in_turns {
            self.before.record(&streams.compute)?;
        }
        self.targets = [targets, std::mem::take(&mut self.targets[0])];
        Ok(())
    }
}

impl Filled<'_> {
    /// Sends the bytes to where they go, in order with the compute stream.
    ///
    /// # Safety
    /// As many bytes must be allocated at each address. Where the last feed but one went to the same addresses, and the
    /// last to others, nothing that was enqueued since the last may read or write at these.
    pub unsafe fn send(self, streams: &Streams, order: &Mutex<Order>) -> Result<()> {
        let Some(slot) = &self.slot else { return Ok(()) };
        let send = |place: &Place| {
            // SAFETY: the buffer is large enough and stays until `arrived`, which is waited for before it is used
            // again; where the bytes go is the caller's promise.
            unsafe {
                let from = slot.pinned.pointer().add(place.offset);
                streams.copy.copy_from_host(place.to.start, from, place.bytes)
            }
        };
        let mut order = locked(order);
        let sent = order
            .admit(&self.places, streams)
            .and_then(|()| self.places.iter().try_for_each(send))
            .and_then(|()| slot.arrived.record(&streams.copy))
            .and_then(|()| streams.compute.wait_for(&slot.arrived));
        if sent.is_err() {
            // `arrived` may not cover what was enqueued before the failure.
            order.forget();
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

/// Copies the pieces to where their places lie in a slot.
fn copy(pieces: &[(Address, &[u8])], places: &[Place], mut to: &mut [u8]) {
    let mut chunks = Vec::new();
    let (mut places, mut at) = (places.iter().peekable(), 0);
    for (address, from) in pieces {
        // The first piece of a place begins where that does; the others follow.
        if let Some(place) = places.next_if(|place| place.to.start == address.0) {
            to = &mut to[place.offset - at..];
            at = place.offset;
        }
        let (own, rest) = to.split_at_mut(from.len());
        chunks.extend(own.chunks_mut(COPY_CHUNK).zip(from.chunks(COPY_CHUNK)));
        (to, at) = (rest, at + from.len());
    }
    if at <= PARALLEL_COPY {
        chunks.into_iter().for_each(|(to, from)| to.copy_from_slice(from));
    } else {
        chunks.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from));
    }
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
