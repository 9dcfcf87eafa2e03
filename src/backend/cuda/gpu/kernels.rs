//! Loaded kernels, found by name and launched.

use super::calls::cuda as cu;
use super::cubins::{COMPILER_STACK, Cubin, Cubins};
use super::handles::{Context, Module, Stream, check};
use super::parameters::{self, Sizes};
use crate::backend::cuda::driver::{Kernel, Launch, Result};
use crate::backend::cuda::kernel_sources::Sources;
use crate::backend::cuda::{CudaError, locked};
use crate::tensor::DType;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_int, c_uint};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};
use std::thread;

/// A kernel of a module that is loaded.
#[derive(Clone)]
struct Function {
    raw: cu::CUfunction,
    /// Bytes of shared memory that the kernel declares itself.
    static_shared: usize,
    /// Bytes of dynamic shared memory that launches may ask for so far.
    dynamic_shared: usize,
    /// Threads of a block at most.
    max_threads: usize,
    /// Sizes of its parameters, where the compiler wrote them down as is known.
    parameters: Sizes,
}

// SAFETY: the driver's handles may be used on any thread.
unsafe impl Send for Function {}

/// Inputs of the compilation of kernel files, and the folder of those that are compiled already.
pub struct Compiler {
    pub cubins: Cubins,
    pub sources: Sources,
    pub architecture: u32,
    pub dtype: DType,
}

impl Compiler {
    /// The files that nearly every run needs.
    pub fn common(&self) -> Result<Vec<Cubin>> {
        self.cubins.common(&self.sources, self.architecture, self.dtype)
    }

    /// One of the others.
    fn rare(&self, file: &str) -> Result<Cubin> {
        let get = || self.cubins.get(&self.sources, file, self.architecture, self.dtype);
        thread::scope(|scope| {
            let compiler = thread::Builder::new().stack_size(COMPILER_STACK).spawn_scoped(scope, get);
            match compiler.map(|thread| thread.join()) {
                Ok(Ok(cubin)) => cubin,
                // No thread to be had, or a panic in it.
                _ => get(),
            }
        })
    }
}

/// The modules of the kernel files that were needed so far.
pub struct Kernels {
    functions: Mutex<HashMap<Kernel, Function>>,
    modules: Mutex<HashMap<String, LoadedFile>>,
    compiler: Compiler,
    shared_limit: usize,
    context: Arc<Context>,
}

impl Kernels {
    /// Loads the cubins that are there. `shared_limit`: bytes of shared memory that a block can have on this
    /// device.
    pub fn load(
        context: &Arc<Context>,
        compiler: Compiler,
        cubins: &[Cubin],
        shared_limit: usize,
    ) -> Result<Self> {
        let mut modules = HashMap::new();
        for cubin in cubins {
            modules.insert(cubin.file.clone(), LoadedFile::load(context, cubin)?);
        }
        Ok(Kernels {
            functions: Mutex::new(HashMap::new()),
            modules: Mutex::new(modules),
            compiler,
            shared_limit,
            context: context.clone(),
        })
    }

    /// Enqueues a kernel, which may begin while the one before it ends if `early`.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, and all memory it touches through them must be allocated.
    pub unsafe fn launch(&self, launch: &Launch, early: bool, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        let function = self.function(launch)?;
        let mut args = launch.args;
        args.check().map_err(|problem| failed(launch.kernel, problem))?;
        let found = args.sizes();
        let differ = |expected: &&[u16]| !expected.iter().copied().eq(found.iter().copied().map(u16::from));
        if let Some(expected) = function.parameters.as_deref().filter(differ) {
            let problem = format!("its parameters are of {expected:?} bytes, the arguments of {found:?}");
            return Err(failed(launch.kernel, problem));
        }
        let mut pointers = args.pointers();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        let (threads, most) =
            (launch.block.iter().map(|&n| n as usize).product::<usize>(), function.max_threads);
        if threads > most {
            let block = launch.block;
            let problem = format!("a block of {block:?} threads, and it was compiled for at most {most}");
            return Err(failed(launch.kernel, problem));
        }
        let (raw, shared, stream) = (function.raw, launch.shared as c_uint, stream.raw());
        let pointers = pointers.as_mut_ptr();
        // SAFETY: the function belongs to a loaded module and the context is current; `pointers` holds one
        // pointer per argument into `args`, which the driver reads before it returns; the rest is the
        // caller's promise. The checks in `function` keep `shared` far below 2³².
        let launched = unsafe {
            if launch.cooperative {
                let status =
                    cu::cuLaunchCooperativeKernel(raw, gx, gy, gz, bx, by, bz, shared, stream, pointers);
                check("cuLaunchCooperativeKernel", status)
            } else if early {
                let mut attribute = may_begin_early();
                let config = cu::CUlaunchConfig {
                    gridDimX: gx,
                    gridDimY: gy,
                    gridDimZ: gz,
                    blockDimX: bx,
                    blockDimY: by,
                    blockDimZ: bz,
                    sharedMemBytes: shared,
                    hStream: stream,
                    attrs: &mut attribute,
                    numAttrs: 1,
                };
                check("cuLaunchKernelEx", cu::cuLaunchKernelEx(&config, raw, pointers, null_mut()))
            } else {
                let status =
                    cu::cuLaunchKernel(raw, gx, gy, gz, bx, by, bz, shared, stream, pointers, null_mut());
                check("cuLaunchKernel", status)
            }
        };
        launched.map_err(|error| describe(error, launch))
    }

