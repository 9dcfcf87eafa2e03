//! A GPU, through the CUDA driver, NVRTC and cuBLASLt.
//!
//! Everything runs in order on one stream, except that bytes from the host travel on a second one. Each
//! call makes the context current on its thread, so any thread may call. What threads share is behind
//! locks: that of the capture is taken before any other, and of the others one at a time. Work that another
//! thread enqueues while a capture is open becomes part of it, though, and is not run: one thread at a time
//! may enqueue.

#![allow(missing_docs, reason = "public for the tests and the command line alone")]

mod calls;
mod choices;
pub mod compile;
pub mod cubins;
mod device;
mod folders;
mod gemm;
mod handles;
mod kernels;
mod latest;
pub mod libraries;
mod parameters;
mod probe;
pub mod store;
mod transfer;

pub use libraries::Loaded;
pub use probe::{CacheReport, DeviceReport, LibraryReport, Probe, probe};

use super::driver::{Address, DeviceInfo, Driver, Fetch, Gemm, Graph, Launch, Result};
use super::kernel_sources::Sources;
use super::{CudaError, locked};
use crate::hash::hex;
use crate::tensor::DType;
use choices::{Choices, Map, Scope};
use cubins::Cubins;
use gemm::{Gemms, Planning};
use handles::{Context, DeviceBuffer, Event, GraphExec, Stream};
use kernels::{Compiler, Kernels};
use latest::{Enqueued, Latest};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use transfer::{Landings, Order, Ring, Streams};

/// Batches that may be on their way to the device at once, and small things like labels.
const LARGE_COPIES: usize = 3;
const SMALL_FEEDS: usize = 16;
const SMALL_COPY: usize = 64 << 10;

/// How a [`Gpu`] is set up.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Where compiled kernels and choices are kept; none keeps nothing.
    pub cache: Option<PathBuf>,
    /// Measures what there is to choose from when it is first seen: the algorithms of a product, the forms of an
    /// adapted layer. Else cuBLASLt's heuristic decides, and the first form is taken.
    pub measure: bool,
    /// Work can be captured; else it is enqueued call by call, so that an error comes where it is made.
    pub capture: bool,
    /// Kernels whose blocks wait for each other may be launched, where the device can.
    pub cooperative: bool,
    /// Launches may begin while the one before them ends, where the device can.
    pub overlap: bool,
}

/// The environment variables that switch off what makes a fault hard to find, when they are `0`: measuring,
/// capturing, kernels whose blocks wait for each other, and launches that begin while the one before them ends.
pub const MEASURE: &str = "CLIP_ENGINE_MEASURE";
pub const GRAPHS: &str = "CLIP_ENGINE_GRAPHS";
pub const COOPERATIVE: &str = "CLIP_ENGINE_COOPERATIVE";
pub const OVERLAP: &str = "CLIP_ENGINE_OVERLAP";

impl Default for GpuOptions {
    fn default() -> Self {
        let on = |name| std::env::var_os(name).is_none_or(|value| value != "0");
        GpuOptions {
            cache: store::folder(),
            measure: on(MEASURE),
            capture: on(GRAPHS),
            cooperative: on(COOPERATIVE),
            overlap: on(OVERLAP),
        }
    }
}

#[derive(Default)]
struct Ledger {
    buffers: HashMap<u64, (DeviceBuffer, usize)>,
    now: usize,
    peak: usize,
    /// Given back while a capture was open, when nothing can be waited for.
    to_free: Vec<DeviceBuffer>,
}

/// Whether enqueued work is captured.
enum CaptureState {
    Closed,
    Open,
    /// Ended by an error, which nobody has asked about yet.
    Broken(String),
}

pub struct Gpu {
    info: DeviceInfo,
    /// Whether launches may begin early now.
    overlap: AtomicBool,
    kernels_hash: String,
    options: GpuOptions,
    capture: Mutex<CaptureState>,
    ledger: Mutex<Ledger>,
    kernels: Arc<Kernels>,
    gemms: Gemms,
    large_copies: Ring,
    small_copies: Ring,
    order: Mutex<Order>,
    landings: Arc<Landings>,
    latest: Arc<Latest>,
    choices: Arc<Choices>,
    streams: Streams,
    context: Arc<Context>,
}

