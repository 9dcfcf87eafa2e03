//! The host twin: a device that runs the kernels on the CPU, so that they can be tested where there is no GPU.
//!
//! The unchanged files of kernels/ are compiled by a C++ compiler against kernels/twin/twin.h, one library
//! per file as the GPU has one module per file, and run by kernels/twin/runtime.cpp, which reports what a
//! GPU might let pass. The matrix products that cuBLASLt does on a GPU are the CPU backend's here.
//!
//! A launch fails, with the kernel, the thread and the source lines, when a kernel
//! - touches memory that is not its own, or with one instruction what is not aligned to it;
//! - reads shared memory that the block has not written, or that a `cp.async` has not delivered; device
//!   memory that nobody has written is NaN in every number type;
//! - has a race in shared memory, between threads of a block or lanes of a warp, or one in device memory,
//!   between warps or blocks of the launch, a race being two accesses, one of them a write, in no order that
//!   barriers, `__syncwarp` or (for blocks) atomics give them, even if both write the same value;
//! - leaves threads waiting at different barriers, a warp operation without some of its lanes, or blocks waiting for one
//!   that does not come;
//! - is launched with other arguments, more threads or more shared memory than it can have.
//!
//! Blocks run one after another in a shuffled order ([`Twin::set_block_order`]). Those of a cooperative launch take turns:
//! each runs until it waits for others, and has lost what was in its shared memory when it goes on. What the twin cannot see:
//! - time, registers, spills, bank conflicts, `__launch_bounds__`;
//! - the device's memory model: blocks and warps that really run at once, missing fences, caches;
//! - one static shared array running into the next, global arrays of one buffer running into each other;
//! - races in device memory between lanes of one warp, and those of single-byte writes;
//! - mistakes that the device's and the host's body of a prelude function share, PTX that is wrong;
//! - how exactly a device rounds: without [`Twin::with_rounding`] there is no fused multiply-add unless the kernel
//!   says `fmaf`, and `expf` and its kin are the C library's; with it there is all that a device may do;
//! - wgmma and TMA, which it does not have. Dividing an integer by zero ends the process.
//!
//! It is an instrument for tests: slow, and in need of Linux, a C++ compiler (`c++`, or what CXX names), and
//! for source lines in its messages of binutils.

mod compile;
mod gemm;
mod library;
mod memory;
mod places;

use crate::backend::cuda::driver::{
    Address, Command, DeviceInfo, Driver, Fetch, Gemm, Graph, Launch, Result,
};
use crate::backend::cuda::kernel_sources::{self, Sources};
use crate::backend::cuda::{CudaError, locked};
use crate::tensor::DType;
use library::{KernelLibrary, Machine};
use memory::Memory;
use rayon::prelude::*;
use std::any::Any;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// In which order the blocks of a launch run. A GPU promises none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOrder {
    /// From block 0 on; x runs fastest, then y.
    Ascending,
    /// From the last block to block 0, the reverse of `Ascending`.
    Descending,
    /// Random order, which the seed decides.
    Shuffled(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Every operation by itself, to nearest, and functions as the C library has them.
    EachOperation,
    /// As roughly as any device does that the kernels are compiled for:
    /// - the compiler contracts a·b + c to fused multiply-adds where it can;
    /// - tensor cores cut off what they have no bits for, those of cuBLASLt's products in 16 bits included, as those
    ///   of an A100 do (kernels/twin/tensor_core.h);
    /// - cuBLASLt's products in f32 are chains of fused multiply-adds, from the last to the first: another order than
    ///   the CPU backend's;
    /// - functions that a device approximates are off by all of the largest error that is documented for them
    ///   (kernels/twin/twin.h), up or down as `seed` and the value have it. Division and square root are not among
    ///   them but for `__fdividef`: without fast arithmetic NVRTC rounds them correctly.
    Device {
        /// Seed of the errors' directions.
        seed: u32,
    },
}

/// The device, and the commands that are being captured for it.
pub struct Twin {
    info: DeviceInfo,
    dtype: DType,
    sources: Sources,
    rounding: Rounding,
    watched: bool,
    state: Mutex<State>,
    choices: Mutex<HashMap<String, String>>,
}

