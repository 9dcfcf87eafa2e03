//! Builds the stand-ins for libcuda and libcublasLt beside this file, and lets tests talk to them; stand_in.h
//! says what they are.
//!
//! NVRTC is the real one.

use clip_engine::backend::cuda::CudaError;
use clip_engine::backend::cuda::gpu::libraries::{self, FOLDERS};
use clip_engine::backend::cuda::gpu::{Gpu, GpuOptions};
use clip_engine::backend::cuda::kernel_sources::Sources;
use clip_engine::dev::twin::Twin;
use clip_engine::tensor::DType;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::env;
use std::ffi::{CString, OsString, c_char, c_long};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

const SOURCES: [(&str, &str); 7] = [
    ("launch.h", include_str!("../../../kernels/twin/launch.h")),
    ("exports.map", include_str!("exports.map")),
    ("stand_in.h", include_str!("stand_in.h")),
    ("work.h", include_str!("work.h")),
    ("modules.h", include_str!("modules.h")),
    ("cuda.cpp", include_str!("cuda.cpp")),
    ("cublaslt.cpp", include_str!("cublaslt.cpp")),
];
const LIBRARIES: [(&str, &str); 2] = [("cuda.cpp", "libcuda.so.1"), ("cublaslt.cpp", "libcublasLt.so.13")];

/// No contraction to fused multiply-adds: the tests compare bits.
const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-static-libstdc++",
    "-static-libgcc",
    "-Wl,--version-script=exports.map",
];

/// What tests set between two of them, with the values of an untouched device.
const SETTINGS: [(&str, &str); 9] = [
    ("MEMORY", "1073741824"),
    ("CAPABILITY", "90"),
    ("KERNELS", ""),
    ("RETIRED", ""),
    ("FAILING", ""),
    ("FAIL", ""),
    ("ROWS_ALIGNED", ""),
    ("WITHOUT_KERNEL", ""),
    ("STARTED", "1"),
];

/// Kernels for tests of the driver alone.
const PROBE: &str = include_str!("probe.cu");

/// What else than a whole driver the stand-in for libcuda can be.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Whole,
    /// Of a driver before 12.8.
    Old,
    /// The toolkit's stub, which is for linking only.
    Stub,
}

impl Kind {
    fn define(self) -> &'static str {
        match self {
            Kind::Whole => "-DWHOLE",
            Kind::Old => "-DOLD_DRIVER",
            Kind::Stub => "-DSTUB",
        }
    }
}

