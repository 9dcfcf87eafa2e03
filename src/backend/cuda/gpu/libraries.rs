//! Finds and loads the CUDA libraries: the driver, NVRTC and cuBLASLt.
//!
//! cudarc opens them by name, which the system's loader resolves. Libraries elsewhere, in a toolkit named
//! by CUDA_HOME or in Python's nvidia wheels, are opened here first by their full path: from then on the
//! same name resolves to them. They stay open for the life of the process.

pub use super::folders::FOLDERS;
use super::folders::{Folder, explicit_folders, files_like, other_folders};
use crate::backend::cuda::CudaError;
use crate::backend::cuda::driver::Result;
use serde::Serialize;
use std::env;
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The major versions of NVRTC and cuBLASLt that cudarc asks the loader for, newest first.
const MAJORS: [u32; 2] = [13, 12];

/// A library that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Loaded {
    /// The file that is in use, where the system tells.
    pub path: Option<PathBuf>,
    /// The first number of the version, which is that of CUDA: 13.
    pub major: u32,
    /// As the library tells it: "13.0", or "13.1.0" for cuBLASLt.
    pub version: String,
    /// How it was found: "system loader", "CUDA_HOME", …
    pub found_by: String,
}

/// Why a library cannot be used.
#[derive(Debug, Clone)]
enum Problem {
    Missing(String),
    Unsupported(String),
}

impl Problem {
    fn into_error(self, library: &'static str) -> CudaError {
        match self {
            Problem::Missing(hint) => CudaError::Missing { library, hint },
            Problem::Unsupported(text) => CudaError::Unsupported(text),
        }
    }
}

type Outcome = std::result::Result<Loaded, Problem>;

/// What is known of one library before it is loaded.
struct Wanted {
    name: &'static str,
    files: Vec<String>,
    /// Loaded too, from the same folder: the files of this name and the library's version.
    companions: Option<&'static str>,
    hint: &'static str,
    /// Whether cudarc finds it.
    present: fn() -> bool,
    /// The address of a function in the library that cudarc uses.
    symbol: fn(&str) -> Option<*const c_void>,
    /// Functions without which it is of no use here.
    symbols: &'static [&'static str],
    /// Major version and text, once all symbols are known to be there.
    version: fn() -> std::result::Result<(u32, String), String>,
}

/// The driver, libcuda; the version is that of CUDA.
pub fn driver() -> Result<&'static Loaded> {
    static DRIVER: OnceLock<Outcome> = OnceLock::new();
    get(&DRIVER, "the NVIDIA driver (libcuda)", || load(&wanted_driver()))
}

/// Whether the driver has a function that older ones lack.
pub fn driver_has(name: &str) -> bool {
    driver().is_ok() && (wanted_driver().symbol)(name).is_some()
}

/// NVRTC, which compiles the kernels.
pub fn nvrtc() -> Result<&'static Loaded> {
    static NVRTC: OnceLock<Outcome> = OnceLock::new();
    get(&NVRTC, "NVRTC (libnvrtc)", || load(&wanted_nvrtc()))
}

/// cuBLASLt, which multiplies the large matrices.
pub fn cublaslt() -> Result<&'static Loaded> {
    static CUBLASLT: OnceLock<Outcome> = OnceLock::new();
    get(&CUBLASLT, "cuBLASLt (libcublasLt)", || load(&wanted_cublaslt()))
}

fn get(
    cell: &'static OnceLock<Outcome>,
    name: &'static str,
    load: impl FnOnce() -> Outcome,
) -> Result<&'static Loaded> {
    cell.get_or_init(load).as_ref().map_err(|problem| problem.clone().into_error(name))
}

/// The version of the kernel's side of the driver, "580.95.05", where the system tells.
pub fn kernel_driver() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

// ---------------------------------------------------------------- the three

