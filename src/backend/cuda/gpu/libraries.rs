//! Finds and opens the CUDA libraries: the driver, NVRTC and cuBLASLt.
//!
//! First in the folders that the environment names, then by the names that the system's loader knows, then in
//! toolkits, named by CUDA_HOME or at their usual place, and in Python's nvidia wheels. They stay open for the
//! life of the process, and the opened file itself is asked for its functions.

use super::calls::{cublaslt as lt, cuda as cu, nvrtc as rtc};
pub use super::folders::FOLDERS;
use super::folders::{Folder, explicit_folders, files_like, other_folders};
use crate::backend::cuda::CudaError;
use crate::backend::cuda::driver::Result;
use libloading::Library;
use serde::Serialize;
use std::env;
use std::error::Error;
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The major versions of NVRTC and cuBLASLt that are looked for by their names, newest first.
const MAJORS: [u32; 2] = [13, 12];

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

impl Loaded {
    /// Whether its version is `major`.`minor` or a later one.
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let found = self.version.split('.').nth(1).and_then(|part| part.parse().ok());
        (self.major, found.unwrap_or(0)) >= (major, minor)
    }
}

/// The library, or what was found that cannot be used, and what to do.
type Outcome = Result<Loaded, String>;

/// A library to look for, before it is opened; `T`: where its functions lie.
struct Wanted<T> {
    /// Name as cudarc knows it.
    stem: &'static str,
    /// The names that it can have, the best first.
    files: Vec<String>,
    /// Opened too, from the same folder: the files of this name and the library's version.
    companions: Option<&'static str>,
    hint: &'static str,
    /// Finds the functions, or the name of one that is missing.
    table: fn(&Library) -> Result<T, &'static str>,
    address: fn(&T) -> usize,
    version: fn(&T) -> Result<(u32, String), String>,
    keep: fn(T),
}

/// The driver, libcuda; the version is that of CUDA.
pub fn driver() -> Result<&'static Loaded> {
    static DRIVER: OnceLock<Outcome> = OnceLock::new();
    get(&DRIVER, "the NVIDIA driver (libcuda)", || load(&wanted_driver()))
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
    library: &'static str,
    load: impl FnOnce() -> Outcome,
) -> Result<&'static Loaded> {
    cell.get_or_init(load).as_ref().map_err(|hint| CudaError::Missing { library, hint: hint.clone() })
}

/// The version of the kernel's side of the driver, "580.95.05", where the system tells.
pub fn kernel_driver() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

// ---------------------------------------------------------------- the three

fn wanted_driver() -> Wanted<cu::Table> {
    Wanted {
        stem: if cfg!(windows) { "nvcuda" } else { "cuda" },
        files: vec!["libcuda.so.1".into()],
        companions: None,
        hint: "install the NVIDIA driver",
        table: cu::Table::of,
        address: |table| table.cuInit as usize,
        version: |table| {
            let mut version: c_int = 0;
            // SAFETY: a place for the number; needs no initialisation.
            let status = unsafe { (table.cuDriverGetVersion)(&mut version) };
            match u32::try_from(version) {
                _ if status == cu::CUresult::CUDA_ERROR_STUB_LIBRARY as u32 => {
                    Err("it is the CUDA toolkit's stub, \
                     which is for linking; take its folder out of LD_LIBRARY_PATH"
                        .into())
                }
                Ok(v) if status == 0 && v > 0 => Ok((v / 1000, format!("{}.{}", v / 1000, v % 1000 / 10))),
                _ => Err(format!("cuDriverGetVersion: status {status}")),
            }
        },
        keep: cu::Table::keep,
    }
}

fn wanted_nvrtc() -> Wanted<rtc::Table> {
    Wanted {
        stem: "nvrtc",
        files: versioned("libnvrtc.so"),
        // NVRTC opens these by name, and the wheels' NVRTC does not say where.
        companions: Some("libnvrtc-builtins.so"),
        hint: "run pip install nvidia-cuda-nvrtc, or install the CUDA toolkit; \
               CLIP_ENGINE_CUDA_LIBRARIES names folders to look in",
        table: rtc::Table::of,
        address: |table| table.nvrtcVersion as usize,
        version: |table| {
            let (mut major, mut minor): (c_int, c_int) = (0, 0);
            // SAFETY: two places for numbers.
            let status = unsafe { (table.nvrtcVersion)(&mut major, &mut minor) };
            match (status, u32::try_from(major)) {
                (0, Ok(major)) => Ok((major, format!("{major}.{minor}"))),
                _ => Err(format!("nvrtcVersion: status {status}")),
            }
        },
        keep: rtc::Table::keep,
    }
}

