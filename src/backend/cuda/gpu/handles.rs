//! Objects of the CUDA driver that give themselves back, and its statuses as errors.
//!
//! Every handle keeps its context alive and makes it current before it is destroyed, so handles may be
//! dropped on any thread and in any order. Destruction has nobody to report to and ignores failures: after
//! a sticky error every call fails.

use super::calls::{Status, cuda as cu};
use crate::backend::cuda::CudaError;
use crate::backend::cuda::driver::Result;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// An error unless `status` is success. After a sticky one it says that the context is lost.
pub fn check(call: &'static str, status: Status) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let problem = describe(status);
    if is_sticky(status) {
        Err(CudaError::Lost { call, problem })
    } else {
        Err(CudaError::Call { call, problem })
    }
}

/// The errors after which every further call on the context fails too.
const STICKY: [cu::CUresult; 14] = {
    use cu::CUresult::*;
    [
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_LAUNCH_TIMEOUT,
        CUDA_ERROR_ASSERT,
        CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_LAUNCH_FAILED,
        CUDA_ERROR_ECC_UNCORRECTABLE,
        CUDA_ERROR_NVLINK_UNCORRECTABLE,
        CUDA_ERROR_CONTAINED,
        CUDA_ERROR_CONTEXT_IS_DESTROYED,
        CUDA_ERROR_EXTERNAL_DEVICE,
    ]
};

fn is_sticky(status: Status) -> bool {
    STICKY.iter().any(|&sticky| is(status, sticky))
}

/// Whether a status is this one of cudarc's.
pub fn is(status: Status, known: cu::CUresult) -> bool {
    status == known as Status
}

/// "CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)", or "status 999" where the driver has no name for it.
fn describe(status: Status) -> String {
    let text = |get: unsafe fn(Status, *mut *const c_char) -> Status| {
        let mut text = null();
        // SAFETY: the driver writes a pointer to a constant string, or null for a status it does not know.
        unsafe {
            let known = get(status, &mut text) == 0 && !text.is_null();
            known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    match (text(cu::cuGetErrorName), text(cu::cuGetErrorString)) {
        (Some(name), Some(meaning)) => format!("{name} ({meaning})"),
        _ => format!("status {status}"),
    }
}

/// The primary context of a device, which cuBLASLt uses too.
pub struct Context {
    device: cu::CUdevice,
    raw: cu::CUcontext,
}

// SAFETY: the driver lets any thread use a context, several at once too.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn retain(device: cu::CUdevice) -> Result<Arc<Self>> {
        let mut raw = null_mut();
        // SAFETY: `device` comes from cuDeviceGet, and `raw` is a place for the handle.
        check("cuDevicePrimaryCtxRetain", unsafe { cu::cuDevicePrimaryCtxRetain(&mut raw, device) })?;
        Ok(Arc::new(Context { device, raw }))
    }

    /// Makes the context current on this thread, which every call on its objects needs.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { cu::cuCtxSetCurrent(self.raw) })
    }

    /// Runs `body` between the profiler's start and stop.
    pub fn profile(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        self.enter()?;
        // SAFETY: the context is current.
        check("cuProfilerStart", unsafe { cu::cuProfilerStart() })?;
        let done = body();
        self.enter()?;
        // SAFETY: as above.
        let stopped = check("cuProfilerStop", unsafe { cu::cuProfilerStop() });
        done.and(stopped)
    }

    /// Bytes of device memory that are free, and that there are.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: two places for sizes; the context is current.
        check("cuMemGetInfo", unsafe { cu::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `retain`; all handles in it hold an Arc of it and are gone.
        unsafe { cu::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A type that owns one handle and destroys it.
macro_rules! owned_handle {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $destroy:path) => {
        $(#[$doc])*
        pub struct $name {
            raw: $raw,
            context: Arc<Context>,
        }

        // SAFETY: the driver's handles may be used and destroyed on any thread, with their context current.
        unsafe impl Send for $name {}
        // SAFETY: the driver locks what its calls share.
        unsafe impl Sync for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                if self.context.enter().is_ok() {
                    // SAFETY: made by the driver, destroyed once, and its context is current.
                    unsafe { $destroy(self.raw) };
                }
            }
        }
    };
}

owned_handle!(
    /// A queue of work on the device.
    Stream, cu::CUstream, cu::cuStreamDestroy_v2
);

impl Stream {
    /// A stream that does not wait for the default one.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        context.enter()?;
        let mut raw = null_mut();
        let flags = cu::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: a place for the handle; the context is current.
        check("cuStreamCreate", unsafe { cu::cuStreamCreate(&mut raw, flags) })?;
        Ok(Stream { raw, context: context.clone() })
    }

    pub fn raw(&self) -> cu::CUstream {
        self.raw
    }

    /// Waits until all work enqueued so far is done.
    pub fn synchronize(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream exists.
        check("cuStreamSynchronize", unsafe { cu::cuStreamSynchronize(self.raw) })
    }

    /// Work enqueued from here on waits for what `event` recorded.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both exist; no flags are set.
        check("cuStreamWaitEvent", unsafe { cu::cuStreamWaitEvent(self.raw, event.raw, 0) })
    }

    /// From here on work on this stream is captured. Relaxed: neither allocations of other threads nor
    /// kernels that cuBLASLt loads on first use disturb the capture.
    pub fn begin_capture(&self) -> Result<()> {
        self.context.enter()?;
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream exists and is not the default one.
        check("cuStreamBeginCapture", unsafe { cu::cuStreamBeginCapture_v2(self.raw, mode) })
    }

    /// Ends the capture. When it fails the stream is no longer captured either.
    pub fn end_capture(&self) -> Result<Graph> {
        self.context.enter()?;
        let mut raw = null_mut();
        // SAFETY: a place for the handle; the stream exists.
        let status = unsafe { cu::cuStreamEndCapture(self.raw, &mut raw) };
        let graph = (!raw.is_null()).then(|| Graph { raw, context: self.context.clone() });
        check("cuStreamEndCapture", status)?;
        graph.ok_or_else(|| CudaError::Call {
            call: "cuStreamEndCapture",
            problem: "the driver returned no graph; an earlier error broke the capture".into(),
        })
    }

    /// Captures what `body` enqueues. Whatever happens in it, the stream is not captured any more afterwards.
    pub fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.begin_capture()?;
        let done = body();
        let graph = self.end_capture();
        done?;
        graph
    }

    /// Copies within the device. Enqueued.
    ///
    /// # Safety
    /// `bytes` from both addresses on must be allocated until the copy is done.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: as the caller promises.
        check("cuMemcpyDtoDAsync", unsafe { cu::cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw) })
    }

    /// Copies to the device. Enqueued if `from` is pinned, else done on return or when it is staged.
    ///
    /// # Safety
    /// `bytes` must be valid at both places until the copy is done.
    pub unsafe fn copy_from_host(&self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        self.context.enter()?;
        let from = from.cast::<c_void>();
        // SAFETY: as the caller promises.
        check("cuMemcpyHtoDAsync", unsafe { cu::cuMemcpyHtoDAsync_v2(to, from, bytes, self.raw) })
    }

    /// Copies from the device. Enqueued if `to` is pinned.
    ///
    /// # Safety
    /// `bytes` must be valid at both places until the copy is done, and nothing else may use those at `to`.
    pub unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        self.context.enter()?;
        let to = to.cast::<c_void>();
        // SAFETY: as the caller promises.
        check("cuMemcpyDtoHAsync", unsafe { cu::cuMemcpyDtoHAsync_v2(to, from, bytes, self.raw) })
    }

    /// Zeros. Enqueued.
    ///
    /// # Safety
    /// `bytes` from `to` on must be allocated until it is done.
    pub unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: as the caller promises.
        check("cuMemsetD8Async", unsafe { cu::cuMemsetD8Async(to, 0, bytes, self.raw) })
    }
}

