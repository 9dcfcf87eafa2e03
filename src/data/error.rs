//! Everything that can go wrong between a folder of photos and a batch of pixels.

use super::Split;
use crate::files::FileError;
use crate::tensor::TensorError;
use crate::words::readable;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Errors on the way from photos to pixels. Every message is one line that names the file or the argument, says
/// what is wrong with it and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("{0}; check the path and its permissions")]
    Io(#[from] FileError),
    /// A folder of photos to look at that is none.
    #[error(
        "{}: {found}; name a folder with jpg, jpeg, png, webp, bmp, gif, tif or tiff files",
        path.display()
    )]
    NoImages {
        /// The folder as it was given.
        path: PathBuf,
        /// Description of what is there instead: no folder, no image or no readable one.
        found: String,
    },
    /// A class folder without photos.
    #[error(
        "{}: class folder without images (jpg, png, webp, bmp, gif, tiff){instead}; add images or remove the folder",
        path.display()
    )]
    EmptyClass {
        /// The class folder.
        path: PathBuf,
        /// Files in the place of images, worded to follow "without images"; or nothing.
        instead: String,
    },
    /// A folder, a list, a photo or another file that cannot be used.
    #[error("{}: {}", path.display(), readable(problem))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Fault of the file and what to do, worded to follow its name.
        problem: String,
    },
    /// An option whose value cannot be used.
    #[error("{option}: {}; {remedy}", readable(problem))]
    Option {
        /// Name of the option, with its dashes.
        option: &'static str,
        /// Fault of the value.
        problem: String,
        /// Advice on how to correct it.
        remedy: &'static str,
    },
    /// A photo that a list names is not there.
    #[error("{}: photo {number} is in setid.mat but missing on disk; unpack 102flowers.tgz again", path.display())]
    PhotoMissing {
        /// Where the photo should be.
        path: PathBuf,
        /// Its number in the data set, counted from 1.
        number: usize,
    },
    /// A photo that cannot be decoded.
    #[error("{}: {reason}; repair or remove the file", path.display())]
    Decode {
        /// The photo.
        path: PathBuf,
        /// Message of the decoder, or why no decoder was asked.
        reason: String,
    },
    /// A photo in a form that the engine has no decoder for.
    #[error("{}: {what} is not read; convert it to {to}", path.display())]
    NotRead {
        /// The photo.
        path: PathBuf,
        /// The form, worded to begin a sentence: `a HEIC image`.
        what: String,
        /// A form that is read.
        to: &'static str,
    },
    /// A photo larger than any that could be meant.
    #[error(
        "{}: {width} x {height} pixels is over the limit of {limit} pixels; scale the image down or remove the file",
        path.display()
    )]
    TooLarge {
        /// The photo.
        path: PathBuf,
        /// Its width in pixels, by its header.
        width: u64,
        /// Its height in pixels, by its header.
        height: u64,
        /// The most pixels, width times height, that are decoded.
        limit: u64,
    },
    /// A photo that cannot be decoded, met while a cache was built.
    #[error("{0}, or pass --skip-bad-images to leave such files out")]
    BadImage(#[source] Box<DataError>),
    /// Nothing is left of a split once its bad images are left out.
    #[error("{}: no readable image is left in the {split} split ({skipped} skipped); repair the files", root.display())]
    NothingLeft {
        /// The folder of the data.
        root: PathBuf,
        /// The first split of which nothing is left.
        split: Split,
        /// Images left out of this split and of those before it.
        skipped: usize,
    },
    /// The cache cannot hold this element type.
    #[error("--dtype {0}: the cache holds u8, f16 or f32; choose one of them")]
    DType(crate::tensor::DType),
    /// A cache file that is damaged or of another version.
    #[error("{}: not a usable cache file: {reason}; delete it and run engine prep again", path.display())]
    Cache {
        /// The cache file.
        path: PathBuf,
        /// Fault of the file.
        reason: String,
    },
    /// The file system of the cache cannot hold it.
    #[error(
        "{}: disk full: the cache needs {needed} bytes; free some space or choose another folder with --cache",
        path.display()
    )]
    DiskFull {
        /// The cache file that was to be written.
        path: PathBuf,
        /// Bytes of all its pixels and of its fixed start.
        needed: u64,
    },
    /// The user asked to stop.
    #[error("interrupted, nothing was written; run the same command again to start over")]
    Interrupted,
    /// An image number beyond the end of a split.
    #[error("image {index} of a split of {len}; indices run from 0 to {len} - 1")]
    Index {
        /// The number that was asked for, counted from 0.
        index: usize,
        /// Images of the split.
        len: usize,
    },
    /// An image in memory that does not fit its cache.
    #[error("generated image {name:?}: {reason}; generate it with the cache's size and classes")]
    Memory {
        /// The image's [`MemoryImage::name`](super::MemoryImage::name).
        name: String,
        /// Property that does not fit: the number of bytes, or the label.
        reason: String,
    },
    /// Images of another shape or element type.
    #[error("images: {0}")]
    Tensor(#[from] TensorError),
    /// A class that cannot be learnt.
    #[error("class {class:?} has no image in the {split} split; add images of it or remove the class")]
    NoImageOfClass {
        /// The first such class, in label order.
        class: String,
        /// The split without an image of it.
        split: Split,
    },
    /// Few-shot training without images.
    #[error("--shots 0 leaves no training image; give at least 1")]
    NoShots,
    /// Augmentation that describes no crop, or images that are no size to cut them from.
    #[error("augmentation: {0}")]
    Augmentation(String),
    /// A split name that is none.
    #[error("{0:?} is not a split; use train, val or test")]
    SplitName(String),
}

impl DataError {
    /// A file or folder that cannot be used.
    pub(super) fn file(path: &Path, problem: impl Into<String>) -> DataError {
        DataError::File { path: path.to_path_buf(), problem: problem.into() }
    }

    /// A folder in no layout that is understood, by what does not fit.
    pub(super) fn layout(path: &Path, found: impl std::fmt::Display) -> DataError {
        DataError::file(
            path,
            format!(
                "{found}; --data takes ROOT/train|val|test/CLASS/*.jpg, one folder of class folders, a list, or a \
                 Flowers-102 root"
            ),
        )
    }

    /// One of Flowers-102's two MATLAB files that cannot be used.
    pub(super) fn mat_file(path: &Path, reason: &str) -> DataError {
        DataError::file(path, format!("{reason}; download the file again"))
    }

    /// Wraps an operating system error for `map_err`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> DataError {
        move |error| FileError::of(path, action)(error).into()
    }
}
