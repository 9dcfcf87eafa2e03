//! Compiles kernel files and the runtime into libraries, and keeps them in the temporary folder.

use crate::backend::cuda::driver::Result;
use crate::backend::cuda::kernel_sources::{self, Sources};
use crate::backend::cuda::{CudaError, locked};
use crate::hash::{Parts, hex};
use crate::tensor::DType;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

/// No -march=native: the same numbers on every machine.
/// Sibling calls would lose the caller that messages name; of what a debugger wants messages need the lines alone.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-fno-strict-aliasing",
    "-fno-optimize-sibling-calls",
    "-Wno-unknown-pragmas",
];
/// Nothing in one kernel library may stand in for something of the same name in another.
const KERNEL_FLAGS: &[&str] = &["-fvisibility=hidden", "-fno-exceptions"];
/// The thread sanitizer's instrumentation calls the runtime before every load and store that can matter to
/// another thread.
const WATCHED: &[&str] = &["-O1", "-fsanitize=thread"];
const UNWATCHED: &[&str] = &["-O1"];
const RUNTIME_FLAGS: &[&str] = &["-O2"];
/// No contraction to fused multiply-adds.
const ROUNDS_EACH: &[&str] = &["-ffp-contract=off"];
/// Contraction, as NVRTC does it. GCC leaves it out at -O1 but for the third flag.
const ROUNDS_AS_A_DEVICE: &[&str] = &[
    "-DTWIN_DEVICE_ROUNDING",
    "-ffp-contract=fast",
    "-fexpensive-optimizations",
    #[cfg(target_arch = "x86_64")]
    "-mfma",
];
const RUNTIME: &str = "twin/runtime.cpp";

/// A C++ compiler: the program, arguments that come first (CXX may say "ccache g++"), and its version, which
/// names the cached libraries along with their sources.
struct Compiler {
    program: String,
    first: Vec<String>,
    version: String,
}

impl Compiler {
    /// The one that CXX names, else `c++`.
    fn find(cxx: Option<String>) -> Result<Compiler> {
        let words = cxx.unwrap_or_default();
        let mut words = words.split_whitespace().map(str::to_owned);
        let program = words.next().unwrap_or_else(|| "c++".to_owned());
        let mut found = Compiler { program, first: words.collect(), version: String::new() };
        let output = found.command().arg("--version").output();
        let problem = match output {
            Ok(output) if output.status.success() => {
                found.version = String::from_utf8_lossy(&output.stdout).into_owned();
                return Ok(found);
            }
            Ok(output) => format!("--version ends with {}", output.status),
            Err(error) => error.to_string(),
        };
        let program = found.program;
        let hint = format!(
            "the host twin compiles the kernels with it: install g++ or clang, or name one in CXX \
             ({program}: {problem})"
        );
        Err(CudaError::Missing { library: "a C++ compiler", hint })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first);
        command
    }
}

#[derive(Clone, Copy)]
pub struct Options {
    pub dtype: DType,
    pub compute_capability: u32,
    pub rounds_as_a_device: bool,
    pub watched: bool,
}

pub fn runtime(sources: &Sources) -> Result<PathBuf> {
    build(sources, RUNTIME, &[RUNTIME_FLAGS, ROUNDS_EACH].concat(), None)
}

/// The path of the library of the kernels in a file.
pub fn kernels(sources: &Sources, file: &str, options: Options) -> Result<PathBuf> {
    let real = format!("-D{}", kernel_sources::real_macro(options.dtype)?);
    let device = format!("-D__CUDA_ARCH__={}", options.compute_capability * 10);
    let rounding = if options.rounds_as_a_device { ROUNDS_AS_A_DEVICE } else { ROUNDS_EACH };
    let watched = if options.watched { WATCHED } else { UNWATCHED };
    let flags = [&[real.as_str(), &device], KERNEL_FLAGS, watched, rounding].concat();
    build(sources, &format!("{file}.cu"), &flags, Some(&runtime(sources)?))
}

/// Checks that this processor runs what is compiled to round as a device does.
pub fn check_fused() -> Result<()> {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("fma") {
        let problem = "the host twin rounds as a device does on processors with fused multiply-add alone";
        return Err(CudaError::Unsupported(problem.into()));
    }
    Ok(())
}

