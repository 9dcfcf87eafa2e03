//! Fetching what a name stands for: Flowers-102 by the word `flowers102`, models by their hub id.
//!
//! [`http`] brings one file over a bad line; [`flowers102`] and [`hub`] know which files, and where they are
//! kept. What is there already is used without a network.

mod archive;
mod environment;
mod error;
pub mod flowers102;
pub mod http;
pub mod hub;
mod link;
mod lock;
mod revision;
mod sum;

pub use error::{FetchError, Result};
pub use hub::{Hub, HubId};
pub use sum::Sum;

use std::path::{Path, PathBuf};

/// The word for Flowers-102 in the place of a folder.
pub const FLOWERS102: &str = "flowers102";

/// The model that is taken where none is named, by its id on the hub.
pub const DEFAULT_MODEL: &str = "openai/clip-vit-base-patch32";

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPlace {
    /// A folder of this machine, whether it is there or not.
    Folder(PathBuf),
    /// A repository of the hub.
    Hub(HubId),
}

impl ModelPlace {
    /// The place that a name means which went through [`settled_model`].
    pub fn of(name: &Path) -> ModelPlace {
        match name.to_str().and_then(HubId::parse) {
            Some(id) => ModelPlace::Hub(id),
            None => ModelPlace::Folder(name.to_path_buf()),
        }
    }
}

/// The name of a model as it means the same from any folder: a hub id stays, and everything else becomes an
/// absolute path. A folder that is there wins over a hub id.
pub fn settled_model(name: &Path) -> PathBuf {
    match ModelPlace::of(name) {
        ModelPlace::Hub(_) if !name.is_dir() => name.to_path_buf(),
        _ => absolute(name),
    }
}

/// The name of a data set as it means the same from any folder: `flowers102` stays, and everything else
/// becomes an absolute path. A folder that is there wins over the word.
pub fn settled_data(name: &Path) -> PathBuf {
    if is_flowers102(name) && !name.is_dir() { name.to_path_buf() } else { absolute(name) }
}

/// Whether a name that went through [`settled_data`] means the data set to fetch.
pub fn is_flowers102(name: &Path) -> bool {
    name == Path::new(FLOWERS102)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