    /// The kernel, allowed to use the shared memory that the launch asks for.
    fn function(&self, launch: &Launch) -> Result<Function> {
        let mut functions = locked(&self.functions);
        let kernel = launch.kernel;
        let function = match functions.entry(kernel) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.find(kernel)?),
        };
        if launch.shared > function.dynamic_shared {
            let limit = self.shared_limit.saturating_sub(function.static_shared);
            if launch.shared > limit {
                return Err(CudaError::Unsupported(format!(
                    "kernel {} of kernels/{}.cu needs {} bytes of dynamic shared memory, and this device has \
                     {limit} for it",
                    kernel.name, kernel.file, launch.shared
                )));
            }
            let attribute = cu::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module; the size was checked against the device's.
            let status = unsafe { cu::cuFuncSetAttribute(function.raw, attribute, launch.shared as c_int) };
            check("cuFuncSetAttribute", status).map_err(|error| describe(error, launch))?;
            function.dynamic_shared = launch.shared;
        }
        Ok(function.clone())
    }

    fn find(&self, kernel: Kernel) -> Result<Function> {
        let mut modules = locked(&self.modules);
        let loaded = match modules.entry(kernel.file.to_owned()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let cubin = self.compiler.rare(kernel.file)?;
                entry.insert(LoadedFile::load(&self.context, &cubin)?)
            }
        };
        let name =
            CString::new(kernel.name).map_err(|_| failed(kernel, "its name has a zero byte".into()))?;
        let missing =
            || failed(kernel, format!("the file has no extern \"C\" __global__ function {}", kernel.name));
        // Asked of the cubin: the driver would count the question for a kernel that is not there as an error, as
        // it would that for one parameter too many.
        let parameters = loaded.parameters.get(kernel.name).ok_or_else(missing)?.clone();
        let raw = loaded.module.function(&name)?;
        use cu::CUfunction_attribute as Attribute;
        let static_shared = attribute(raw, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let allowed = attribute(raw, Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)?;
        let max_threads = attribute(raw, Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let dynamic_shared = allowed.min(WITHOUT_ASKING.saturating_sub(static_shared));
        Ok(Function { raw, static_shared, dynamic_shared, max_threads, parameters })
    }
}

/// The permission to begin once all blocks of the launch before have: every kernel waits for the end of that itself, in
/// `begin_kernel`.
fn may_begin_early() -> cu::CUlaunchAttribute {
    // SAFETY: numbers and pointers, which may all be zero.
    let mut attribute: cu::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = cu::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value = cu::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    attribute
}

/// Shared memory of a block, static and dynamic, that needs no permission, in bytes.
const WITHOUT_ASKING: usize = 48 << 10;

/// A kernel file that is loaded, and the sizes of the parameters of each of its kernels.
struct LoadedFile {
    module: Module,
    parameters: HashMap<String, Sizes>,
}

impl LoadedFile {
    fn load(context: &Arc<Context>, cubin: &Cubin) -> Result<Self> {
        let parameters = parameters::of_kernels(&cubin.code).map_err(|problem| {
            let problem = format!("kernels/{}.cu: {problem}", cubin.file);
            CudaError::Call { call: "compiled code", problem }
        })?;
        Ok(LoadedFile { module: Module::load(context, &cubin.code)?, parameters })
    }
}

fn attribute(function: cu::CUfunction, attribute: cu::CUfunction_attribute) -> Result<usize> {
    let mut value: c_int = 0;
    // SAFETY: a place for the number, and a function of a loaded module.
    check("cuFuncGetAttribute", unsafe { cu::cuFuncGetAttribute(&mut value, attribute, function) })?;
    Ok(usize::try_from(value).unwrap_or(0))
}

fn failed(kernel: Kernel, problem: String) -> CudaError {
    let problem = format!("kernel {} of kernels/{}.cu: {problem}", kernel.name, kernel.file);
    CudaError::Call { call: "launch", problem }
}

/// The error with the launch it is about.
fn describe(error: CudaError, launch: &Launch) -> CudaError {
    let about = |problem: String| format!("{launch}: {problem}");
    match error {
        CudaError::Call { call, problem } => CudaError::Call { call, problem: about(problem) },
        CudaError::Lost { call, problem } => CudaError::Lost { call, problem: about(problem) },
        other => other,
    }
}
