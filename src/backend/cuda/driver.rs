//! What the CUDA backend asks of a device: memory, copies, launches, GEMMs, graphs.
//!
//! Two things answer: [`gpu`](super::gpu), CUDA's driver and cuBLASLt, and the [host twin](crate::dev::twin), which
//! runs the same kernels on the CPU for the tests. Everything above this trait, launchers included, is shared.
//! [`absent`](crate::dev::absent) and [`listing`](crate::dev::listing) are for lists of what a device is given.
//! Work is enqueued in order on one stream; only what says so waits.

#![allow(missing_docs, reason = "public for the tests and the command line alone")]

use super::CudaError;
use crate::tensor::DType;
use std::ffi::c_void;
use std::fmt;

pub type Result<T, E = CudaError> = std::result::Result<T, E>;

/// An address in device memory; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub u64);

impl Address {
    /// The address of an empty tensor, and of an argument that a kernel can do without.
    pub const NULL: Address = Address(0);

    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// As the driver names it: "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// The driver's number for it, from 0: that of "cuda:0".
    pub index: usize,
    /// Major · 10 + minor: 90 for an H100.
    pub compute_capability: u32,
    /// Streaming multiprocessors, each of which runs blocks of its own: 132 for an H100 SXM.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block can ask for.
    pub shared_memory_per_block: usize,
    /// Whether there are launches whose blocks wait for each other.
    pub cooperative: bool,
    /// Whether a launch may begin while the one before it ends: [`Driver::overlap`].
    pub overlap: bool,
    pub l2_cache: usize,
    /// Bytes in all, whoever uses them.
    pub memory: usize,
    /// Versions, for people and for cache keys: "driver 580.95, CUDA 13.0, NVRTC 13.0, cuBLASLt 13.1.0".
    pub software: String,
}

/// A kernel: the file under kernels/ without its ending, and the function's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// File under kernels/, without its ending: "lora_linear" for kernels/lora_linear.cu.
    pub file: &'static str,
    /// Name of the function, which is declared `extern "C"`.
    pub name: &'static str,
}

/// Memory traffic and arithmetic of a command, for lists of commands; nothing that runs depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of device memory: those that are read before the command has written them, and those that it
    /// writes, each counted once.
    pub bytes: usize,
    /// Floating-point operations of the products in it that are done outside tensor cores.
    pub flop: usize,
    pub tensor_flop: usize,
}

/// The arguments of a launch, in the order of the kernel's parameters, and what it does with them.
#[derive(Clone, Copy)]
pub struct Args {
    slots: [u64; Args::MAX],
    sizes: [u8; Args::MAX],
    count: usize,
    /// The first size that is none.
    too_large: Option<usize>,
    work: Work,
}

impl Args {
    /// The most that a launch can have; adding one more panics.
    pub const MAX: usize = 32;

    pub fn new() -> Self {
        let work = Work::default();
        Args { slots: [0; Args::MAX], sizes: [0; Args::MAX], count: 0, too_large: None, work }
    }

    fn push(mut self, bits: u64, size: u8) -> Self {
        debug_assert!(self.count < Args::MAX, "a kernel with more than {} parameters", Args::MAX);
        self.slots[self.count] = bits;
        self.sizes[self.count] = size;
        self.count += 1;
        self
    }

    pub fn address(self, address: Address) -> Self {
        self.push(address.0, 8)
    }

    /// A pointer that may be null.
    pub fn optional(self, address: Option<Address>) -> Self {
        self.push(address.map_or(0, |a| a.0), 8)
    }

    /// A 32-bit integer, signed or not: sizes are below 2³¹, or the launch fails.
    pub fn int(mut self, value: usize) -> Self {
        if value >= 1 << 31 {
            self.too_large.get_or_insert(value);
        }
        self.push(value as u64, 4)
    }

    /// 32 bits, of which all may be set.
    pub fn word(self, value: u32) -> Self {
        self.push(u64::from(value), 4)
    }

    pub fn float(self, value: f32) -> Self {
        self.push(u64::from(value.to_bits()), 4)
    }

    pub fn double(self, value: f64) -> Self {
        self.push(value.to_bits(), 8)
    }

