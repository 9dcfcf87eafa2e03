//! The folders that compiled kernels and measured choices are kept in between runs.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The environment variable that names the folder instead of the user's cache folder.
pub const FOLDER: &str = "CLIP_ENGINE_CACHE";

/// The folder for everything that is kept: [`FOLDER`], else clip-engine/ in the user's cache folder; none
/// where the environment names neither.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(FOLDER).or_else(|| {
        let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        base.map(|base| base.join("clip-engine"))
    })
}

/// Why nothing is kept where [`folder`] finds none.
pub fn nowhere() -> String {
    format!("none of {FOLDER}, XDG_CACHE_HOME and HOME is set; nothing is kept")
}

/// Why no file can be made in `folder`, or, while it does not exist, in the folder that it would be made in.
pub fn unwritable(folder: &Path) -> Option<String> {
    let existing = folder.ancestors().find(|path| path.exists())?;
    let problem = tempfile::tempfile_in(existing).err()?;
    Some(format!("{}: {problem}", folder.display()))
}

/// Writes a whole file or none, and the folders it lies in: beside, synced, renamed. A reader, or a crash
/// at any moment, finds the old file or this one.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
