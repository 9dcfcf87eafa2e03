//! What the `--data` argument opens: the photos, their classes and their splits.

use super::{DataError, Split, flowers102, folder};
use std::path::{Path, PathBuf};

/// One photo and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The file, below [`Source::root`].
    pub path: PathBuf,
    /// Index into [`Source::class_names`].
    pub label: u32,
}

/// The layout the photos were found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// `ROOT/{train,val,test}/CLASS/*`.
    SplitFolders,
    /// `ROOT/CLASS/*`, split by this seed.
    ClassFolders {
        /// The one that [`Source::open`] was given.
        seed: u64,
    },
    /// Oxford Flowers-102 with its official split.
    Flowers102,
}

impl SourceKind {
    /// One word for file headers and messages.
    pub const fn name(self) -> &'static str {
        match self {
            SourceKind::SplitFolders => "split-folders",
            SourceKind::ClassFolders { .. } => "class-folders",
            SourceKind::Flowers102 => "flowers-102",
        }
    }
}

/// A labelled, split set of photos on disk. The order of everything is that of the names, so it does
/// not depend on the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The folder that was opened.
    pub root: PathBuf,
    /// The layout of `root`.
    pub kind: SourceKind,
    /// Class names in label order, as the folders are named; underscores are kept.
    pub class_names: Vec<String>,
    /// What training learns from. Never empty in what [`Source::open`] returns.
    pub train: Vec<Item>,
    /// What every epoch is judged by.
    pub val: Vec<Item>,
    /// Empty where the data has no test split.
    pub test: Vec<Item>,
}

/// Whether what is in `path` says itself which photos are for training, so that no seed matters.
pub fn has_own_split(path: &Path) -> bool {
    flowers102::find(path).is_some() || folder::has_splits(path)
}

impl Source {
    /// Finds out which layout `path` has and lists its photos. `seed` matters for a folder of classes
    /// only, where it decides the split.
    ///
    /// # Errors
    /// A missing or empty folder, an unknown layout, a class without images or missing from a split,
    /// and unusable Flowers-102 files.
    pub fn open(path: &Path, seed: u64) -> Result<Source, DataError> {
        let found = std::fs::metadata(path);
        match found {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(DataError::NotFound { path: path.to_path_buf() });
            }
            Err(e) => return Err(DataError::io(path, "open the folder")(e)),
            Ok(m) if !m.is_dir() => return Err(DataError::NotAFolder { path: path.to_path_buf() }),
            Ok(_) => {}
        }
        if let Some(files) = flowers102::find(path) {
            return flowers102::open(path, &files);
        }
        if folder::has_splits(path) {
            return folder::open_splits(path);
        }
        folder::open_classes(path, seed)
    }

    /// The photos of one split.
    pub fn split(&self, split: Split) -> &[Item] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
            Split::Test => &self.test,
        }
    }

    /// The same source with the other splits empty, for a cache of this one alone.
    pub fn only(&self, split: Split) -> Source {
        let keep = |other: Split| if other == split { self.split(split).to_vec() } else { Vec::new() };
        Source {
            root: self.root.clone(),
            kind: self.kind,
            class_names: self.class_names.clone(),
            train: keep(Split::Train),
            val: keep(Split::Val),
            test: keep(Split::Test),
        }
    }

    /// All photos: train, then val, then test.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        Split::ALL.into_iter().flat_map(|split| self.split(split))
    }

    /// Number of photos in all splits.
    pub fn len(&self) -> usize {
        self.train.len() + self.val.len() + self.test.len()
    }

    /// True when there is no photo at all; [`Source::open`] never returns such a source, [`Source::only`] may.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