impl Gpu {
    /// The device `index`, with the kernels of `sources` for activations in `dtype`.
    pub fn new(index: usize, dtype: DType, sources: &Sources, options: GpuOptions) -> Result<Self> {
        libraries::driver()?;
        libraries::nvrtc()?;
        libraries::cublaslt()?;
        device::check_driver()?;
        let device::Device { raw, mut info } = device::open(index)?;
        device::check_capability(&info, dtype)?;
        info.software = software(&options)?;
        info.cooperative &= options.cooperative;
        info.overlap &= options.overlap && sources.all_begin();
        let architecture = compile::architecture_for(info.compute_capability)?;
        let folder = |name: &str| options.cache.as_ref().map(|cache| cache.join(name));
        let compiler = Compiler {
            cubins: Cubins::new(folder("kernels")),
            sources: sources.clone(),
            architecture,
            dtype,
        };
        // Before the context, which need not wait for an error here.
        let common = compiler.common()?;

        let context = Context::retain(raw)?;
        let kernels = Kernels::load(&context, compiler, &common, info.shared_memory_per_block)?;
        let latest = Arc::new(Latest::default());
        let choices = Arc::new(Choices::open(folder("choices").as_deref(), scope(&info)?));
        Ok(Gpu {
            overlap: AtomicBool::new(false),
            kernels_hash: kernels_hash(sources)?,
            capture: Mutex::new(CaptureState::Closed),
            ledger: Mutex::default(),
            kernels: Arc::new(kernels),
            gemms: Gemms::new(&context, &info, choices.clone(), options.capture)?,
            large_copies: Ring::new(&context, LARGE_COPIES, SMALL_COPY),
            small_copies: Ring::new(&context, SMALL_FEEDS, SMALL_COPY),
            order: Mutex::new(Order::new(&context)?),
            landings: Landings::new(&context, &latest),
            latest,
            choices,
            streams: Streams { compute: Stream::new(&context)?, copy: Stream::new(&context)? },
            context,
            info,
            options,
        })
    }

    /// Does what cannot be captured, with no capture open until it is done.
    fn outside<T>(&self, call: &'static str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let state = locked(&self.capture);
        if matches!(*state, CaptureState::Open) {
            let problem = "a capture is open, and this cannot be part of one".into();
            return Err(CudaError::Call { call, problem });
        }
        self.latest.explain(body())
    }

    /// Passes a result on; an error ends an open capture, which is of no use then.
    fn captured<T>(&self, result: Result<T>) -> Result<T> {
        let result = self.latest.explain(result);
        if let Err(error) = &result {
            let mut state = locked(&self.capture);
            if matches!(*state, CaptureState::Open) {
                // The graph so far is thrown away, and a failure to end it adds nothing to the first one.
                let _ = self.streams.compute.end_capture();
                *state = CaptureState::Broken(error.to_string());
            }
            drop(state);
            self.free_deferred();
        }
        result
    }

    /// Adds a hash of the kernels to `key`: choices made by the times of other kernels say nothing of these.
    fn of_these_kernels(&self, key: &str) -> String {
        format!("{key}, kernels {}", self.kernels_hash)
    }

    /// Frees what was given back while a capture was open, if none is now.
    fn free_deferred(&self) {
        let state = locked(&self.capture);
        if matches!(*state, CaptureState::Open) {
            return;
        }
        let buffers = std::mem::take(&mut locked(&self.ledger).to_free);
        if !buffers.is_empty() && self.streams.compute.synchronize().is_err() {
            // What is wrong is found again by the next call that can report it; until then work may need them.
            locked(&self.ledger).to_free.extend(buffers);
        }
    }
}

fn kernels_hash(sources: &Sources) -> Result<String> {
    let mut names: Vec<&str> = sources.files().map(|(name, _)| name).collect();
    names.retain(|name| name.ends_with(".cu") || name.ends_with(".cuh"));
    Ok(hex(&sources.hash(&names)?[..8]))
}

