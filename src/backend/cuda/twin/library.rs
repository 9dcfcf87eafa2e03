//! Compiles kernel files into libraries, keeps them in the temporary folder, and runs their kernels.

use super::super::CudaError;
use super::super::driver::{Args, Launch, Result};
use super::super::source::{self, Sources};
use super::BlockOrder;
use super::memory::{Buffer, Memory};
use crate::tensor::DType;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// No -march=native and no contraction to fused multiply-adds: the same numbers on every machine.
/// Sibling calls would lose the caller that messages name.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-g",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-optimize-sibling-calls",
    "-Wno-unknown-pragmas",
];
/// The thread sanitizer's instrumentation calls the runtime before every load and store that can matter to
/// another thread. Nothing in one kernel library may stand in for something of the same name in another.
const KERNEL_FLAGS: &[&str] = &["-O1", "-fsanitize=thread", "-fvisibility=hidden", "-fno-exceptions"];
const RUNTIME_FLAGS: &[&str] = &["-O2"];
const RUNTIME: &str = "twin/runtime.cpp";

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
    arguments: *const *mut c_void,
    buffers: *const Buffer,
    buffer_count: u64,
    order: u64,
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

    /// That the launch has as many arguments as the kernel has parameters, of their sizes.
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
type Run = unsafe extern "C" fn(*mut c_void, *const RawLaunch) -> c_int;

/// The runtime's state for one twin: stacks, shared memory.
pub struct Machine {
    state: *mut c_void,
    free: FreeMachine,
    run: Run,
}

// SAFETY: the runtime keeps nothing in thread-local memory between two runs.
unsafe impl Send for Machine {}

impl Machine {
    pub fn new(sources: &Sources) -> Result<Machine> {
        let runtime = load_runtime(sources)?;
        // SAFETY: these are the signatures in runtime.cpp.
        let (new, free, run) = unsafe {
            (
                std::mem::transmute::<*const c_void, NewMachine>(symbol(&runtime, "twin_machine_new")?),
                std::mem::transmute::<*const c_void, FreeMachine>(symbol(&runtime, "twin_machine_free")?),
                std::mem::transmute::<*const c_void, Run>(symbol(&runtime, "twin_run")?),
            )
        };
        // SAFETY: it takes nothing and returns a machine of ours.
        Ok(Machine { state: unsafe { new() }, free, run })
    }