    /// Adds to [`Work::bytes`].
    pub fn moving(mut self, bytes: usize) -> Self {
        self.work.bytes += bytes;
        self
    }

    /// Adds `flop` to [`Work::tensor_flop`] where they are `tensor`'s, else to [`Work::flop`].
    pub fn multiplying(mut self, flop: usize, tensor: bool) -> Self {
        *(if tensor { &mut self.work.tensor_flop } else { &mut self.work.flop }) += flop;
        self
    }

    /// Work of the launch, as far as its launcher told.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Refuses a size that does not fit a kernel's int: it would see only the lower half of it.
    pub fn check(&self) -> Result<(), String> {
        match self.too_large {
            None => Ok(()),
            Some(size) => Err(format!("a size of {size} is 2³¹ or more; a smaller batch may help")),
        }
    }

    pub fn sizes(&self) -> &[u8] {
        &self.sizes[..self.count]
    }

    /// One pointer to each argument, as cuLaunchKernel takes them; valid while `self` is not moved.
    pub fn pointers(&mut self) -> [*mut c_void; Args::MAX] {
        let mut pointers = [std::ptr::null_mut(); Args::MAX];
        for (pointer, slot) in pointers.iter_mut().zip(&mut self.slots[..self.count]) {
            *pointer = std::ptr::from_mut(slot).cast();
        }
        pointers
    }
}

impl Default for Args {
    fn default() -> Self {
        Args::new()
    }
}

/// A kernel with its grid and arguments.
#[derive(Clone, Copy)]
pub struct Launch {
    /// The kernel; its file is compiled or loaded at the first launch if it was not before.
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// Blocks wait for each other, so all must be there at once; where [`DeviceInfo::cooperative`].
    pub cooperative: bool,
    /// One for each of the kernel's parameters, of their sizes.
    pub args: Args,
}

/// "kernel adamw of kernels/adamw.cu, grid [3, 1, 1], block [256, 1, 1], 0 bytes of shared memory".
impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { kernel, grid, block, shared, .. } = self;
        let Kernel { file, name } = kernel;
        write!(
            f,
            "kernel {name} of kernels/{file}.cu, grid {grid:?}, block {block:?}, {shared} bytes of shared memory"
        )
    }
}

/// y \[m, n\] = x \[m, k\]·op(w) (+ bias \[n\]) (+ add \[m, n\]); row-major, strides in elements between
/// rows. w is \[n, k\] when `transposed` (y = x·wᵀ), else \[k, n\]. Accumulates in f32 and rounds once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// Rows of x and y; at least 1, as `n` and `k` are.
    pub m: usize,
    pub n: usize,
    /// Columns of x: the dimension that is summed over.
    pub k: usize,
    pub x: Address,
    /// At least `k`.
    pub x_stride: usize,
    pub w: Address,
    /// At least as many as w has columns.
    pub w_stride: usize,
    pub transposed: bool,
    pub bias: Option<Address>,
    /// Added to the product; rows `y_stride` apart; may be `y` itself.
    pub add: Option<Address>,
    /// \[m, n\]; may be `add`, and shares no element with x or w.
    pub y: Address,
    /// At least `n`.
    pub y_stride: usize,
    /// Element type of x, w, bias, add and y: f16, bf16 or f32.
    pub dtype: DType,
}

impl Gemm {
    /// Exact; 16-bit types are multiplied in tensor cores.
    pub fn work(&self) -> Work {
        let Gemm { m, n, k, .. } = *self;
        let added = self.bias.map_or(0, |_| n) + self.add.map_or(0, |_| m * n);
        let (bytes, flop) = ((m * k + n * k + m * n + added) * self.dtype.size(), 2 * m * n * k);
        match self.dtype {
            DType::F32 => Work { bytes, flop, tensor_flop: 0 },
            _ => Work { bytes, flop: 0, tensor_flop: flop },
        }
    }
}

/// A piece of work that can be captured.
#[derive(Clone)]
pub enum Command {
    Launch(Box<Launch>),
    Gemm(Gemm),
    Clear { to: Address, bytes: usize },
    Copy { to: Address, from: Address, bytes: usize },
}

