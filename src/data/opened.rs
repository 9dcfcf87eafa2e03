//! What every layout gives, before splits and labels are settled, and what is to be known to open one.

use super::Split;
use super::groups::Groups;
use super::split::VAL_SHARE;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The layout the photos were found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatasetKind {
    /// `ROOT/{train,val,test}/CLASS/**`.
    SplitFolders,
    /// `ROOT/CLASS/**`.
    ClassFolders,
    /// A table of photos and classes.
    List,
    /// Oxford Flowers-102 with its official split.
    Flowers102,
}

impl DatasetKind {
    /// One word for file headers and messages.
    pub const fn name(self) -> &'static str {
        match self {
            DatasetKind::SplitFolders => "split-folders",
            DatasetKind::ClassFolders => "class-folders",
            DatasetKind::List => "list",
            DatasetKind::Flowers102 => "flowers-102",
        }
    }
}

/// Use of the photos, which decides what must be there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Training photos, and validation photos or some to draw from.
    #[default]
    Train,
    /// Any photos of any class.
    Evaluate,
}

/// How [`Dataset::open`](super::Dataset::open) reads what it finds.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetOptions {
    /// Seed of the draw, where photos are drawn into splits.
    pub seed: u64,
    /// Share of the validation split where it is drawn, above 0 and below 1.
    pub val_share: f64,
    /// Groups of photos that stay in one split when splits are drawn.
    pub groups: Option<Groups>,
    /// Where the photos of a list lie, if not beside it.
    pub images: Option<PathBuf>,
    /// A file with the names of the classes.
    pub class_names: Option<PathBuf>,
    /// Use of the photos.
    pub purpose: Purpose,
    /// The classes of a run, in label order, that the photos are to be judged by; they may have fewer.
    pub classes: Option<Vec<String>>,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        DatasetOptions {
            seed: 42,
            val_share: VAL_SHARE,
            groups: None,
            images: None,
            class_names: None,
            purpose: Purpose::Train,
            classes: None,
        }
    }
}

/// The defaults with this seed.
impl From<u64> for DatasetOptions {
    fn from(seed: u64) -> Self {
        DatasetOptions { seed, ..DatasetOptions::default() }
    }
}

/// Something about the photos that a user should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// One line.
    pub text: String,
    /// False for what is only said.
    pub warns: bool,
}

impl Note {
    pub(super) fn line(text: String) -> Note {
        Note { text, warns: false }
    }

    pub(super) fn warning(text: String) -> Note {
        Note { text, warns: true }
    }
}

/// Classes in the order in which they are met.
#[derive(Debug, Default)]
pub(super) struct Classes {
    names: Vec<String>,
    index: HashMap<String, u32>,
}

impl Classes {
    pub fn index(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.index.get(name) {
            return index;
        }
        let index = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.index.insert(name.to_owned(), index);
        index
    }

    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

/// A photo before it is known which split it goes to.
#[derive(Debug)]
pub(super) struct Photo {
    pub path: PathBuf,
    /// Where in the path the name begins by which its class is drawn into splits: that below the class folder.
    pub name_at: u32,
    /// Index into [`Classes`].
    pub class: u32,
    /// Split of the photo, where the data say it.
    pub split: Option<Split>,
    /// Group of the photo, by a column of a list.
    pub group: Option<Box<str>>,
}

impl Photo {
    /// `path` below the folder or list of its class, `base`.
    pub fn below(base: &Path, path: PathBuf, class: u32, split: Option<Split>) -> Photo {
        let whole = path.as_os_str().len();
        let name_at = path.strip_prefix(base).map_or(0, |name| whole - name.as_os_str().len()) as u32;
        Photo { path, name_at, class, split, group: None }
    }

    pub fn name(&self) -> &[u8] {
        &self.path.as_os_str().as_encoded_bytes()[self.name_at as usize..]
    }
}

/// The data before splits and labels are settled.
#[derive(Debug)]
pub(super) struct Opened {
    pub root: PathBuf,
    pub kind: DatasetKind,
    pub classes: Classes,
    pub photos: Vec<Photo>,
    pub notes: Vec<Note>,
}

/// A path below `root` with slashes.
pub(super) fn slashed(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}
