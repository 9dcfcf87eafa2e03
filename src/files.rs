//! Files as all of the crate writes them: whole or not there, written beside, synced, renamed. And where the user's
//! caches are, and locks between processes.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Refusal of the operating system. The error that this is a part of says what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}: {source}", path.display())]
pub struct FileError {
    /// The file or folder.
    pub path: PathBuf,
    /// Attempted action, worded to follow "cannot": `read the image`.
    pub action: &'static str,
    /// Error that the operating system gave.
    pub source: io::Error,
}

impl FileError {
    /// Wraps an operating system error for `map_err`.
    pub(crate) fn of(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError { path: path.to_path_buf(), action, source }
    }
}

type Result<T> = std::result::Result<T, FileError>;

const WRITE: &str = "write the file";

/// How the names of files begin and end that have not got their own yet.
const PREFIX: &str = ".engine-";
const SUFFIX: &str = ".tmp";

/// A file whose contents are on the disk already, under another name. Without [`Staged::persist`] it is removed.
pub struct Staged {
    file: NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Writes `bytes` beside `path` and syncs them.
    pub fn new(path: &Path, bytes: &[u8]) -> Result<Self> {
        let written = beside(path, PREFIX).and_then(|mut file| {
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            Ok(file)
        });
        Ok(Staged { file: written.map_err(FileError::of(path, WRITE))?, path: path.to_path_buf() })
    }

    /// Gives the file its name, so that a reader, or a crash at any moment, finds the old file or this one.
    pub fn persist(self) -> Result<()> {
        persist(self.file, &self.path).map_err(FileError::of(&self.path, WRITE))
    }
}

/// Writes a whole file or none.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    Staged::new(path, bytes)?.persist()
}

/// Writes a file of a cache, which its owner alone may read and write. A reader finds the old file or this one. It is not
/// synced: what can be made again is not waited for, and after a crash of the whole machine a reader may find it spoilt.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempfile_in(folder_of(path));
    let written = file.and_then(|mut file| {
        file.write_all(bytes)?;
        Ok(file.persist(path)?)
    });
    written.map(drop).map_err(FileError::of(path, WRITE))
}

/// Appends to a file of a cache, which its owner alone may read and write, in a single write: what other processes
/// append comes before it or behind it. It is not synced, as in [`write_private`].
pub(crate) fn append_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let written = options.open(path).and_then(|mut file| file.write(bytes));
    let whole = written
        .and_then(|count| if count == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) });
    whole.map_err(FileError::of(path, WRITE))
}

/// A new file in the folder of `path`, with the rights of any other: the user's umask decides.
pub(crate) fn beside(path: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).suffix(SUFFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder_of(path))
}

/// Gives a synced file of [`beside`] its name.
pub(crate) fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.persist(path)?;
    sync_folder_of(path);
    Ok(())
}

/// Forces a rename itself to the disk; not every file system lets a folder be synced.
pub(crate) fn sync_folder_of(path: &Path) {
    if let Ok(folder) = File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the folder that a file is to lie in, where it is missing.
pub(crate) fn make_folder_of(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    std::fs::create_dir_all(folder).map_err(FileError::of(folder, "create the folder"))
}

/// Gives a file the rights of any other new one.
pub(crate) fn share(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, beside(path, PREFIX)?.as_file().metadata()?.permissions())
}

/// The bytes of a file; none of one that has more than `most`.
pub(crate) fn read_up_to(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > most {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // It may grow meanwhile, or say no length.
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// Whether `name` is that of a file which was being written by a process that gives such names `prefix`.
pub(crate) fn has_affixes(name: &OsStr, prefix: &str) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(SUFFIX))
}

/// Whether `name` is that of a [`Staged`] file.
pub(crate) fn is_unfinished(name: &OsStr) -> bool {
    has_affixes(name, PREFIX)
}

/// Removes the [`Staged`] files that a killed process left in `folder`. No other process may be at work there.
pub(crate) fn remove_unfinished(folder: &Path) -> Result<()> {
    // Without the folder, or the right to list it, there is nothing to tidy up.
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    entries.flatten().filter(|entry| is_unfinished(&entry.file_name())).try_for_each(|e| remove(&e.path()))
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(FileError::of(path, "remove the file")(e)),
        _ => Ok(()),
    }
}

/// The file `path` to be locked, made with its folder where it is missing. A lock goes with its process, however that
/// ends.
pub(crate) fn lock_file(path: &Path) -> Result<File> {
    make_folder_of(path)?;
    OpenOptions::new().create(true).append(true).open(path).map_err(FileError::of(path, "open the lock"))
}

/// The folder of all programs' caches by the variables that `get` knows.
pub(crate) fn user_caches(get: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    get("XDG_CACHE_HOME").or_else(|| get("HOME").map(|home| home.join(".cache")))
}

/// clip-engine/ in the user's cache folder; none where the environment names neither XDG_CACHE_HOME nor HOME.
pub fn cache_folder() -> Option<PathBuf> {
    user_caches(path_in).map(|caches| caches.join("clip-engine"))
}

/// The path in an environment variable; an empty one is none.
pub(crate) fn path_in(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