owned_handle!(
    /// A mark in a stream.
    Event, cu::CUevent, cu::cuEventDestroy_v2
);

impl Event {
    /// An event for order alone; a thread that waits for it sleeps and leaves its core to others.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let flags = cu::CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint
            | cu::CUevent_flags::CU_EVENT_BLOCKING_SYNC as c_uint;
        Event::with_flags(context, flags)
    }

    /// An event that keeps the time.
    pub fn timing(context: &Arc<Context>) -> Result<Self> {
        Event::with_flags(context, cu::CUevent_flags::CU_EVENT_DEFAULT as c_uint)
    }

    fn with_flags(context: &Arc<Context>, flags: c_uint) -> Result<Self> {
        context.enter()?;
        let mut raw = null_mut();
        // SAFETY: a place for the handle; the context is current.
        check("cuEventCreate", unsafe { cu::cuEventCreate(&mut raw, flags) })?;
        Ok(Event { raw, context: context.clone() })
    }

    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both exist and belong to one context.
        check("cuEventRecord", unsafe { cu::cuEventRecord(self.raw, stream.raw) })
    }

    /// Whether what was recorded is done; true when nothing ever was.
    pub fn is_done(&self) -> Result<bool> {
        self.context.enter()?;
        // SAFETY: the event exists.
        match unsafe { cu::cuEventQuery(self.raw) } {
            status if is(status, cu::CUresult::CUDA_ERROR_NOT_READY) => Ok(false),
            status => check("cuEventQuery", status).map(|()| true),
        }
    }

    pub fn synchronize(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event exists.
        check("cuEventSynchronize", unsafe { cu::cuEventSynchronize(self.raw) })
    }

    /// Seconds from `self` to `end`, both timing events that are done.
    pub fn seconds_until(&self, end: &Event) -> Result<f64> {
        self.context.enter()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: a place for the number, and two events that exist.
        let status = unsafe { cu::cuEventElapsedTime_v2(&mut milliseconds, self.raw, end.raw) };
        check("cuEventElapsedTime", status)?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

owned_handle!(
    /// A captured graph of work.
    Graph, cu::CUgraph, cu::cuGraphDestroy
);

impl Graph {
    pub fn instantiate(&self) -> Result<GraphExec> {
        self.context.enter()?;
        let mut raw = null_mut();
        // SAFETY: a place for the handle; the graph exists; no flags are set.
        let status = unsafe { cu::cuGraphInstantiateWithFlags(&mut raw, self.raw, 0) };
        check("cuGraphInstantiate", status)?;
        Ok(GraphExec { raw, context: self.context.clone() })
    }
}

owned_handle!(
    /// A graph that can be launched. Destroyed while it runs, it is freed when it is done.
    GraphExec, cu::CUgraphExec, cu::cuGraphExecDestroy
);

impl GraphExec {
    /// Brings the graph to the device, so that the first launch is as fast as the others. Enqueued.
    pub fn upload(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both exist.
        check("cuGraphUpload", unsafe { cu::cuGraphUpload(self.raw, stream.raw) })
    }

    pub fn launch(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both exist.
        check("cuGraphLaunch", unsafe { cu::cuGraphLaunch(self.raw, stream.raw) })
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

owned_handle!(
    /// Loaded machine code.
    Module, cu::CUmodule, cu::cuModuleUnload
);

impl Module {
    pub fn load(context: &Arc<Context>, cubin: &[u8]) -> Result<Self> {
        context.enter()?;
        // The driver reads ELF structures in place.
        let mut aligned = vec![0u64; cubin.len().div_ceil(8) + 1];
        bytemuck::cast_slice_mut(&mut aligned)[..cubin.len()].copy_from_slice(cubin);
        let mut raw = null_mut();
        // SAFETY: a place for the handle, and a cubin that the compiler wrote; the driver copies it.
        check("cuModuleLoadData", unsafe { cu::cuModuleLoadData(&mut raw, aligned.as_ptr().cast()) })?;
        Ok(Module { raw, context: context.clone() })
    }

    /// The kernel `name`, which must be there; valid as long as the module.
    pub fn function(&self, name: &CStr) -> Result<cu::CUfunction> {
        self.context.enter()?;
        let mut function = null_mut();
        // SAFETY: a place for the handle; the module exists and the name ends with a zero.
        let status = unsafe { cu::cuModuleGetFunction(&mut function, self.raw, name.as_ptr()) };
        check("cuModuleGetFunction", status)?;
        Ok(function)
    }
}

owned_handle!(DeviceBuffer, cu::CUdeviceptr, cu::cuMemFree_v2);

impl DeviceBuffer {
    /// Memory with unspecified contents, 256-byte aligned.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        let mut raw = 0;
        // The driver refuses to allocate nothing.
        // SAFETY: a place for the address; the context is current.
        let status = unsafe { cu::cuMemAlloc_v2(&mut raw, bytes.max(1)) };
        if is(status, cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
            let (free, total) = context.memory()?;
            return Err(CudaError::OutOfMemory { bytes, free, total });
        }
        check("cuMemAlloc", status)?;
        Ok(DeviceBuffer { raw, context: context.clone() })
    }

    pub fn address(&self) -> u64 {
        self.raw
    }
}

owned_handle!(
    /// Page-locked host memory, which the device copies from and to by itself.
    PinnedMemory, *mut c_void, cu::cuMemFreeHost
);

impl PinnedMemory {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        let mut raw = null_mut();
        // SAFETY: a place for the address; the context is current; no flags are set.
        check("cuMemHostAlloc", unsafe { cu::cuMemHostAlloc(&mut raw, bytes, 0) })?;
        // SAFETY: the driver returned `bytes` bytes; Rust wants them initialised before they are a slice.
        unsafe { raw.cast::<u8>().write_bytes(0, bytes) };
        Ok(PinnedMemory { raw, context: context.clone() })
    }
}

/// Pinned memory as bytes.
pub struct PinnedBuffer {
    memory: PinnedMemory,
    bytes: usize,
}

impl PinnedBuffer {
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1);
        Ok(PinnedBuffer { memory: PinnedMemory::new(context, bytes)?, bytes })
    }

    pub fn capacity(&self) -> usize {
        self.bytes
    }

    pub fn pointer(&self) -> *mut u8 {
        self.memory.raw.cast()
    }

    /// # Safety
    /// No copy from or to the buffer may be on its way.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the memory lives as long as `self`, is initialised, and the device leaves it alone.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.bytes) }
    }

    /// # Safety
    /// No copy from or to the buffer may be on its way.
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.bytes) }
    }
}
