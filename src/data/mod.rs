//! Photos in, batches of pixels out.
//!
//! A [`Dataset`] knows the photos, their classes and their splits, whatever layout they lie in; [`decode`] and
//! [`Preprocess`] turn one photo into the pixels CLIP expects; a [`Cache`] keeps those pixels in one memory-mapped
//! file, which is what training reads. [`Augmentation`] draws crops of them.

mod augment;
mod cache;
mod dataset;
pub mod decode;
pub mod demo;
mod error;
pub mod flowers102;
mod folder;
mod groups;
mod list;
mod listing;
mod mat;
mod names;
mod opened;
pub mod preprocess;
pub mod resize;
mod shots;
mod split;
mod table;

pub use augment::{Augmentation, larger_side};
pub use cache::{Cache, CacheOptions, MemoryImage, SplitView};
pub(crate) use dataset::is_flowers102_root;
pub use dataset::{Dataset, Item};
pub use error::DataError;
pub use folder::images_below;
pub use groups::Groups;
pub use listing::is_photo;
pub use opened::{DatasetKind, DatasetOptions, Note, Purpose};
pub use preprocess::Preprocess;
pub(crate) use shots::{classes_below, few_shot};
pub(crate) use split::VAL_SHARE;
pub use table::text;

/// A part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// Photos that training learns from.
    Train,
    /// Photos that every epoch is judged by: which one is kept, and when to stop.
    Val,
    /// Photos that the kept epoch is measured on. Some data has none.
    Test,
}

impl Split {
    /// Every split, in the order in which the cache holds them.
    pub const ALL: [Split; 3] = [Split::Train, Split::Val, Split::Test];

    /// The name used on the command line and as folder name.
    pub const fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Split {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Split, DataError> {
        Split::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| DataError::SplitName(name.to_owned()))
    }
}