/// The library made of a file, from the cache or by the compiler. A library of kernels needs the `runtime`,
/// by its path.
fn build(sources: &Sources, file: &str, own_flags: &[&str], runtime: Option<&Path>) -> Result<PathBuf> {
    let compiler = Compiler::find(std::env::var("CXX").ok())?;
    let flags = [FLAGS, own_flags].concat();
    let headers: Vec<&str> = sources.files().map(|(n, _)| n).filter(|n| !n.ends_with(".cu")).collect();
    let needed = runtime.unwrap_or(Path::new("")).to_string_lossy();
    let mut hash = Parts::behind(sources.hash(&headers)?);
    let (first, flag_text) = (compiler.first.join(" "), flags.join(" "));
    for part in [&compiler.version, &first, file, sources.text(file)?, &flag_text, &needed] {
        hash.add(part);
    }
    let name = hex(&hash.finish()[..12]);
    let folder = cache_folder()?;
    let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
    let path = folder.join(format!("{stem}-{name}.so"));
    let turn = turn_for(&path);
    let _turn = locked(&turn);
    match std::fs::File::options().append(true).open(&path) {
        // The time says that it is in use.
        Ok(found) => found.set_modified(SystemTime::now()).map_err(|e| trouble(&path, &e))?,
        Err(_) => {
            compile(sources, file, &compiler, &flags, runtime, &path)?;
            forget_old(&folder);
        }
    }
    Ok(path)
}

/// Threads of this process that want the same library make it once.
fn turn_for(path: &Path) -> Arc<Mutex<()>> {
    static TURNS: LazyLock<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>> = LazyLock::new(Mutex::default);
    locked(&TURNS).entry(path.to_owned()).or_default().clone()
}

/// A folder of this user's: the libraries in it are run.
fn cache_folder() -> Result<PathBuf> {
    let me = Path::new("/proc/self");
    let user = std::fs::metadata(me).map_err(|e| trouble(me, &e))?.uid();
    let folder = std::env::temp_dir().join(format!("clip-engine-twin-{user}"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|e| trouble(&folder, &e))?;
    let found = std::fs::symlink_metadata(&folder).map_err(|e| trouble(&folder, &e))?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        let problem = "others can write here, so no libraries are run from it; remove it".to_owned();
        return Err(CudaError::File { path: folder, problem });
    }
    Ok(folder)
}

/// Removes libraries that no test has used for a week. One that stays is no harm.
fn forget_old(folder: &Path) {
    let week = Duration::from_secs(7 * 24 * 3600);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|m| m.modified());
        if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > week)) {
            // The folders are what killed tests left behind.
            let path = entry.path();
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
    }
}

/// Written under another name and renamed, because several processes may be at it.
fn compile(
    sources: &Sources,
    file: &str,
    compiler: &Compiler,
    flags: &[&str],
    runtime: Option<&Path>,
    to: &Path,
) -> Result<()> {
    let parent = to.parent().unwrap_or(Path::new("."));
    let folder = tempfile::tempdir_in(parent).map_err(|e| trouble(parent, &e))?;
    for (name, text) in sources.files().filter(|(name, _)| !name.ends_with(".cu") || *name == file) {
        let path = folder.path().join("kernels").join(name);
        let below = path.parent().unwrap_or(folder.path());
        std::fs::create_dir_all(below).map_err(|e| trouble(below, &e))?;
        std::fs::write(&path, text).map_err(|e| trouble(&path, &e))?;
    }
    let here = folder.path();
    let prefix = format!("-ffile-prefix-map={}=.", here.display());
    let source = format!("kernels/{file}");
    let compiling = flags.iter().copied().chain([&prefix, "-c", "-x", "c++", &source, "-o", "object.o"]);
    step(compiler, here, file, compiling.map(OsString::from).collect())?;
    // In a step of its own, because with the sanitizer's flag the compiler would add its library.
    let mut linking: Vec<OsString> =
        ["-shared", "object.o", "-o", "library.so", "-ldl"].map(OsString::from).into();
    linking.extend(runtime.map(|path| path.as_os_str().to_owned()));
    step(compiler, here, file, linking)?;
    let made = folder.path().join("library.so");
    std::fs::rename(&made, to).map_err(|e| trouble(to, &e))
}

fn step(compiler: &Compiler, folder: &Path, file: &str, arguments: Vec<OsString>) -> Result<()> {
    let output = compiler.command().current_dir(folder).args(arguments).output();
    let output = output.map_err(|e| trouble(Path::new(&compiler.program), &e))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(match file.strip_suffix(".cu") {
            Some(file) => CudaError::Compile { file: file.to_owned(), log },
            None => CudaError::Twin(format!("kernels/{file} does not compile:\n{log}")),
        });
    }
    Ok(())
}

fn trouble(path: &Path, error: &std::io::Error) -> CudaError {
    CudaError::File { path: path.to_path_buf(), problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_is_named_with_what_to_do() {
        let error = Compiler::find(Some("no-such-compiler -x".into())).err().expect("there is none");
        let message = error.to_string();
        assert!(message.starts_with("a C++ compiler was not found; "), "{message}");
        assert!(
            message.contains("install g++ or clang, or name one in CXX (no-such-compiler: "),
            "{message}"
        );
        let error = Compiler::find(Some("false".into())).err().expect("it is no compiler");
        assert!(error.to_string().contains("false: --version ends with"), "{error}");
    }
}