struct State {
    machine: Machine,
    memory: Memory,
    libraries: HashMap<&'static str, Arc<KernelLibrary>>,
    capture: CaptureState,
    order: BlockOrder,
}

/// Whether commands are captured; as the GPU's driver has it.
enum CaptureState {
    Closed,
    Open(Vec<Command>),
    /// Ended by an error, which nobody has asked about yet.
    Broken(String),
}

struct Tape(Vec<Command>);

impl Graph for Tape {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Arrived(Vec<u8>);

impl Fetch for Arrived {
    fn poll(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(Some(std::mem::take(&mut self.0)))
    }

    fn wait(&mut self) -> Result<Vec<u8>> {
        Ok(std::mem::take(&mut self.0))
    }
}

impl Twin {
    /// A twin that computes in `dtype`, of a device of `compute_capability` (major · 10 + minor).
    pub fn new(dtype: DType, compute_capability: u32) -> Result<Twin> {
        Twin::with_sources(Sources::load()?, dtype, compute_capability)
    }

    pub fn with_sources(sources: Sources, dtype: DType, compute_capability: u32) -> Result<Twin> {
        kernel_sources::real_macro(dtype)?;
        let info = describe(compute_capability)?;
        let state = State {
            machine: Machine::new(&sources)?,
            memory: Memory::default(),
            libraries: HashMap::new(),
            capture: CaptureState::Closed,
            order: BlockOrder::Shuffled(2),
        };
        let (rounding, state) = (Rounding::EachOperation, Mutex::new(state));
        Ok(Twin { info, dtype, sources, rounding, watched: true, state, choices: Mutex::default() })
    }

    /// Replaces the rounding. Refused where the processor has no fused multiply-add for it.
    pub fn with_rounding(mut self, rounding: Rounding) -> Result<Twin> {
        if rounding != Rounding::EachOperation {
            compile::check_fused()?;
        }
        self.rounding = rounding;
        locked(&self.state).libraries.clear();
        Ok(self)
    }

    /// Runs the kernels without watching what they load and store, which takes half the time of a launch: for the results
    /// of kernels that are watched elsewhere. Barriers and warp operations are checked as before; races, bounds and memory
    /// that nobody has written are not, and [`moved`](Twin::moved) does not count.
    pub fn unwatched(mut self) -> Twin {
        self.watched = false;
        locked(&self.state).libraries.clear();
        self
    }

    fn options(&self) -> compile::Options {
        compile::Options {
            dtype: self.dtype,
            compute_capability: self.info.compute_capability,
            rounds_as_a_device: self.rounding != Rounding::EachOperation,
            watched: self.watched,
        }
    }

    /// Replaces the size of the device's memory, in bytes.
    pub fn with_memory(mut self, bytes: usize) -> Twin {
        self.info.memory = bytes;
        self
    }

    /// Compiles every kernel file now; otherwise each waits for the first launch of one of its kernels.
    /// Returns their libraries.
    pub fn compile_all(&self) -> Result<Vec<PathBuf>> {
        let files: Vec<&str> = self.sources.kernel_files().collect();
        let load = |file| library::load(&self.sources, file, self.options());
        files.into_par_iter().map(|file| Ok(load(file)?.path().to_path_buf())).collect()
    }

    /// For all launches that run from here on, those of captured graphs included. A twin starts with
    /// `BlockOrder::Shuffled(2)`.
    pub fn set_block_order(&self, order: BlockOrder) {
        locked(&self.state).order = order;
    }

    /// Bytes of device memory that the launches so far have read before they wrote them, and bytes that they have
    /// written, each counted once a launch: what [`Work::bytes`](crate::backend::cuda::driver::Work::bytes) says
    /// beforehand. Single bytes are taken for the pairs that they lie in when they are read, and are left out when they are
    /// written.
    pub fn moved(&self) -> u64 {
        locked(&self.state).machine.moved()
    }

