//! The libraries of compiled kernels: what is in them, and how a kernel is run.

use super::memory::{Buffer, Memory};
use super::{BlockOrder, Rounding, compile, places};
use crate::backend::cuda::driver::{Args, Launch, Result};
use crate::backend::cuda::kernel_sources::Sources;
use crate::backend::cuda::{CudaError, locked};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

/// A kernel as twin.h describes it.
#[repr(C)]
struct Exported {
    name: *const c_char,
    run: *const c_void,
    sizes: *const u8,
    count: usize,
    next: *const Exported,
}

/// A launch as runtime.cpp takes it.
#[repr(C)]
struct RawLaunch {
    kernel: *const Exported,
    touch: *const c_void,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u64,
    shared_limit: u64,
    arguments: *const *mut c_void,
    buffers: *const Buffer,
    buffer_count: u64,
    order: u64,
    rounding: u64,
    watched: u64,
    cooperative: u64,
    message: *mut c_char,
    message_size: u64,
}

/// The kernels of one file. Its library is never unloaded.
pub struct KernelLibrary {
    path: PathBuf,
    kernels: HashMap<String, *const Exported>,
    touch: *const c_void,
}

// SAFETY: the pointers lead to constants of a library that stays loaded.
unsafe impl Send for KernelLibrary {}
// SAFETY: as above.
unsafe impl Sync for KernelLibrary {}

impl KernelLibrary {
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn find(&self, launch: &Launch) -> Result<*const Exported> {
        let kernel = launch.kernel;
        self.kernels.get(kernel.name).copied().ok_or_else(|| {
            CudaError::Twin(format!("kernels/{}.cu exports no kernel {}", kernel.file, kernel.name))
        })
    }

    /// Checks that the launch has as many arguments as the kernel has parameters, of their sizes.
    pub fn check_arguments(&self, launch: &Launch) -> Result<()> {
        let found = self.find(launch)?;
        // SAFETY: the library describes `count` parameters.
        let sizes = unsafe { std::slice::from_raw_parts((*found).sizes, (*found).count) };
        let given = launch.args.sizes();
        if sizes != given {
            let kernel = launch.kernel;
            return Err(CudaError::Twin(format!(
                "{}.cu, {}: launched with arguments of {given:?} bytes, its parameters have {sizes:?}",
                kernel.file, kernel.name
            )));
        }
        Ok(())
    }
}

type NewMachine = unsafe extern "C" fn() -> *mut c_void;
type FreeMachine = unsafe extern "C" fn(*mut c_void);
type Moved = unsafe extern "C" fn(*const c_void) -> u64;
type Run = unsafe extern "C" fn(*mut c_void, *const RawLaunch) -> c_int;
type TensorCoreSum = unsafe extern "C" fn(f32, *const f32, *const f32, c_int) -> f32;

/// Products that a tensor core adds up at once.
const TENSOR_CORE_PRODUCTS: usize = 8;

/// The runtime's state for one twin: stacks, shared memory.
pub struct Machine {
    state: *mut c_void,
    free: FreeMachine,
    run: Run,
    moved: Moved,
    tensor_core_sum: TensorCoreSum,
}

// SAFETY: the runtime keeps nothing in thread-local memory between two runs.
unsafe impl Send for Machine {}

impl Machine {
    pub fn new(sources: &Sources) -> Result<Machine> {
        let runtime = load_runtime(sources)?;
        // SAFETY: these are the signatures in runtime.cpp.
        let (new, free, run, moved, sum) = unsafe {
            (
                std::mem::transmute::<*const c_void, NewMachine>(symbol(&runtime, "twin_machine_new")?),
                std::mem::transmute::<*const c_void, FreeMachine>(symbol(&runtime, "twin_machine_free")?),
                std::mem::transmute::<*const c_void, Run>(symbol(&runtime, "twin_run")?),
                std::mem::transmute::<*const c_void, Moved>(symbol(&runtime, "twin_moved")?),
                std::mem::transmute::<*const c_void, TensorCoreSum>(symbol(
                    &runtime,
                    "twin_tensor_core_sum",
                )?),
            )
        };
        // SAFETY: it takes nothing and returns a machine of ours.
        Ok(Machine { state: unsafe { new() }, free, run, moved, tensor_core_sum: sum })
    }

    pub fn moved(&self) -> u64 {
        // SAFETY: a machine of ours, which nobody else uses meanwhile.
        unsafe { (self.moved)(self.state) }
    }

    /// Σ a·b as the tensor cores of a device form it, one step after another.
    pub fn tensor_core_dot(&self, a: &[f32], b: &[f32]) -> f32 {
        let steps = a.chunks(TENSOR_CORE_PRODUCTS).zip(b.chunks(TENSOR_CORE_PRODUCTS));
        // SAFETY: it reads as many numbers of each as both have.
        steps.fold(0.0, |sum, (a, b)| unsafe {
            (self.tensor_core_sum)(sum, a.as_ptr(), b.as_ptr(), a.len().min(b.len()) as c_int)
        })
    }