/// The folder with both libraries. They are built once for each state of their sources.
pub fn build(kind: Kind) -> PathBuf {
    let mut hash = Sha256::new();
    for text in SOURCES.iter().map(|(_, text)| *text).chain(FLAGS).chain([kind.define()]) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = target.join(format!("stand-in-{name}"));
    if folder.is_dir() {
        return folder;
    }
    let build = tempfile::tempdir_in(target).unwrap();
    for (name, text) in SOURCES {
        std::fs::write(build.path().join(name), text).unwrap();
    }
    for (source, library) in LIBRARIES {
        // "ccache g++" is two words.
        let named = env::var("CXX").unwrap_or("c++".into());
        let mut words = named.split_whitespace();
        let mut compiler = Command::new(words.next().unwrap_or("c++"));
        compiler.args(words);
        compiler
            .current_dir(build.path())
            .args(FLAGS)
            .arg(kind.define())
            .arg(format!("-Wl,-soname,{library}"));
        compiler.args([source, "-o", library]).args((source != LIBRARIES[0].0).then_some("./libcuda.so.1"));
        let output = compiler.arg("-ldl").output().unwrap();
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Another process may have been faster; the two are the same.
    if std::fs::rename(build.path(), &folder).is_ok() {
        let _ = build.keep();
    }
    assert!(folder.is_dir());
    folder
}

/// The functions of the stand-in that are not the driver's.
struct Control {
    set: unsafe extern "C" fn(*const c_char, *const c_char),
    held: unsafe extern "C" fn() -> c_long,
    launches: unsafe extern "C" fn() -> c_long,
    misuses: unsafe extern "C" fn() -> c_long,
    calls: unsafe extern "C" fn() -> c_long,
    failures: unsafe extern "C" fn() -> c_long,
}

struct StandIn {
    control: Control,
    /// libcuda.
    library: &'static libloading::Library,
    /// What CLIP_ENGINE_CUDA_LIBRARIES is to the engine.
    folders: OsString,
    /// Kernels are compiled once for all tests.
    cache: TempDir,
}

impl StandIn {
    fn load() -> Mutex<StandIn> {
        let folder = build(Kind::Whole);
        let before = env::var_os(FOLDERS).unwrap_or_default();
        let folders = env::join_paths([folder.clone()].into_iter().chain(env::split_paths(&before))).unwrap();
        // SAFETY: every test of this program comes here before it does anything else, and until this is
        // done nothing but Rust's standard library, which locks, reads the environment.
        unsafe { env::set_var(FOLDERS, &folders) };
        libraries::nvrtc().unwrap();
        // SAFETY: the library that was just built.
        let library = unsafe { libloading::Library::new(folder.join(LIBRARIES[0].1)) }.unwrap();
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        // SAFETY: it has these functions of these signatures, and stays open.
        let control = unsafe {
            Control {
                set: *library.get(b"stand_in_set").unwrap(),
                held: *library.get(b"stand_in_held").unwrap(),
                launches: *library.get(b"stand_in_launches").unwrap(),
                misuses: *library.get(b"stand_in_misuses").unwrap(),
                calls: *library.get(b"stand_in_calls").unwrap(),
                failures: *library.get(b"stand_in_failures").unwrap(),
            }
        };
        let cache = tempfile::tempdir().unwrap();
        Mutex::new(StandIn { control, library, folders, cache })
    }
}

static STAND_IN: LazyLock<Mutex<StandIn>> = LazyLock::new(StandIn::load);

/// The stand-in for one test at a time. In the end nothing may be left of what was made in it, nothing forbidden
/// may have been done, and no call may have failed, unless the test says so.
pub struct Session {
    stand_in: MutexGuard<'static, StandIn>,
    misuses: c_long,
    held: c_long,
    failures: c_long,
    calls_may_fail: Cell<bool>,
}

impl Session {
    pub fn begin() -> Session {
        let stand_in = STAND_IN.lock().unwrap_or_else(PoisonError::into_inner);
        let calls_may_fail = Cell::new(false);
        let mut session = Session { stand_in, misuses: 0, held: 0, failures: 0, calls_may_fail };
        (session.misuses, session.held) = (session.misuses(), session.held());
        session.failures = session.failures();
        SETTINGS.iter().for_each(|(name, value)| session.set(name, value));
        session
    }

    /// As STAND_IN_`name` in the environment would.
    pub fn set(&self, name: &str, value: &str) {
        let (name, value) = (CString::new(name).unwrap(), CString::new(value).unwrap());
        // SAFETY: two strings that end with a zero, which are copied.
        unsafe { (self.stand_in.control.set)(name.as_ptr(), value.as_ptr()) }
    }

    /// Objects of the driver and of cuBLASLt that exist.
    pub fn held(&self) -> c_long {
        // SAFETY: takes nothing.
        unsafe { (self.stand_in.control.held)() }
    }

    /// Kernels that have run.
    pub fn launches(&self) -> c_long {
        // SAFETY: takes nothing.
        unsafe { (self.stand_in.control.launches)() }
    }

    /// Calls of the driver and of cuBLASLt.
    pub fn calls(&self) -> c_long {
        // SAFETY: takes nothing.
        unsafe { (self.stand_in.control.calls)() }
    }

    /// Calls of either that returned an error.
    fn failures(&self) -> c_long {
        // SAFETY: takes nothing.
        unsafe { (self.stand_in.control.failures)() }
    }

    /// For tests of what is wrong. In all others a call that fails would be one error more in what
    /// compute-sanitizer reports.
    pub fn calls_may_fail(&self) {
        self.calls_may_fail.set(true);
    }

    /// Says that so many misuses were meant.
    pub fn misused(&mut self, times: c_long) {
        assert_eq!(self.misuses() - self.misuses, times, "misuses that the stand-in noticed");
        self.misuses += times;
    }

    /// libcuda, for calls that the engine does not make.
    pub fn library(&self) -> &'static libloading::Library {
        self.stand_in.library
    }

    fn misuses(&self) -> c_long {
        // SAFETY: takes nothing.
        unsafe { (self.stand_in.control.misuses)() }
    }

    /// A folder that lasts as long as the program, for compiled kernels.
    pub fn cache(&self) -> PathBuf {
        self.stand_in.cache.path().to_path_buf()
    }

    pub fn folders(&self) -> &OsString {
        &self.stand_in.folders
    }

    /// A GPU with the engine's kernels, which measures its products.
    pub fn gpu(&self, dtype: DType) -> Gpu {
        let options = GpuOptions {
            cache: Some(self.cache()),
            measure: true,
            capture: true,
            cooperative: true,
            overlap: true,
        };
        self.gpu_with(&Sources::embedded(), dtype, options)
    }

    /// A GPU with the kernels of probe.cu, which takes cuBLASLt's first proposals.
    pub fn probe(&self) -> Gpu {
        self.probe_with(
            DType::F32,
            GpuOptions {
                cache: Some(self.cache()),
                measure: false,
                capture: true,
                cooperative: true,
                overlap: true,
            },
        )
    }

    /// The same, which keeps in `cache` what it keeps and measures its products.
    pub fn probe_in(&self, cache: Option<PathBuf>, dtype: DType) -> Gpu {
        self.probe_with(
            dtype,
            GpuOptions { cache, measure: true, capture: true, cooperative: true, overlap: true },
        )
    }

    pub fn probe_with(&self, dtype: DType, options: GpuOptions) -> Gpu {
        self.gpu_with(&PROBE_SOURCES, dtype, options)
    }

    /// As [`Session::probe_in`], where that may fail.
    pub fn try_probe_in(&self, cache: Option<PathBuf>, dtype: DType) -> Result<Gpu, CudaError> {
        self.set("KERNELS", &libraries_of(&PROBE_SOURCES, dtype));
        Gpu::new(
            0,
            dtype,
            &PROBE_SOURCES,
            GpuOptions { cache, measure: true, capture: true, cooperative: true, overlap: true },
        )
    }

    fn gpu_with(&self, sources: &Sources, dtype: DType, options: GpuOptions) -> Gpu {
        self.set("KERNELS", &libraries_of(sources, dtype));
        Gpu::new(0, dtype, sources, options).unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.held(), self.held, "objects that outlived the test");
            assert_eq!(self.misuses(), self.misuses, "the driver was misused, as it says above");
            let failed = self.failures() - self.failures;
            assert!(failed == 0 || self.calls_may_fail.get(), "{failed} calls failed, as it says above");
        }
    }
}

/// STAND_IN_KERNELS: the libraries that the host twin has made of `sources`.
pub fn libraries_of(sources: &Sources, dtype: DType) -> String {
    let twin = Twin::with_sources(sources.clone(), dtype, 90).unwrap();
    let paths: Vec<String> = twin.compile_all().unwrap().iter().map(|p| p.display().to_string()).collect();
    paths.join(":")
}

/// Nothing but probe.cu in it: quickly compiled.
static PROBE_SOURCES: LazyLock<Sources> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in Sources::embedded().files() {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = if name.ends_with(".cu") { "#include \"prelude.cuh\"\n" } else { text };
        std::fs::write(path, text).unwrap();
    }
    Sources::from_folder(folder.path()).unwrap().with_file("probe.cu", PROBE)
});