fn software(options: &GpuOptions) -> Result<String> {
    let kernel_driver = libraries::kernel_driver().map(|version| format!("driver {version}, "));
    let (cuda, nvrtc) = (&libraries::driver()?.version, &libraries::nvrtc()?.version);
    let cublaslt = &libraries::cublaslt()?.version;
    let off = [
        (options.measure, ", nothing is measured"),
        (options.capture, ", nothing is captured"),
        (options.cooperative, ", no blocks wait for each other"),
        (options.overlap, ", no launches overlap"),
    ];
    let off: String = off.iter().filter(|(on, _)| !on).map(|(_, text)| *text).collect();
    Ok(format!("{}CUDA {cuda}, NVRTC {nvrtc}, cuBLASLt {cublaslt}{off}", kernel_driver.unwrap_or_default()))
}

fn scope(info: &DeviceInfo) -> Result<Scope> {
    let cuda = libraries::driver()?.version.clone();
    Ok(Scope {
        device: info.name.clone(),
        driver: libraries::kernel_driver().unwrap_or(cuda),
        cublaslt: libraries::cublaslt()?.version.clone(),
    })
}

struct CapturedGraph {
    graph: GraphExec,
    /// The kernels that the graph launches; they must outlive it, whatever is dropped first.
    _kernels: Arc<Kernels>,
}

