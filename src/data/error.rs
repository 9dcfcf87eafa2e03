//! Everything that can go wrong between a folder of photos and a batch of pixels.

use super::Split;
use crate::tensor::TensorError;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What went wrong with the data. Every message is one line that names the file or the argument, says
/// what is wrong with it and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The `--data` argument points nowhere.
    #[error("{}: no such folder; check the path given to --data, or give the word flowers102", path.display())]
    NotFound { path: PathBuf },
    /// The `--data` argument is a file.
    #[error("{}: not a folder; give --data the folder that holds the photos", path.display())]
    NotAFolder { path: PathBuf },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}; check the path and its permissions", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    /// A folder of photos to look at that is none.
    #[error(
        "{}: {found}; name a folder with jpg, jpeg, png, webp, bmp, gif, tif or tiff files",
        path.display()
    )]
    NoImages { path: PathBuf, found: &'static str },
    /// No layout that is understood.
    #[error(
        "{}: {found}; --data takes ROOT/train|val|test/CLASS/*.jpg, one folder of class folders, or a Flowers-102 root",
        path.display()
    )]
    Layout { path: PathBuf, found: String },
    /// A class folder without photos.
    #[error(
        "{}: class folder without images (jpg, jpeg, png, webp, bmp, gif, tif, tiff); add images or remove the folder",
        path.display()
    )]
    EmptyClass { path: PathBuf },
    /// The splits of an image folder do not hold the same classes.
    #[error(
        "{}: class {class:?} is in {present} but has no folder in {absent}; add it there or remove it",
        root.display()
    )]
    ClassMissing { root: PathBuf, class: String, present: Split, absent: Split },
    /// One of Flowers-102's two MATLAB files cannot be used.
    #[error("{}: {reason}; download the file again", path.display())]
    MatFile { path: PathBuf, reason: String },
    /// A photo that a list names is not there.
    #[error("{}: photo {number} is in setid.mat but missing on disk; unpack 102flowers.tgz again", path.display())]
    PhotoMissing { path: PathBuf, number: usize },
    /// A photo that cannot be decoded.
    #[error("{}: {reason}; repair or remove the file", path.display())]
    Decode { path: PathBuf, reason: String },
    /// A photo larger than any that could be meant.
    #[error(
        "{}: {width} x {height} pixels is over the limit of {limit} pixels; scale the image down or remove the file",
        path.display()
    )]
    TooLarge { path: PathBuf, width: u64, height: u64, limit: u64 },
    /// A photo that cannot be decoded, met while a cache was built.
    #[error("{0}, or pass --skip-bad-images to leave such files out")]
    BadImage(#[source] Box<DataError>),
    /// Nothing is left of a split once its bad images are left out.
    #[error("{}: no readable image is left in the {split} split ({skipped} skipped); repair the files", root.display())]
    NothingLeft { root: PathBuf, split: Split, skipped: usize },
    /// The image processor's settings ask for something this engine does not do.
    #[error("{}: {reason}", path.display())]
    Preprocess { path: PathBuf, reason: String },
    /// The cache cannot hold this element type.
    #[error("--dtype {0}: the cache holds u8, f16 or f32; choose one of them")]
    DType(crate::tensor::DType),
    /// A cache file that is damaged or of another version.
    #[error("{}: not a usable cache file: {reason}; delete it and run engine prep again", path.display())]
    Cache { path: PathBuf, reason: String },
    /// The file system of the cache cannot hold it.
    #[error(
        "{}: disk full: the cache needs {needed} bytes; free some space or choose another folder with --cache",
        path.display()
    )]
    DiskFull { path: PathBuf, needed: u64 },
    /// The user asked to stop.
    #[error("interrupted, nothing was written; run the same command again to start over")]
    Interrupted,
    /// An image number beyond the end of a split.
    #[error("image {index} of a split of {len}; indices run from 0 to {len} - 1")]
    Index { index: usize, len: usize },
    /// An image in memory that does not fit its cache.
    #[error("generated image {name:?}: {reason}; generate it with the cache's size and classes")]
    Memory { name: String, reason: String },
    /// A batch buffer of another shape or element type.
    #[error("batch buffer: {0}; allocate it with the shape and type of the cache")]
    Batch(#[from] TensorError),
    /// A class that cannot be learnt.
    #[error("class {class:?} has no image in the {split} split; add images of it or remove the class")]
    NoImageOfClass { class: String, split: Split },
    /// Few-shot training without images.
    #[error("--shots 0 leaves no training image; give at least 1")]
    NoShots,
    /// Fewer images of a class than few-shot training asks for.
    #[error(
        "class {class:?}, the smallest, has {images} training images, --shots {shots} needs more; \
         lower --shots or add images"
    )]
    TooFewImages { class: String, images: usize, shots: usize },
    /// Augmentation that describes no crop.
    #[error("augmentation: {setting} {value} is out of range; give {expected}")]
    Augmentation { setting: &'static str, value: String, expected: &'static str },
    /// Images to cut crops from that are smaller than the model's, or beyond all measure.
    #[error(
        "augmentation: images of {side} pixels to cut crops from; give a size from {least} to {greatest}"
    )]
    LargerSide { side: usize, least: usize, greatest: usize },
    /// A split name that is none.
    #[error("{0:?} is not a split; use train, val or test")]
    SplitName(String),
}

impl DataError {
    /// Wraps an operating system error for `map_err`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> DataError {
        move |source| DataError::Io { path: path.to_path_buf(), action, source }
    }
}