impl Command {
    /// Work of the command, as far as it is known.
    pub fn work(&self) -> Work {
        match self {
            Command::Launch(launch) => launch.args.work(),
            Command::Gemm(gemm) => gemm.work(),
            Command::Clear { bytes, .. } => Work { bytes: *bytes, ..Work::default() },
            Command::Copy { bytes, .. } => Work { bytes: 2 * bytes, ..Work::default() },
        }
    }
}

/// Launches, copies within the device and GEMMs, captured to be run again at the same addresses: a CUDA graph.
pub trait Graph: Send {
    /// For the driver that made it.
    fn as_any(&self) -> &dyn std::any::Any;
}

pub trait Fetch: Send {
    /// The bytes, if they have arrived. Never waits.
    fn poll(&mut self) -> Result<Option<Vec<u8>>>;
    fn wait(&mut self) -> Result<Vec<u8>>;
}

pub trait Driver: Send + Sync {
    /// Description of the device; the same at every call.
    fn info(&self) -> &DeviceInfo;

    /// Memory with unspecified contents, 256-byte aligned.
    fn allocate(&self, bytes: usize) -> Result<Address>;
    /// Gives memory back, once all enqueued work is done with it.
    fn free(&self, address: Address);
    /// Bytes allocated now, and the most that ever were.
    fn allocated(&self) -> (usize, usize);

    fn free_memory(&self) -> Result<usize> {
        Ok(self.info().memory.saturating_sub(self.allocated().0))
    }

    /// Zeros. Enqueued.
    fn clear(&self, to: Address, bytes: usize) -> Result<()>;
    /// Within the device. Enqueued.
    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()>;
    /// From the host; waits until it is done. Never captured.
    fn upload(&self, to: Address, from: &[u8]) -> Result<()>;
    /// To the host; waits for all work enqueued before.
    fn download(&self, from: Address, to: &mut [u8]) -> Result<()>;
    /// From the host, each piece to its address, in order with the enqueued work, which goes on meanwhile: through pinned
    /// memory on a second stream. The bytes are free again on return. Never captured.
    ///
    /// Where the last feed but one went to the same addresses, and the last to others, it is in order with the work before
    /// the last feed only: the work since then, which goes on until it is done, must leave these addresses alone.
    fn feed(&self, pieces: &[(Address, &[u8])]) -> Result<()>;
    /// To the host, in order with the enqueued work; does not wait.
    fn fetch(&self, from: Address, bytes: usize) -> Result<Box<dyn Fetch>>;

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, and all memory it touches through them must be allocated.
    unsafe fn launch(&self, launch: &Launch) -> Result<()>;
    /// Enqueues a matrix product.
    ///
    /// # Safety
    /// All addresses must be of allocated memory of the sizes that the product tells.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// Lets launches from here on begin while the one before them ends, or not; where [`DeviceInfo::overlap`]. What they
    /// compute is the same.
    fn overlap(&self, _on: bool) {}

    fn can_capture(&self) -> bool {
        true
    }
    /// From here to [`Driver::end_capture`] work becomes part of a graph and is not run.
    fn begin_capture(&self) -> Result<()>;
    /// Ends the capture and hands out the graph. An error where none is open, and where a call that would have been
    /// captured failed: that ends the capture.
    fn end_capture(&self) -> Result<Box<dyn Graph>>;
    /// Enqueues everything that was captured.
    fn replay(&self, graph: &dyn Graph) -> Result<()>;

    /// Whether what there is to choose from is timed here, so that the fastest is taken.
    fn measures(&self) -> bool;
    /// A choice remembered on disk for this device and these libraries, or earlier in this process.
    fn recall(&self, key: &str) -> Option<String>;
    /// Remembers a choice for [`Driver::recall`] and returns the one that holds from now on: that of another
    /// process, if it was the first.
    fn remember(&self, key: &str, choice: &str) -> Result<String>;

    /// Why what is remembered is gone when this process ends, if it is.
    fn forgets(&self) -> Option<String> {
        None
    }

    /// Waits for all enqueued work.
    fn synchronize(&self) -> Result<()>;
    /// Runs `body`, whose work is all that a profiler sees which waits to be started.
    fn profile(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        body()
    }
    /// Seconds of device time that the work enqueued by `body` took; waits for it.
    fn seconds(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
}