    /// Runs a launch whose arguments were checked.
    pub fn run(
        &mut self,
        library: &KernelLibrary,
        launch: &Launch,
        memory: &mut Memory,
        order: BlockOrder,
        (rounding, watched): (Rounding, bool),
        shared_limit: usize,
    ) -> Result<()> {
        let mut args: Args = launch.args;
        let arguments = args.pointers();
        let mut message = vec![0u8; 16 << 10];
        let raw = RawLaunch {
            kernel: library.find(launch)?,
            touch: library.touch,
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared as u64,
            shared_limit: shared_limit as u64,
            arguments: arguments.as_ptr(),
            buffers: memory.buffers().as_ptr(),
            buffer_count: memory.buffers().len() as u64,
            order: match order {
                BlockOrder::Ascending => 0,
                BlockOrder::Descending => 1,
                BlockOrder::Shuffled(seed) => u64::from(seed) + 2,
            },
            rounding: match rounding {
                Rounding::EachOperation => 0,
                Rounding::Device { seed } => u64::from(seed) + 1,
            },
            watched: u64::from(watched),
            cooperative: u64::from(launch.cooperative),
            message: message.as_mut_ptr().cast(),
            message_size: message.len() as u64,
        };
        // SAFETY: the arguments match the kernel's parameters in number and size, and every access that
        // it makes through them is checked against the buffers, which nobody else uses meanwhile.
        if unsafe { (self.run)(self.state, &raw) } == 0 {
            return Ok(());
        }
        let message = CStr::from_bytes_until_nul(&message).unwrap_or_default().to_string_lossy();
        let message = places::named(&message, &library.path);
        let kernel = launch.kernel;
        Err(CudaError::Twin(format!("{}.cu, {}: {message}", kernel.file, kernel.name)))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { (self.free)(self.state) }
    }
}

/// Libraries that this process has loaded, by path: the runtime's, and those of kernels.
static RUNTIMES: LazyLock<Mutex<HashMap<PathBuf, Arc<Library>>>> = LazyLock::new(Mutex::default);
static LIBRARIES: LazyLock<Mutex<HashMap<PathBuf, Arc<KernelLibrary>>>> = LazyLock::new(Mutex::default);

fn load_runtime(sources: &Sources) -> Result<Arc<Library>> {
    let path = compile::runtime(sources)?;
    let mut runtimes = locked(&RUNTIMES);
    if let Some(loaded) = runtimes.get(&path) {
        return Ok(loaded.clone());
    }
    let loaded = Arc::new(open(&path)?);
    runtimes.insert(path, loaded.clone());
    Ok(loaded)
}

/// The kernels of a file, compiled if they are not yet.
pub fn load(sources: &Sources, file: &str, options: compile::Options) -> Result<Arc<KernelLibrary>> {
    let path = compile::kernels(sources, file, options)?;
    let mut libraries = locked(&LIBRARIES);
    if let Some(loaded) = libraries.get(&path) {
        return Ok(loaded.clone());
    }
    let library = Arc::new(describe(&path)?);
    libraries.insert(path, library.clone());
    Ok(library)
}

fn describe(path: &Path) -> Result<KernelLibrary> {
    let library = open(path)?;
    let mut kernels = HashMap::new();
    let (list, touch) = (symbol(&library, "twin_kernels")?, symbol(&library, "twin_touch")?);
    // SAFETY: that is its signature in twin.h.
    let list: extern "C" fn() -> *const Exported = unsafe { std::mem::transmute(list) };
    let mut next = list();
    // SAFETY: a list of constants in the library, ended by null.
    while let Some(kernel) = unsafe { next.as_ref() } {
        // SAFETY: the name is a string literal there.
        let name = unsafe { CStr::from_ptr(kernel.name) };
        kernels.insert(name.to_string_lossy().into_owned(), next);
        next = kernel.next;
    }
    // Unloading would take the kernels away from the twins that have them.
    std::mem::forget(library);
    Ok(KernelLibrary { path: path.to_path_buf(), kernels, touch })
}

fn open(path: &Path) -> Result<Library> {
    let flags = RTLD_NOW | RTLD_LOCAL;
    // SAFETY: a library that we have compiled; its initialisers only register kernels.
    unsafe { Library::open(Some(path), flags) }
        .map_err(|e| CudaError::File { path: path.to_path_buf(), problem: e.to_string() })
}

fn symbol(library: &Library, name: &'static str) -> Result<*const c_void> {
    // SAFETY: taken as an address only; who calls it knows its signature.
    let found = unsafe { library.get::<*const c_void>(name.as_bytes()) };
    let found = found.map_err(|e| CudaError::Call { call: "dlsym", problem: e.to_string() })?;
    Ok(found.as_raw_ptr().cast_const())
}