    /// Runs a command, or keeps it while a capture goes on. Errors that are known before it runs come
    /// at once either way, and end the capture.
    fn enqueue(&self, command: Command) -> Result<()> {
        let mut state = locked(&self.state);
        let checked = self.check(&mut state, &command);
        match (&mut state.capture, checked) {
            (CaptureState::Open(commands), Ok(())) => {
                commands.push(command);
                Ok(())
            }
            (capture @ CaptureState::Open(_), Err(error)) => {
                *capture = CaptureState::Broken(error.to_string());
                Err(error)
            }
            (_, checked) => checked.and_then(|()| self.run(&mut state, &command)),
        }
    }

    fn check(&self, state: &mut State, command: &Command) -> Result<()> {
        match command {
            Command::Launch(launch) => {
                self.check_limits(launch)?;
                self.library(state, launch)?.check_arguments(launch)
            }
            Command::Gemm(gemm) => gemm::check(&state.memory, gemm),
            Command::Clear { to, bytes } => state.memory.check(*to, *bytes, "clear"),
            Command::Copy { to, from, bytes } => {
                state.memory.check(*from, *bytes, "copy from")?;
                state.memory.check(*to, *bytes, "copy to")
            }
        }
    }

    fn run(&self, state: &mut State, command: &Command) -> Result<()> {
        match command {
            Command::Launch(launch) => {
                let library = self.library(state, launch)?;
                let State { machine, memory, order, .. } = state;
                let limit = self.info.shared_memory_per_block;
                machine.run(&library, launch, memory, *order, (self.rounding, self.watched), limit)
            }
            Command::Gemm(gemm) => {
                let State { machine, memory, .. } = state;
                gemm::run(memory, gemm, self.rounding, machine)
            }
            Command::Clear { to, bytes } => {
                state.memory.bytes_mut(*to, *bytes, "clear")?.fill(0);
                Ok(())
            }
            Command::Copy { to, from, bytes } => {
                let moved = state.memory.bytes(*from, *bytes, "copy from")?.to_vec();
                state.memory.bytes_mut(*to, *bytes, "copy to")?.copy_from_slice(&moved);
                Ok(())
            }
        }
    }

    fn library(&self, state: &mut State, launch: &Launch) -> Result<Arc<KernelLibrary>> {
        let file = launch.kernel.file;
        if let Some(library) = state.libraries.get(file) {
            return Ok(library.clone());
        }
        let library = library::load(&self.sources, file, self.options())?;
        state.libraries.insert(file, library.clone());
        Ok(library)
    }

    /// Refuses launches that the driver of a GPU would refuse.
    fn check_limits(&self, launch: &Launch) -> Result<()> {
        let refuse = |problem: String| {
            let kernel = launch.kernel;
            Err(CudaError::Twin(format!("{}.cu, {}: {problem}", kernel.file, kernel.name)))
        };
        launch.args.check().or_else(refuse)?;
        let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
        if threads == 0 || threads > 1024 || launch.block[2] > 64 {
            return refuse(format!("a block of {:?} threads; at most 1024, 64 of them in z", launch.block));
        }
        if launch.grid.contains(&0)
            || launch.grid[0] > 0x7fff_ffff
            || launch.grid[1..].iter().any(|&n| n > 65535)
        {
            return refuse(format!("a grid of {:?} blocks", launch.grid));
        }
        let (blocks, multiprocessors) = (launch.grid.iter().product::<u32>(), self.info.multiprocessors);
        if launch.cooperative && blocks > multiprocessors {
            return refuse(format!(
                "{blocks} blocks that wait for each other on {multiprocessors} multiprocessors"
            ));
        }
        let limit = self.info.shared_memory_per_block;
        if launch.shared > limit {
            return refuse(format!(
                "{} bytes of shared memory, the device has {limit} per block",
                launch.shared
            ));
        }
        Ok(())
    }
}

/// Shared memory per block as the CUDA C programming guide's table of compute capabilities has it.
fn describe(compute_capability: u32) -> Result<DeviceInfo> {
    let shared = match compute_capability {
        75 => 64,
        80 | 87 => 163,
        86 | 89 | 120 => 99,
        90 | 100 => 227,
        other => {
            return Err(CudaError::Unsupported(format!("the host twin knows no compute capability {other}")));
        }
    };
    Ok(DeviceInfo {
        name: format!("host twin of sm_{compute_capability}"),
        index: 0,
        compute_capability,
        multiprocessors: 4,
        shared_memory_per_block: shared << 10,
        cooperative: true,
        overlap: false,
        l2_cache: 1 << 20,
        memory: 1 << 32,
        software: "host twin".to_owned(),
    })
}

impl Driver for Twin {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        let mut state = locked(&self.state);
        let (used, _) = state.memory.allocated();
        let free = self.info.memory.saturating_sub(used);
        if bytes > free {
            return Err(CudaError::OutOfMemory { bytes, free, total: self.info.memory });
        }
        state.memory.allocate(bytes)
    }