fn wanted_driver() -> Wanted {
    Wanted {
        name: "libcuda",
        files: vec!["libcuda.so.1".into()],
        companions: None,
        hint: "install the NVIDIA driver",
        // SAFETY: opens and closes libraries by name; their initialisers are NVIDIA's.
        present: || unsafe { cudarc::driver::sys::is_culib_present() },
        // SAFETY: only called where cudarc finds the library; the address is not called.
        symbol: |name| unsafe { address(cudarc::driver::sys::culib(), name) },
        symbols: DRIVER_SYMBOLS,
        version: || {
            let mut version: c_int = 0;
            // SAFETY: a place for the number; the function exists and needs no initialisation.
            let status = unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut version) };
            match u32::try_from(version) {
                Ok(v) if status == cudarc::driver::sys::CUresult::CUDA_SUCCESS && v > 0 => {
                    Ok((v / 1000, format!("{}.{}", v / 1000, v % 1000 / 10)))
                }
                _ => Err(format!("cuDriverGetVersion: {status:?}")),
            }
        },
    }
}

fn wanted_nvrtc() -> Wanted {
    Wanted {
        name: "libnvrtc",
        files: versioned("libnvrtc.so"),
        // NVRTC opens these by name, and the wheels' NVRTC does not say where.
        companions: Some("libnvrtc-builtins.so"),
        hint: "run pip install nvidia-cuda-nvrtc, or install the CUDA toolkit; \
               CLIP_ENGINE_CUDA_LIBRARIES names folders to look in",
        // SAFETY: opens and closes libraries by name; their initialisers are NVIDIA's.
        present: || unsafe { cudarc::nvrtc::sys::is_culib_present() },
        // SAFETY: only called where cudarc finds the library; the address is not called.
        symbol: |name| unsafe { address(cudarc::nvrtc::sys::culib(), name) },
        symbols: NVRTC_SYMBOLS,
        version: || {
            let (mut major, mut minor): (c_int, c_int) = (0, 0);
            // SAFETY: two places for numbers; the function exists.
            let status = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
            match (status, u32::try_from(major)) {
                (cudarc::nvrtc::sys::nvrtcResult::NVRTC_SUCCESS, Ok(major)) => {
                    Ok((major, format!("{major}.{minor}")))
                }
                _ => Err(format!("nvrtcVersion: {status:?}")),
            }
        },
    }
}

fn wanted_cublaslt() -> Wanted {
    Wanted {
        name: "libcublasLt",
        files: versioned("libcublasLt.so"),
        companions: None,
        hint: "run pip install nvidia-cublas, or install the CUDA toolkit; \
               CLIP_ENGINE_CUDA_LIBRARIES names folders to look in",
        // SAFETY: opens and closes libraries by name; their initialisers are NVIDIA's.
        present: || unsafe { cudarc::cublaslt::sys::is_culib_present() },
        // SAFETY: only called where cudarc finds the library; the address is not called.
        symbol: |name| unsafe { address(cudarc::cublaslt::sys::culib(), name) },
        symbols: CUBLASLT_SYMBOLS,
        version: || {
            // SAFETY: the function exists and takes nothing.
            let version = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
            // 120304 is 12.3.4, and so is 11.x's 11xx0y; only majors from 12 on are used.
            let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
            u32::try_from(major)
                .map(|m| (m, format!("{major}.{minor}.{patch}")))
                .map_err(|_| format!("cublasLtGetVersion: {version}"))
        },
    }
}

/// The names under which a library of CUDA 13 or 12 lies on a disk; that of the driver's version first.
fn versioned(stem: &str) -> Vec<String> {
    let mut majors = MAJORS.to_vec();
    if driver().is_ok_and(|driver| driver.major < MAJORS[0]) {
        majors.reverse();
    }
    majors.iter().map(|major| format!("{stem}.{major}")).collect()
}

// ---------------------------------------------------------------- loading

fn load(wanted: &Wanted) -> Outcome {
    let mut failures = Vec::new();
    let mut opened = preload(wanted, &explicit_folders(), &mut failures);
    let by_name = opened.is_none() && (wanted.present)();
    if opened.is_none() && !by_name {
        opened = preload(wanted, &other_folders(&|name| env::var_os(name)), &mut failures);
    }
    if opened.is_none() && !by_name {
        let failures: String = failures.iter().map(|f| format!("{f}; ")).collect();
        return Err(Problem::Missing(failures + wanted.hint));
    }
    if !(wanted.present)() {
        let name = wanted.name;
        return Err(Problem::Unsupported(format!(
            "{name} was loaded, but not under a name it can be used by; {}",
            wanted.hint
        )));
    }
    examine(wanted, opened.as_ref())
}