fn wanted_cublaslt() -> Wanted<lt::Table> {
    Wanted {
        stem: "cublasLt",
        files: versioned("libcublasLt.so"),
        companions: None,
        hint: "run pip install nvidia-cublas, or install the CUDA toolkit; \
               CLIP_ENGINE_CUDA_LIBRARIES names folders to look in",
        table: lt::Table::of,
        address: |table| table.cublasLtCreate as usize,
        version: |table| {
            // SAFETY: takes nothing.
            let version = unsafe { (table.cublasLtGetVersion)() };
            // 120304 is 12.3.4, and so is 11.x's 11xx0y; only majors from 12 on are used.
            let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
            u32::try_from(major)
                .map(|m| (m, format!("{major}.{minor}.{patch}")))
                .map_err(|_| format!("cublasLtGetVersion: {version}"))
        },
        keep: lt::Table::keep,
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

fn load<T>(wanted: &Wanted<T>) -> Outcome {
    let mut failures = Failures::default();
    let mut found = in_folders(wanted, &explicit_folders(), &mut failures);
    // A file in a folder that is named by hand is the one, or it is what is wrong.
    if found.is_none() && failures.0.is_empty() {
        let others = other_folders(&|name| env::var_os(name));
        found = by_name(wanted, &wanted.files, &mut failures)
            .or_else(|| in_folders(wanted, &others, &mut failures))
            // Names without a version come last: development files have them, and the toolkit's stub.
            .or_else(|| by_name(wanted, &cudarc::get_lib_name_candidates(wanted.stem), &mut failures));
    }
    found.ok_or_else(|| failures.0.iter().map(|f| format!("{f}; ")).collect::<String>() + wanted.hint)
}

/// Reasons why libraries that were found cannot be used.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    /// The library, or none and a failure more.
    fn took(&mut self, outcome: Outcome) -> Option<Loaded> {
        outcome.map_err(|problem| self.0.push(problem)).ok()
    }
}

/// Loads the library from the first folder that has a file that can be used.
fn in_folders<T>(wanted: &Wanted<T>, folders: &[Folder], failures: &mut Failures) -> Option<Loaded> {
    let paths = folders
        .iter()
        .flat_map(|folder| wanted.files.iter().map(move |file| (folder, folder.path.join(file))));
    paths.filter(|(_, path)| path.is_file()).find_map(|(folder, path)| {
        let opened = open(&path).map_err(|e| format!("{} cannot be loaded ({e})", path.display()));
        failures.took(opened.and_then(|library| examine(wanted, library, &path, &folder.named_by)))
    })
}

/// The first of these names that the system's loader knows and that can be used.
fn by_name<T>(wanted: &Wanted<T>, names: &[String], failures: &mut Failures) -> Option<Loaded> {
    names.iter().find_map(|name| {
        let name = Path::new(name);
        match open(name) {
            Ok(library) => failures.took(examine(wanted, library, name, "system loader")),
            Err(e) if e.contains("No such file") => None,
            Err(e) => failures.took(Err(format!("{} cannot be loaded ({e})", name.display()))),
        }
    })
}

/// All of its symbols at once, which are no other library's; or what the loader says.
fn open(path: &Path) -> Result<Library, String> {
    #[cfg(unix)]
    // SAFETY: runs the library's initialisers, which are NVIDIA's.
    let opened = unsafe {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        Library::open(Some(path), RTLD_NOW | RTLD_LOCAL).map(Into::into)
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let opened = unsafe { Library::new(path) };
    // The error's own text has only the name of the call.
    opened.map_err(|e| e.source().map_or_else(|| e.to_string(), ToString::to_string))
}

/// Keeps a library that was opened as `opened`, if it is what is wanted.
fn examine<T>(wanted: &Wanted<T>, library: Library, opened: &Path, found_by: &str) -> Outcome {
    let missing = |name| format!("{} has no function {name}: it is too old", opened.display());
    let table = (wanted.table)(&library).map_err(missing)?;
    let path = file_at((wanted.address)(&table));
    let file = path.as_deref().unwrap_or(opened).display();
    let (major, version) = (wanted.version)(&table).map_err(|problem| format!("{file}: {problem}"))?;
    // Of the same build as the library, so from beside it.
    if let (Some(companions), Some(folder)) = (wanted.companions, path.as_deref().and_then(Path::parent)) {
        for companion in files_like(folder, &format!("{companions}.{version}")) {
            let opened = open(&companion);
            std::mem::forget(opened.map_err(|e| format!("{} cannot be loaded ({e})", companion.display()))?);
        }
    }
    // Never closed: from here on its functions are called.
    std::mem::forget(library);
    (wanted.keep)(table);
    Ok(Loaded { path, major, version, found_by: found_by.to_owned() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_reported_and_not_taken() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("libfake.so.1"), "text").unwrap();
        let wanted = Wanted { files: vec!["libfake.so.1".into()], ..wanted_driver() };
        let folders = [Folder { path: root.path().to_path_buf(), named_by: "test".into() }];
        let mut failures = Failures::default();
        assert!(in_folders(&wanted, &folders, &mut failures).is_none());
        let [failure] = &failures.0[..] else { panic!("{:?}", failures.0) };
        assert!(failure.contains("libfake.so.1 cannot be loaded"), "{failure}");
    }

    /// Before a library is there its functions say that it is not.
    #[test]
    fn a_library_without_the_functions_is_not_taken() {
        // The C library has none of them.
        let wanted = Wanted { files: vec!["libc.so.6".into()], ..wanted_driver() };
        let mut failures = Failures::default();
        assert!(by_name(&wanted, &wanted.files, &mut failures).is_none());
        assert_eq!(failures.0, ["libc.so.6 has no function cuCtxSetCurrent: it is too old"]);
        assert!(by_name(&wanted, &["libabsent.so.7".into()], &mut failures).is_none());
        assert_eq!(failures.0.len(), 1, "{:?}", failures.0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_file_of_an_address_is_found() {
        let here = file_at(file_at as *const () as usize);
        assert_eq!(here.as_deref(), std::env::current_exe().ok().as_deref());
    }
}