    /// Runs a launch whose arguments were checked.
    pub fn run(
        &mut self,
        library: &KernelLibrary,
        launch: &Launch,
        memory: &mut Memory,
        order: BlockOrder,
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
            arguments: arguments.as_ptr(),
            buffers: memory.buffers().as_ptr(),
            buffer_count: memory.buffers().len() as u64,
            order: match order {
                BlockOrder::Ascending => 0,
                BlockOrder::Descending => 1,
                BlockOrder::Shuffled(seed) => u64::from(seed) + 2,
            },
            message: message.as_mut_ptr().cast(),
            message_size: message.len() as u64,
        };
        // SAFETY: the arguments match the kernel's parameters in number and size, and every access that
        // it makes through them is checked against the buffers, which nobody else uses meanwhile.
        if unsafe { (self.run)(self.state, &raw) } == 0 {
            return Ok(());
        }
        let message = CStr::from_bytes_until_nul(&message).unwrap_or_default().to_string_lossy();
        let message = with_lines(&message, &library.path);
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

static RUNTIMES: LazyLock<Mutex<HashMap<PathBuf, Arc<libloading::os::unix::Library>>>> =
    LazyLock::new(Mutex::default);
static LIBRARIES: LazyLock<Mutex<HashMap<PathBuf, Arc<KernelLibrary>>>> = LazyLock::new(Mutex::default);

fn load_runtime(sources: &Sources) -> Result<Arc<libloading::os::unix::Library>> {
    let mut runtimes = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let path = build(sources, RUNTIME, &[], None)?;
    if let Some(loaded) = runtimes.get(&path) {
        return Ok(loaded.clone());
    }
    let loaded = Arc::new(open(&path)?);
    runtimes.insert(path, loaded.clone());
    Ok(loaded)
}

/// The kernels of a file, compiled if they are not yet.
pub fn load(
    sources: &Sources,
    file: &str,
    dtype: DType,
    compute_capability: u32,
) -> Result<Arc<KernelLibrary>> {
    let defines =
        [format!("-D{}", source::real_macro(dtype)?), format!("-D__CUDA_ARCH__={}", compute_capability * 10)];
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = build(sources, RUNTIME, &[], None)?;
    let path = build(sources, &format!("{file}.cu"), &defines, Some(&runtime))?;
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

fn open(path: &Path) -> Result<libloading::os::unix::Library> {
    let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_LOCAL;
    // SAFETY: a library that we have compiled; its initialisers only register kernels.
    unsafe { libloading::os::unix::Library::open(Some(path), flags) }
        .map_err(|e| CudaError::File { path: path.to_path_buf(), problem: e.to_string() })
}

fn symbol(library: &libloading::os::unix::Library, name: &'static str) -> Result<*const c_void> {
    // SAFETY: taken as an address only; who calls it knows its signature.
    let found = unsafe { library.get::<*const c_void>(name.as_bytes()) };
    let found = found.map_err(|e| CudaError::Call { call: "dlsym", problem: e.to_string() })?;
    Ok(found.as_raw_ptr().cast_const())
}

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

/// The library made of a file, from the cache or by the compiler. Written under another name and renamed,
/// because several test processes may be at it. A library of kernels needs the `runtime`, by its path.
fn build(sources: &Sources, file: &str, defines: &[String], runtime: Option<&Path>) -> Result<PathBuf> {
    let compiler = Compiler::find(std::env::var("CXX").ok())?;
    let text = sources.text(file)?;
    let mut flags: Vec<&str> = FLAGS.to_vec();
    flags.extend(if runtime.is_some() { KERNEL_FLAGS } else { RUNTIME_FLAGS });
    flags.extend(defines.iter().map(String::as_str));
    let headers: Vec<&str> = sources.files().map(|(n, _)| n).filter(|n| !n.ends_with(".cu")).collect();
    let mut hash = Sha256::new();
    hash.update(sources.hash(&headers)?);
    for part in [&compiler.version, &compiler.first.join(" "), file, text, &flags.join(" ")] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let name: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let folder = cache_folder()?;
    let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
    let path = folder.join(format!("{stem}-{name}.so"));
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
        return Err(CudaError::Compile { file: file.trim_end_matches(".cu").to_owned(), log });
    }
    Ok(())
}

/// Puts source lines where the runtime wrote offsets in the library, "{1a2b}", and variables where it wrote
/// offsets in static shared memory, "{+1c}".
fn with_lines(message: &str, library: &Path) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((offset, behind)) = after.split_once('}') else { break };
        text.push_str(before);
        text.push_str(&match offset.strip_prefix('+') {
            Some(offset) => shared_byte(offset, library).unwrap_or_else(|| format!("byte 0x{offset}")),
            None => {
                source_line(offset, library).unwrap_or_else(|| format!("offset 0x{offset} of its library"))
            }
        });
        rest = behind;
    }
    text + rest
}

/// "kernels/prelude.cuh:160 (from kernels/layer_norm.cu:31)": the line, and those it was inlined into. None
/// without binutils' addr2line.
fn source_line(offset: &str, library: &Path) -> Option<String> {
    let output =
        Command::new("addr2line").arg("-i").arg("-e").arg(library).arg(format!("0x{offset}")).output();
    let output = String::from_utf8(output.ok().filter(|o| o.status.success())?.stdout).ok()?;
    let lines = output.lines().map(|line| {
        let line = line.split(" (discriminator").next().unwrap_or(line);
        line.find("kernels/").map_or(line, |at| &line[at..])
    });
    let mut lines = lines.filter(|line| !line.contains("/twin/"));
    let first = lines.next().filter(|line| !line.starts_with("??"))?;
    let callers: Vec<&str> = lines.collect();
    Some(if callers.is_empty() { first.to_owned() } else { format!("{first} (from {})", callers.join(", ")) })
}

/// "byte 8 of row_sum(float const*)::scratch". None without binutils' readelf.
fn shared_byte(offset: &str, library: &Path) -> Option<String> {
    let offset = u64::from_str_radix(offset, 16).ok()?;
    let output =
        Command::new("readelf").arg("--symbols").arg("--wide").arg("--demangle").arg(library).output();
    let output = String::from_utf8(output.ok()?.stdout).ok()?;
    output.lines().find_map(|line| {
        // Number, value, size, type, binding, visibility, section, name.
        let mut columns = line.split_whitespace().skip(1);
        let start = u64::from_str_radix(columns.next()?, 16).ok()?;
        let size: u64 = columns.next()?.parse().ok()?;
        let inside = columns.next()? == "TLS" && (start..start + size).contains(&offset);
        let name = columns.skip(3).collect::<Vec<_>>().join(" ");
        inside.then(|| format!("byte {} of {name}", offset - start))
    })
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