/// A library that was opened by its path.
struct Opened {
    path: PathBuf,
    named_by: String,
}

/// Opens the library by its full path from the first folder that has it.
fn preload(wanted: &Wanted, folders: &[Folder], failures: &mut Vec<String>) -> Option<Opened> {
    for folder in folders {
        for file in &wanted.files {
            let path = folder.path.join(file);
            if !path.is_file() {
                continue;
            }
            match open_for_good(&path) {
                Ok(()) => return Some(Opened { path, named_by: folder.named_by.clone() }),
                Err(problem) => failures.push(problem),
            }
        }
    }
    None
}

fn open_for_good(path: &Path) -> std::result::Result<(), String> {
    #[cfg(unix)]
    // SAFETY: runs the library's initialisers, which are NVIDIA's.
    let library = unsafe {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL)
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let library = unsafe { libloading::Library::new(path) };
    // Never closed: cudarc and other libraries keep pointers into it.
    library.map(std::mem::forget).map_err(|e| format!("{} cannot be loaded ({e})", path.display()))
}

/// Makes sure that every function that will be called is there, as cudarc panics where one is not, and
/// finds out which file is in use: the loader may know another one by a name that comes first.
fn examine(wanted: &Wanted, opened: Option<&Opened>) -> Outcome {
    let mut path = None;
    for name in wanted.symbols {
        let Some(address) = (wanted.symbol)(name) else {
            let library = wanted.name;
            let problem = format!("{library} has no function {name}: it is too old; {}", wanted.hint);
            return Err(Problem::Unsupported(problem));
        };
        if path.is_none() {
            path = file_at(address as usize);
        }
    }
    let (major, version) =
        (wanted.version)().map_err(|problem| Problem::Unsupported(format!("{}: {problem}", wanted.name)))?;
    // Of the same build as the library, so from beside the one in use.
    let folder = path.as_deref().and_then(Path::parent);
    if let (Some(companions), Some(folder)) = (wanted.companions, folder) {
        for companion in files_like(folder, &format!("{companions}.{version}")) {
            open_for_good(&companion).map_err(Problem::Unsupported)?;
        }
    }
    let same = |opened: &Opened| {
        path.is_none()
            || opened.path.canonicalize().ok() == path.as_deref().and_then(|p| p.canonicalize().ok())
    };
    let found_by = match opened {
        Some(opened) if same(opened) => opened.named_by.clone(),
        Some(opened) => format!("system loader, before {} by {}", opened.path.display(), opened.named_by),
        None => "system loader".to_owned(),
    };
    Ok(Loaded { path, major, version, found_by })
}

/// # Safety
/// The address must not be called with a wrong signature.
unsafe fn address(library: &libloading::Library, name: &str) -> Option<*const c_void> {
    // SAFETY: a symbol is as large as a pointer, whatever it points to.
    let symbol = unsafe { library.get::<*const c_void>(name.as_bytes()) };
    symbol.ok().map(|symbol| *symbol).filter(|pointer| !pointer.is_null())
}

/// The file that is mapped at an address of this process.
fn file_at(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let inside =
            (usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?).contains(&address);
        inside.then(|| rest.find('/').map(|at| PathBuf::from(&rest[at..])))?
    })
}

// ---------------------------------------------------------------- the functions that are called

const DRIVER_SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

const NVRTC_SYMBOLS: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetErrorString",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
];

const CUBLASLT_SYMBOLS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetStatusName",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoCheck",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_reported_and_not_taken() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("libfake.so.1"), "text").unwrap();
        let wanted = Wanted { files: vec!["libfake.so.1".into()], ..wanted_driver() };
        let folders = [Folder { path: root.path().to_path_buf(), named_by: "test".into() }];
        let mut failures = Vec::new();
        assert!(preload(&wanted, &folders, &mut failures).is_none());
        assert!(failures.len() == 1 && failures[0].contains("libfake.so.1 cannot be loaded"), "{failures:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_file_of_an_address_is_found() {
        let here = file_at(file_at as *const () as usize);
        assert_eq!(here.as_deref(), std::env::current_exe().ok().as_deref());
    }
}
