//! NVRTC: a kernel file to machine code for one architecture.
//!
//! Nothing is read from the disk: the headers go in as text. The result is a cubin, not PTX, so that a
//! driver older than NVRTC has nothing left to translate.

use super::calls::{Status, nvrtc};
use super::libraries;
use crate::backend::cuda::driver::Result;
use crate::backend::cuda::kernel_sources::real_macro;
use crate::backend::cuda::{CudaError, kernel_sources::Sources};
use crate::tensor::DType;
use serde::Serialize;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null_mut;

/// Resources of one kernel, as the assembler reports them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelResources {
    /// Name of the kernel, as the driver finds it.
    pub name: String,
    pub registers: u32,
    pub shared: u32,
    /// Bytes of local memory per thread: arrays that are indexed at run time, and spilled registers.
    pub stack: u32,
    /// Bytes that a thread writes to local memory for want of registers, each instruction counted once.
    pub spill_stores: u32,
    /// Bytes that a thread reads back from local memory, counted likewise.
    pub spill_loads: u32,
}

/// Machine code and what its kernels need.
#[derive(Debug, Clone)]
pub struct Compiled {
    pub cubin: Vec<u8>,
    /// One entry for each kernel of the file, in the assembler's order.
    pub kernels: Vec<KernelResources>,
}

/// The options that a kernel file is compiled with. No fast arithmetic: where a kernel wants an approximate
/// instruction it names it.
pub fn options(architecture: u32, dtype: DType) -> Result<Vec<String>> {
    Ok(vec![
        format!("--gpu-architecture=sm_{architecture}"),
        "--std=c++17".into(),
        "-lineinfo".into(),
        "--ptxas-options=-v".into(),
        format!("--define-macro={}", real_macro(dtype)?),
    ])
}

/// The architecture to compile for: the newest that NVRTC knows and a device of `compute_capability` runs.
pub fn architecture_for(compute_capability: u32) -> Result<u32> {
    let known = architectures()?;
    best_architecture(compute_capability, &known).ok_or_else(|| {
        let version = libraries::nvrtc().map(|l| l.version.clone()).unwrap_or_default();
        CudaError::Unsupported(format!(
            "NVRTC {version} does not compile for compute capability {}.{}; install another: \
             pip install --upgrade nvidia-cuda-nvrtc",
            compute_capability / 10,
            compute_capability % 10
        ))
    })
}

/// Machine code runs on devices of the same major version and the same or a higher minor one.
fn best_architecture(compute_capability: u32, known: &[u32]) -> Option<u32> {
    let runs = |a: &u32| a / 10 == compute_capability / 10 && *a <= compute_capability;
    known.iter().copied().filter(runs).max()
}

/// The architectures that NVRTC compiles for: 75, 80, …
pub fn architectures() -> Result<Vec<u32>> {
    libraries::nvrtc()?;
    let mut count: c_int = 0;
    // SAFETY: a place for the number.
    check("nvrtcGetNumSupportedArchs", unsafe { nvrtc::nvrtcGetNumSupportedArchs(&mut count) })?;
    let mut architectures: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: the function writes as many numbers as it announced.
    check("nvrtcGetSupportedArchs", unsafe { nvrtc::nvrtcGetSupportedArchs(architectures.as_mut_ptr()) })?;
    Ok(architectures.into_iter().filter_map(|a| u32::try_from(a).ok()).collect())
}

/// The files that a kernel file can include.
pub fn headers(sources: &Sources) -> impl Iterator<Item = (&str, &str)> {
    sources.files().filter(|(name, _)| name.ends_with(".cuh"))
}

pub fn compile(sources: &Sources, file: &str, architecture: u32, dtype: DType) -> Result<Compiled> {
    libraries::nvrtc()?;
    let program = Program::new(sources, file)?;
    let options = options(architecture, dtype)?;
    let status = program.compile(&options)?;
    let log = program.log()?;
    if status == nvrtc::nvrtcResult::NVRTC_ERROR_COMPILATION as Status {
        return Err(CudaError::Compile { file: file.to_owned(), log });
    }
    if status != 0 {
        let log = format!("{} ({})\n{log}", meaning(status), options.join(" "));
        return Err(CudaError::Compile { file: file.to_owned(), log });
    }
    Ok(Compiled { cubin: program.cubin()?, kernels: parse_resources(&log) })
}

fn check(call: &'static str, status: Status) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    Err(CudaError::Call { call, problem: meaning(status) })
}