impl Graph for CapturedGraph {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Driver for Gpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        let buffer = self.latest.explain(DeviceBuffer::new(&self.context, bytes))?;
        let address = buffer.address();
        let mut ledger = locked(&self.ledger);
        ledger.buffers.insert(address, (buffer, bytes));
        ledger.now += bytes;
        ledger.peak = ledger.peak.max(ledger.now);
        Ok(Address(address))
    }

    fn free(&self, address: Address) {
        let mut ledger = locked(&self.ledger);
        let Some((buffer, bytes)) = ledger.buffers.remove(&address.0) else {
            debug_assert!(false, "{address:?} is freed and was not allocated");
            return;
        };
        ledger.now -= bytes;
        ledger.to_free.push(buffer);
        drop(ledger);
        locked(&self.order).forget();
        self.free_deferred();
    }

    fn allocated(&self) -> (usize, usize) {
        let ledger = locked(&self.ledger);
        (ledger.now, ledger.peak)
    }

    /// As the driver counts: other programs, the context and cuBLASLt's workspace take memory, too.
    fn free_memory(&self) -> Result<usize> {
        Ok(self.latest.explain(self.context.memory())?.0)
    }

    fn clear(&self, to: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: callers pass memory that they allocated; it is freed only once the stream has come by.
        self.captured(unsafe { self.streams.compute.clear(to.0, bytes) })
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        self.captured(unsafe { self.streams.compute.copy(to.0, from.0, bytes) })
    }

    fn upload(&self, to: Address, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.outside("upload", || {
            // SAFETY: `from` is borrowed until the stream has been waited for; `to` as above.
            let sent = unsafe { self.streams.compute.copy_from_host(to.0, from.as_ptr(), from.len()) };
            let done = self.streams.compute.synchronize();
            sent.and(done)
        })
    }

    fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.outside("download", || {
            // SAFETY: `to` is borrowed until the stream has been waited for; `from` as above.
            let sent = unsafe { self.streams.compute.copy_to_host(to.as_mut_ptr(), from.0, to.len()) };
            let done = self.streams.compute.synchronize();
            sent.and(done)
        })
    }

    fn feed(&self, pieces: &[(Address, &[u8])]) -> Result<()> {
        let pieces: Vec<_> = pieces.iter().filter(|(_, from)| !from.is_empty()).copied().collect();
        if pieces.is_empty() {
            return Ok(());
        }
        // Whether a capture is open is asked before a slot is waited for, and again when it is used.
        self.outside("feed", || Ok(()))?;
        let bytes: usize = pieces.iter().map(|(_, from)| from.len()).sum();
        let ring = if bytes <= SMALL_COPY { &self.small_copies } else { &self.large_copies };
        let filled = ring.fill(&pieces)?;
        // SAFETY: callers pass memory that they allocated, which is freed once the stream has come by, and feed as
        // `Driver::feed` says.
        self.outside("feed", || unsafe { filled.send(&self.streams, &self.order) })
    }

    fn fetch(&self, from: Address, bytes: usize) -> Result<Box<dyn Fetch>> {
        self.outside("fetch", || {
            // SAFETY: as for `feed`.
            let fetch = unsafe { self.landings.fetch(from.0, bytes, &self.streams.compute) }?;
            Ok(Box::new(fetch) as Box<dyn Fetch>)
        })
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        // SAFETY: as the caller promises.
        let launched =
            unsafe { self.kernels.launch(launch, self.overlap.load(Relaxed), &self.streams.compute) };
        let launched = self.captured(launched);
        self.latest.set(Enqueued::Launch(*launch));
        launched
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        let state = locked(&self.capture);
        let planning = match *state {
            CaptureState::Open => Planning::Refuse,
            _ if self.options.measure => Planning::Measure,
            _ => Planning::TakeFirst,
        };
        // A measurement captures for itself, so no other capture may begin meanwhile; in an open one the
        // lock must be free for `captured` to end it.
        let guard = (planning == Planning::Measure).then_some(state);
        // SAFETY: as the caller promises; all products go to the one stream.
        let result = unsafe { self.gemms.enqueue(gemm, &self.streams.compute, planning) };
        drop(guard);
        let result = self.captured(result);
        self.latest.set(Enqueued::Gemm(*gemm));
        result
    }

    fn overlap(&self, on: bool) {
        self.overlap.store(on && self.info.overlap, Relaxed);
    }

    fn can_capture(&self) -> bool {
        self.options.capture
    }

    fn begin_capture(&self) -> Result<()> {
        let mut state = locked(&self.capture);
        if matches!(*state, CaptureState::Open) {
            let _ = self.streams.compute.end_capture();
            *state = CaptureState::Closed;
            let problem = "a capture was open already; both are thrown away".into();
            return Err(CudaError::Call { call: "begin_capture", problem });
        }
        self.streams.compute.begin_capture()?;
        *state = CaptureState::Open;
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        let call = "end_capture";
        let mut state = locked(&self.capture);
        let graph = match std::mem::replace(&mut *state, CaptureState::Closed) {
            CaptureState::Open => self.streams.compute.end_capture(),
            CaptureState::Closed => Err(CudaError::Call { call, problem: "no capture is open".into() }),
            CaptureState::Broken(problem) => {
                Err(CudaError::Call { call, problem: format!("an error ended the capture: {problem}") })
            }
        };
        drop(state);
        self.free_deferred();
        let graph = graph?.instantiate()?;
        graph.upload(&self.streams.compute)?;
        Ok(Box::new(CapturedGraph { graph, _kernels: self.kernels.clone() }))
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        let graph = graph.as_any().downcast_ref::<CapturedGraph>().map(|r| &r.graph);
        let Some(graph) = graph.filter(|graph| Arc::ptr_eq(graph.context(), &self.context)) else {
            let problem = "the graph was made on another device".into();
            return Err(CudaError::Call { call: "replay", problem });
        };
        let launched = self.outside("replay", || graph.launch(&self.streams.compute));
        self.latest.set(Enqueued::Replay);
        launched
    }

    fn measures(&self) -> bool {
        self.options.measure
    }

    fn recall(&self, key: &str) -> Option<String> {
        self.choices.recall(Map::Choices, &self.of_these_kernels(key))
    }

    fn remember(&self, key: &str, choice: &str) -> Result<String> {
        Ok(self.choices.remember(Map::Choices, &self.of_these_kernels(key), choice))
    }

    fn forgets(&self) -> Option<String> {
        self.choices.forgotten()
    }

    fn synchronize(&self) -> Result<()> {
        self.outside("synchronize", || {
            self.streams.copy.synchronize()?;
            self.streams.compute.synchronize()
        })
    }

    fn profile(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.synchronize()?;
        self.context.profile(|| {
            body()?;
            self.synchronize()
        })
    }

    fn seconds(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let (start, end) = (Event::timing(&self.context)?, Event::timing(&self.context)?);
        self.outside("seconds", || start.record(&self.streams.compute))?;
        body()?;
        self.outside("seconds", || {
            end.record(&self.streams.compute)?;
            end.synchronize()?;
            start.seconds_until(&end)
        })
    }
}

impl Drop for Gpu {
    /// The fields give themselves back afterwards; nothing may still be running then.
    fn drop(&mut self) {
        if matches!(*locked(&self.capture), CaptureState::Open) {
            let _ = self.streams.compute.end_capture();
        }
        let _ = self.streams.copy.synchronize();
        let _ = self.streams.compute.synchronize();
    }
}
