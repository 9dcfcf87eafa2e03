//! Compiled kernels on the disk, so that only the first start compiles.
//!
//! A file's name carries a hash of everything that the code depends on; its content begins with a checksum
//! of the rest, and a file that is not what it should be is compiled again and replaced. A folder that
//! cannot be written costs time and nothing else.

use super::{compile, libraries};
use crate::backend::cuda::driver::Result;
use crate::backend::cuda::kernel_sources::Sources;
use crate::backend::cuda::locked;
use crate::files;
use crate::hash::{Parts, hex};
use crate::tensor::DType;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// First bytes of an entry, before the checksum; the number counts changes of the format.
const MAGIC: &[u8; 8] = b"CECUBIN1";
const CHECKSUM: usize = 32;

/// The compiler recurses deeply in templates.
pub const COMPILER_STACK: usize = 16 << 20;

/// Machine code of a kernel file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cubin {
    pub file: String,
    /// As the driver loads it, without the checksum that it has on the disk.
    pub code: Vec<u8>,
    pub cached: bool,
}

/// A folder with compiled kernels.
#[derive(Debug, Clone)]
pub struct Cubins {
    folder: Option<PathBuf>,
}

impl Cubins {
    /// Keeps them in `folder`, or does not keep them.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Cubins { folder }
    }

    /// The kernel files that nearly every run needs, compiled in parallel where they are not there yet.
    pub fn common(&self, sources: &Sources, architecture: u32, dtype: DType) -> Result<Vec<Cubin>> {
        let mut files: Vec<&str> = sources.common_kernel_files().collect();
        // The longest first: one that begins last is waited for alone.
        files.sort_by_key(|file| std::cmp::Reverse(sources.text(&format!("{file}.cu")).map_or(0, str::len)));
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(files.len()));
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let cubin = self.get(sources, file, architecture, dtype);
                locked(&done).push(cubin);
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(files.len());
        thread::scope(|scope| {
            let spawn = || thread::Builder::new().stack_size(COMPILER_STACK).spawn_scoped(scope, work);
            let helpers: Vec<_> = (0..threads).map_while(|_| spawn().ok()).collect();
            if helpers.is_empty() {
                work();
            }
        });
        let mut cubins: Vec<Cubin> =
            done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect::<Result<_>>()?;
        cubins.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(cubins)
    }

    /// One kernel file, from the disk or compiled and then kept.
    pub fn get(&self, sources: &Sources, file: &str, architecture: u32, dtype: DType) -> Result<Cubin> {
        let path = self.path(sources, file, architecture, dtype)?;
        if let Some(code) = path.as_deref().and_then(read) {
            return Ok(Cubin { file: file.to_owned(), code, cached: true });
        }
        let code = compile::compile(sources, file, architecture, dtype)?.cubin;
        if let Some(path) = path {
            // Whoever cannot write here compiles at every start; the probe says so.
            let _ = files::make_folder_of(&path).and_then(|()| files::write_private(&path, &entry(&code)));
        }
        Ok(Cubin { file: file.to_owned(), code, cached: false })
    }

    /// Where the entry of a kernel file is or would be; none where nothing is kept.
    pub fn path(
        &self,
        sources: &Sources,
        file: &str,
        architecture: u32,
        dtype: DType,
    ) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let key = key(sources, file, architecture, dtype)?;
        let flat = file.replace('/', "_");
        Ok(Some(folder.join(format!("{flat}-sm_{architecture}-{dtype}-{key}.cubin"))))
    }
}

/// A hash of all that machine code depends on.
fn key(sources: &Sources, file: &str, architecture: u32, dtype: DType) -> Result<String> {
    let text = format!("{file}.cu");
    let mut names: Vec<&str> = compile::headers(sources).map(|(name, _)| name).collect();
    names.push(&text);
    let mut hash = Parts::behind(sources.hash(&names)?);
    let version = libraries::nvrtc()?.version.clone();
    [version].into_iter().chain(compile::options(architecture, dtype)?).for_each(|part| hash.add(part));
    Ok(hex(&hash.finish()))
}

fn entry(code: &[u8]) -> Vec<u8> {
    let checksum: [u8; CHECKSUM] = Sha256::digest(code).into();
    [MAGIC.as_slice(), &checksum, code].concat()
}

/// The code of an entry, if there is one and it is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (checksum, code) = bytes.strip_prefix(MAGIC.as_slice())?.split_at_checked(CHECKSUM)?;
    let found: [u8; CHECKSUM] = Sha256::digest(code).into();
    (checksum == found && !code.is_empty()).then(|| code.to_vec())
}

/// How many entries a folder has, and their bytes.
pub fn content(folder: &Path) -> (usize, u64) {
    let Ok(entries) = std::fs::read_dir(folder) else { return (0, 0) };
    let cubins =
        entries.filter_map(|e| e.ok()).filter(|e| e.path().extension().is_some_and(|x| x == "cubin"));
    cubins.filter_map(|e| e.metadata().ok()).fold((0, 0), |(count, bytes), m| (count + 1, bytes + m.len()))
}