fn meaning(status: Status) -> String {
    // SAFETY: NVRTC returns a constant string for every status.
    let text = unsafe { nvrtc::nvrtcGetErrorString(status) };
    if text.is_null() {
        return format!("status {status}");
    }
    // SAFETY: not null, and ends with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A program of NVRTC, used by one thread.
struct Program(nvrtc::nvrtcProgram);

impl Program {
    fn new(sources: &Sources, file: &str) -> Result<Self> {
        let c_string = |text: &str| {
            CString::new(text).map_err(|_| CudaError::Compile {
                file: file.to_owned(),
                log: "the text or that of a header has a zero byte in it".into(),
            })
        };
        let name = format!("{file}.cu");
        let text = c_string(sources.text(&name)?)?;
        let name = c_string(&name)?;
        let mut header_names = Vec::new();
        let mut header_texts = Vec::new();
        for (name, text) in headers(sources) {
            header_names.push(c_string(name)?);
            header_texts.push(c_string(text)?);
        }
        let pointers =
            |strings: &[CString]| -> Vec<*const c_char> { strings.iter().map(|s| s.as_ptr()).collect() };
        let (names, texts) = (pointers(&header_names), pointers(&header_texts));
        let mut program = null_mut();
        // SAFETY: all strings end with a zero and outlive the call, which copies them; both lists are of
        // the length that is given.
        let status = unsafe {
            nvrtc::nvrtcCreateProgram(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        check("nvrtcCreateProgram", status)?;
        Ok(Program(program))
    }

    fn compile(&self, options: &[String]) -> Result<Status> {
        let strings: Vec<CString> = options.iter().filter_map(|o| CString::new(o.as_str()).ok()).collect();
        let pointers: Vec<*const c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        // SAFETY: the program exists, and the list holds as many strings as is said.
        Ok(unsafe { nvrtc::nvrtcCompileProgram(self.0, pointers.len() as c_int, pointers.as_ptr()) })
    }

    fn log(&self) -> Result<String> {
        let mut size = 0;
        // SAFETY: the program exists, and `size` is a place for the number.
        check("nvrtcGetProgramLogSize", unsafe { nvrtc::nvrtcGetProgramLogSize(self.0, &mut size) })?;
        let mut log = vec![0u8; size];
        // SAFETY: the buffer has the size that NVRTC asked for.
        let status = unsafe { nvrtc::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        check("nvrtcGetProgramLog", status)?;
        let text = String::from_utf8_lossy(&log);
        Ok(text.trim_end_matches('\0').trim_end().to_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program exists, and `size` is a place for the number.
        check("nvrtcGetCUBINSize", unsafe { nvrtc::nvrtcGetCUBINSize(self.0, &mut size) })?;
        let mut cubin = vec![0u8; size];
        // SAFETY: the buffer has the size that NVRTC asked for.
        check("nvrtcGetCUBIN", unsafe { nvrtc::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by NVRTC and destroyed once.
        unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Reads what `--ptxas-options=-v` leaves in the log: for each kernel a line that names it, one with its
/// stack and spills, one with its registers and shared memory. Functions that were not inlined have lines
/// of their own in between.
fn parse_resources(log: &str) -> Vec<KernelResources> {
    let mut kernels: Vec<KernelResources> = Vec::new();
    let mut of_kernel = false;
    for line in log.lines() {
        if let Some(rest) = after(line, "Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(KernelResources {
                name,
                registers: 0,
                shared: 0,
                stack: 0,
                spill_stores: 0,
                spill_loads: 0,
            });
        } else if let Some(name) = after(line, "Function properties for ") {
            of_kernel = kernels.last().is_some_and(|kernel| kernel.name == name.trim());
        } else if let Some(kernel) = kernels.last_mut() {
            if of_kernel && line.contains("bytes stack frame") {
                kernel.stack = number_before(line, " bytes stack frame");
                kernel.spill_stores = number_before(line, " bytes spill stores");
                kernel.spill_loads = number_before(line, " bytes spill loads");
            } else if line.contains(": Used ") {
                kernel.registers = number_before(line, " registers");
                kernel.shared = number_before(line, " bytes smem");
            }
        }
    }
    kernels
}

fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.find(mark).map(|at| &line[at + mark.len()..])
}

/// The number that stands before `mark`; 0 where the line has no such mark.
fn number_before(line: &str, mark: &str) -> u32 {
    let Some(at) = line.find(mark) else { return 0 };
    let digits = line[..at].rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_from_the_log() {
        let log = "\
ptxas info    : 4 bytes gmem
ptxas info    : Compiling entry function 'forward' for 'sm_90'
ptxas info    : Function properties for forward
ptxas         .     1088 bytes stack frame, 724 bytes spill stores, 1020 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1088 bytes cumulative stack size, 256 bytes smem
ptxas info    : Function properties for helper
ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'backward' for 'sm_90'
ptxas info    : Function properties for backward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, 380 bytes cmem[0]";
        let kernel = |name: &str, registers, shared, stack, spill_stores, spill_loads| KernelResources {
            name: name.into(),
            registers,
            shared,
            stack,
            spill_stores,
            spill_loads,
        };
        let expected = [kernel("forward", 32, 256, 1088, 724, 1020), kernel("backward", 12, 0, 0, 0, 0)];
        assert_eq!(parse_resources(log), expected);
    }

    #[test]
    fn a_device_gets_the_newest_code_it_can_run() {
        let known = [75, 80, 86, 89, 90, 100, 120];
        let best = |cc| best_architecture(cc, &known);
        assert_eq!([best(75), best(87), best(90), best(103)], [Some(75), Some(86), Some(90), Some(100)]);
        assert_eq!([best(70), best(110)], [None, None]);
    }
}