    fn free(&self, address: Address) {
        locked(&self.state).memory.free(address);
    }

    fn allocated(&self) -> (usize, usize) {
        locked(&self.state).memory.allocated()
    }

    fn clear(&self, to: Address, bytes: usize) -> Result<()> {
        self.enqueue(Command::Clear { to, bytes })
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.enqueue(Command::Copy { to, from, bytes })
    }

    fn upload(&self, to: Address, from: &[u8]) -> Result<()> {
        let mut state = locked(&self.state);
        refuse_in_capture(&state, "upload")?;
        state.memory.bytes_mut(to, from.len(), "upload")?.copy_from_slice(from);
        Ok(())
    }

    fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        let state = locked(&self.state);
        refuse_in_capture(&state, "download")?;
        to.copy_from_slice(state.memory.bytes(from, to.len(), "download")?);
        Ok(())
    }

    fn feed(&self, pieces: &[(Address, &[u8])]) -> Result<()> {
        let mut state = locked(&self.state);
        refuse_in_capture(&state, "feed")?;
        for (to, from) in pieces {
            state.memory.bytes_mut(*to, from.len(), "feed")?.copy_from_slice(from);
        }
        Ok(())
    }

    fn fetch(&self, from: Address, bytes: usize) -> Result<Box<dyn Fetch>> {
        let state = locked(&self.state);
        refuse_in_capture(&state, "fetch")?;
        Ok(Box::new(Arrived(state.memory.bytes(from, bytes, "fetch")?.to_vec())))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        self.enqueue(Command::Launch(Box::new(*launch)))
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.enqueue(Command::Gemm(*gemm))
    }

    fn begin_capture(&self) -> Result<()> {
        let mut state = locked(&self.state);
        if matches!(state.capture, CaptureState::Open(_)) {
            state.capture = CaptureState::Closed;
            let problem = "begin_capture: a capture was open already; both are thrown away";
            return Err(CudaError::Twin(problem.into()));
        }
        state.capture = CaptureState::Open(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        match std::mem::replace(&mut locked(&self.state).capture, CaptureState::Closed) {
            CaptureState::Open(commands) => Ok(Box::new(Tape(commands))),
            CaptureState::Closed => Err(CudaError::Twin("end_capture without begin_capture".into())),
            CaptureState::Broken(problem) => {
                Err(CudaError::Twin(format!("end_capture: an error ended the capture: {problem}")))
            }
        }
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        let foreign = || CudaError::Twin("replay of another device's graph".into());
        let Tape(commands) = graph.as_any().downcast_ref().ok_or_else(foreign)?;
        let mut state = locked(&self.state);
        refuse_in_capture(&state, "replay")?;
        for command in commands {
            self.check(&mut state, command)?;
            self.run(&mut state, command)?;
        }
        Ok(())
    }

    fn measures(&self) -> bool {
        false
    }

    fn recall(&self, key: &str) -> Option<String> {
        locked(&self.choices).get(key).cloned()
    }

    fn remember(&self, key: &str, choice: &str) -> Result<String> {
        let mut choices = locked(&self.choices);
        choices.insert(key.to_owned(), choice.to_owned());
        Ok(choice.to_owned())
    }

    fn synchronize(&self) -> Result<()> {
        refuse_in_capture(&locked(&self.state), "synchronize")
    }

    fn seconds(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = std::time::Instant::now();
        body()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// As CUDA refuses during a capture whatever would wait or cannot be part of a graph.
fn refuse_in_capture(state: &State, call: &str) -> Result<()> {
    if matches!(state.capture, CaptureState::Open(_)) {
        return Err(CudaError::Twin(format!("{call} during a capture")));
    }
    Ok(())
}
