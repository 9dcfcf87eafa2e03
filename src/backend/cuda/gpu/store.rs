//! The folders that compiled kernels and measured choices are kept in between runs.

use crate::files;
use std::path::{Path, PathBuf};

/// The environment variable that names the folder instead of the user's cache folder.
pub const FOLDER: &str = "CLIP_ENGINE_CACHE";

/// The folder for everything that is kept: [`FOLDER`], else clip-engine/ in the user's cache folder; none
/// where the environment names neither.
pub fn folder() -> Option<PathBuf> {
    files::path_in(FOLDER).or_else(files::cache_folder)
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
