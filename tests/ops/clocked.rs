//! A clock for tests of what is chosen by time.

use clip_engine::backend::cuda::CudaError;
use clip_engine::backend::cuda::driver::{Address, DeviceInfo, Driver, Fetch, Gemm, Graph, Launch};
use clip_engine::dev::twin::Twin;
use clip_engine::tensor::DType;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A twin that claims to have a clock, by which the form whose kernels have `slow` in their names takes longer.
pub struct Clocked {
    twin: Twin,
    slow: &'static str,
    launched: Mutex<Vec<&'static str>>,
    /// Those of the last capture, and whether it is open.
    recorded: Mutex<(bool, Vec<&'static str>)>,
    timings: AtomicUsize,
    /// What another process chose for everything while this one measured.
    pub first: Option<&'static str>,
}

impl Clocked {
    pub fn new(slow: &'static str) -> Self {
        let twin = Twin::new(DType::F16, 90).unwrap();
        let timings = AtomicUsize::new(0);
        let (launched, recorded) = (Mutex::default(), Mutex::default());
        Clocked { twin, slow, launched, recorded, timings, first: None }
    }

    /// How often it was asked for the time.
    pub fn timings(&self) -> usize {
        self.timings.load(Ordering::Relaxed)
    }

    /// The kernels launched since the last call.
    pub fn launched(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.launched.lock().unwrap())
    }
}

impl Driver for Clocked {
    fn info(&self) -> &DeviceInfo {
        self.twin.info()
    }
    fn allocate(&self, bytes: usize) -> Result<Address, CudaError> {
        self.twin.allocate(bytes)
    }
    fn free(&self, address: Address) {
        self.twin.free(address);
    }
    fn allocated(&self) -> (usize, usize) {
        self.twin.allocated()
    }
    fn clear(&self, to: Address, bytes: usize) -> Result<(), CudaError> {
        self.twin.clear(to, bytes)
    }
    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), CudaError> {
        self.twin.copy(to, from, bytes)
    }
    fn upload(&self, to: Address, from: &[u8]) -> Result<(), CudaError> {
        self.twin.upload(to, from)
    }
    fn download(&self, from: Address, to: &mut [u8]) -> Result<(), CudaError> {
        self.twin.download(from, to)
    }
    fn feed(&self, pieces: &[(Address, &[u8])]) -> Result<(), CudaError> {
        self.twin.feed(pieces)
    }
    fn fetch(&self, from: Address, bytes: usize) -> Result<Box<dyn Fetch>, CudaError> {
        self.twin.fetch(from, bytes)
    }
    unsafe fn launch(&self, launch: &Launch) -> Result<(), CudaError> {
        let mut recorded = self.recorded.lock().unwrap();
        let list = if recorded.0 { &mut recorded.1 } else { &mut *self.launched.lock().unwrap() };
        list.push(launch.kernel.name);
        // SAFETY: the twin checks arguments and accesses.
        unsafe { self.twin.launch(launch) }
    }
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError> {
        // SAFETY: the twin checks all addresses.
        unsafe { self.twin.gemm(gemm) }
    }
    fn begin_capture(&self) -> Result<(), CudaError> {
        *self.recorded.lock().unwrap() = (true, Vec::new());
        self.twin.begin_capture()
    }
    fn end_capture(&self) -> Result<Box<dyn Graph>, CudaError> {
        self.recorded.lock().unwrap().0 = false;
        self.twin.end_capture()
    }
    fn replay(&self, graph: &dyn Graph) -> Result<(), CudaError> {
        self.launched.lock().unwrap().extend(&self.recorded.lock().unwrap().1);
        self.twin.replay(graph)
    }
    fn measures(&self) -> bool {
        true
    }
    fn recall(&self, key: &str) -> Option<String> {
        self.twin.recall(key)
    }
    fn remember(&self, key: &str, choice: &str) -> Result<String, CudaError> {
        self.twin.remember(key, self.first.unwrap_or(choice))
    }
    fn synchronize(&self) -> Result<(), CudaError> {
        self.twin.synchronize()
    }
    fn seconds(&self, body: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        self.launched();
        body()?;
        self.timings.fetch_add(1, Ordering::Relaxed);
        let slow = self.launched().iter().any(|kernel| kernel.contains(self.slow));
        Ok(if slow { 2.0 } else { 1.0 })
    }
}
