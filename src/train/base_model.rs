//! What adapters call the model that they were trained on.

use std::path::PathBuf;

/// The name of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseModel {
    /// A repository on the hub, and its revision where that is not the main branch.
    Hub {
        /// `owner/name`.
        repository: String,
        /// A branch, a tag or a commit.
        revision: Option<String>,
    },
    /// A folder of this machine.
    Folder(PathBuf),
    /// Any other name.
    Named(String),
}

impl BaseModel {
    /// By which it is loaded on this machine, the revision aside.
    pub fn name(&self) -> String {
        match self {
            BaseModel::Hub { repository, .. } => repository.clone(),
            BaseModel::Folder(dir) => dir.display().to_string(),
            BaseModel::Named(name) => name.clone(),
        }
    }

    /// Its name and revision on the hub, if it has them.
    pub fn on_hub(&self) -> Option<(&str, Option<&str>)> {
        match self {
            BaseModel::Hub { repository, revision } => Some((repository, revision.as_deref())),
            _ => None,
        }
    }

    /// As others may see it: of a folder the last part, the rest is this machine's.
    pub(crate) fn without_path(&self) -> BaseModel {
        match self {
            BaseModel::Folder(dir) => {
                let name = dir.file_name().map_or("model".into(), |name| name.to_string_lossy());
                BaseModel::Named(name.into_owned())
            }
            other => other.clone(),
        }
    }
}
