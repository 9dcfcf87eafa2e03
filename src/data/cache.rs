//! The preprocessed images, ready to be read at random: one memory-mapped file, or memory.
//!
//! A cache holds what one dataset, one preprocessing and one element type give: u8 pixels after the crop,
//! [N, S, S, 3] (exact, and the smallest), or normalised f16 or f32, [N, 3, S, S]. [`Cache::open_or_build`]
//! makes it when it is missing or when a photo, the dataset or the settings have changed. Readers borrow
//! from the mapping, nothing is copied before a batch goes to the device.

mod build;
mod duplicates;
mod file;

use super::decode::SixteenBit;
use super::{DataError, Dataset, Preprocess, Split};
use crate::progress::Monitor;
use crate::tensor::{DType, Rows, Shape, Source, Tensor, View};
use file::{Header, Mapping, PixelType};
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use file::Skipped;

/// How a cache is built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// Leaves out images that cannot be decoded instead of stopping at the first.
    pub skip_bad_images: bool,
    /// Refuses photos that are in two splits or in two classes, byte for byte, instead of warning.
    pub refuse_duplicates: bool,
    /// Another cache of the photos has said what is wrong with them.
    pub said: bool,
    /// Threads that decode; 0 for one per core.
    pub threads: usize,
}

/// One image that was generated rather than read: u8 pixels [S, S, 3] and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryImage {
    /// [S, S, 3], row-major: 3·S² bytes, where S is the size that the cache's preprocessing makes.
    pub pixels: Vec<u8>,
    /// Index into the cache's class names.
    pub label: u32,
    /// Name of the image, as [`SplitView::path`] gives it.
    pub name: String,
    /// The split that it goes to.
    pub split: Split,
}

/// The images of all splits after preprocessing. Immutable; shared between threads freely.
#[derive(Debug)]
pub struct Cache {
    header: Header,
    storage: Storage,
    /// False when it was built just now.
    reused: bool,
}

#[derive(Debug)]
enum Storage {
    Mapped(Mapping),
    Memory(Tensor),
}

impl Cache {
    /// Opens the cache of the dataset `source` in `cache_dir`, building it first unless a current one is there.
    ///
    /// Current means: same classes, labels and splits, the same files with the same sizes, times and
    /// numbers in the file system, the same preprocessing and element type. Building decodes on
    /// [`CacheOptions::threads`] threads into a temporary file beside the target and renames it at the
    /// end; memory does not grow with the number of images, and an error or an interruption leaves
    /// nothing behind.
    ///
    /// # Errors
    /// [`DataError::BadImage`] for the first (in the order of [`Dataset::items`]) image that cannot be
    /// decoded, unless such images are skipped; [`DataError::DiskFull`]; [`DataError::Interrupted`] once
    /// `monitor` says stop; [`DataError::DType`] unless `dtype` is u8, f16 or f32.
    pub fn open_or_build(
        source: &Dataset,
        preprocess: &Preprocess,
        dtype: DType,
        cache_dir: &Path,
        options: &CacheOptions,
        monitor: &dyn Monitor,
    ) -> Result<Cache, DataError> {
        build::open_or_build(source, preprocess, dtype, cache_dir, options, monitor)
    }

    /// Opens a cache file as it is, without looking at the photos it was made from.
    ///
    /// # Errors
    /// A file that cannot be read, or is no complete cache of this version.
    pub fn open(path: &Path) -> Result<Cache, DataError> {
        let (header, mapping) = file::open(path)?;
        Ok(Cache { header, storage: Storage::Mapped(mapping), reused: true })
    }

    /// A cache in memory, of generated images; u8. The images of a split keep their order.
    ///
    /// # Errors
    /// [`DataError::Memory`] for an image of another size than `preprocess` makes, or a label that has
    /// no class name.
    pub fn from_images(
        class_names: Vec<String>,
        preprocess: &Preprocess,
        images: impl IntoIterator<Item = MemoryImage>,
    ) -> Result<Cache, DataError> {
        let side = preprocess.image_size();
        let size = side * side * 3;
        let mut images: Vec<MemoryImage> = images.into_iter().collect();
        images.sort_by_key(|image| image.split);
        let mut pixels = Tensor::zeros([images.len(), side, side, 3], DType::U8);
        let mut header = Header::new(class_names, preprocess.clone(), PixelType::U8);
        let rows = pixels.bytes_mut().chunks_exact_mut(size);
        for ((image, pixels), row) in images.into_iter().zip(rows).zip(0..) {
            let wrong = |reason| DataError::Memory { name: image.name.clone(), reason };
            if image.pixels.len() != size {
                return Err(wrong(format!("{} bytes, expected {size}", image.pixels.len())));
            }
            if image.label as usize >= header.class_names.len() {
                return Err(wrong(format!("label {} of {} classes", image.label, header.class_names.len())));
            }
            pixels.copy_from_slice(&image.pixels);
            header.push(image.split, image.name, image.label, row);
        }
        Ok(Cache { header, storage: Storage::Memory(pixels), reused: false })
    }

    /// The images of one split.
    pub fn split(&self, split: Split) -> SplitView<'_> {
        SplitView { cache: self, split, range: self.header.range(split) }
    }

    /// The images of the train split and those of the val split behind them, as images to train on.
    pub fn train_and_val(&self) -> SplitView<'_> {
        let [train, val] = [Split::Train, Split::Val].map(|split| self.header.range(split));
        SplitView { cache: self, split: Split::Train, range: train.start..val.end }
    }

    /// Class names in label order.
    pub fn class_names(&self) -> &[String] {
        &self.header.class_names
    }

    /// Hash of what the images were made from: every photo's path, size, times and number in the file system, classes,
    /// labels, splits and settings. Empty for images in memory.
    pub fn fingerprint(&self) -> &str {
        &self.header.fingerprint
    }

    /// A hash of the photos' bytes, labels and splits, whatever their names are and wherever they lie: the same for a
    /// copy of them. Empty for images in memory.
    pub fn photos(&self) -> &str {
        &self.header.photos
    }

    /// The images of 16-bit grey, of which the upper 8 bits are kept.
    pub fn sixteen_bit(&self) -> &SixteenBit {
        &self.header.sixteen_bit
    }

    /// How the pixels were made.
    pub fn preprocess(&self) -> &Preprocess {
        &self.header.preprocess
    }

    /// Element type of the images: u8, f16 or f32.
    pub fn dtype(&self) -> DType {
        self.header.dtype.into()
    }

    /// Shape of one image: [S, S, 3] for u8, [3, S, S] for normalised types.
    pub fn image_shape(&self) -> Shape {
        self.header.image_shape()
    }

    /// Shape of a batch of `rows` images, whose rows [`SplitView::images`] finds.
    pub fn batch_shape(&self, rows: usize) -> Shape {
        self.header.batch_shape(rows)
    }

    /// Images in all splits.
    pub fn len(&self) -> usize {
        self.header.labels.len()
    }

    /// True when no split has an image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the images of all splits.
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * self.header.image_bytes()
    }

    /// The images that were left out because they could not be decoded.
    pub fn skipped(&self) -> &[Skipped] {
        &self.header.skipped
    }

    /// The cache file; None for a cache in memory.
    pub fn path(&self) -> Option<&Path> {
        match &self.storage {
            Storage::Mapped(mapping) => Some(mapping.path()),
            Storage::Memory(_) => None,
        }
    }

    /// True when the file was there already and nothing had to be decoded.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// The bytes of image `index`, counted over all splits; None past the end.
    fn image_bytes(&self, index: usize) -> Option<&[u8]> {
        let size = self.header.image_bytes() as usize;
        let row = *self.header.rows.get(index)? as usize;
        let all = match &self.storage {
            Storage::Mapped(mapping) => mapping.pixels(),
            Storage::Memory(pixels) => pixels.bytes(),
        };
        all.get(row * size..(row + 1) * size)
    }
}

/// The images of one split, borrowed from a [`Cache`].
#[derive(Debug, Clone)]
pub struct SplitView<'a> {
    cache: &'a Cache,
    split: Split,
    range: Range<usize>,
}

impl<'a> SplitView<'a> {
    /// The cache that it is of.
    pub fn cache(&self) -> &'a Cache {
        self.cache
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True when the split has no image.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The label of every image.
    pub fn labels(&self) -> &'a [u32] {
        self.cache.header.labels.get(self.range.clone()).unwrap_or_default()
    }

    /// Image `index`, in place: [S, S, 3] u8, or normalised [3, S, S].
    ///
    /// # Errors
    /// An index past the end.
    pub fn image(&self, index: usize) -> Result<View<'a>, DataError> {
        let bytes = self.image_bytes(index)?;
        Ok(View::new(self.cache.image_shape(), self.cache.dtype(), bytes)?)
    }

    /// Image `index` to look at: [S, S, 3] u8 whatever the cache's type.
    ///
    /// # Errors
    /// An index past the end.
    pub fn rgb(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let image = self.image(index)?;
        if image.dtype() == DType::U8 {
            return Ok(image.bytes().to_vec());
        }
        let values = image.to_tensor(DType::F32)?;
        Ok(self.cache.header.preprocess.denormalise(values.typed::<f32>()?))
    }

    /// Refuses a split in which a class has no image: what training needs of the train split. Photos that
    /// were left out count as missing.
    ///
    /// # Errors
    /// [`DataError::NoImageOfClass`] names the first such class.
    pub fn require_every_class(&self) -> Result<(), DataError> {
        let names = self.cache.class_names();
        let mut present = vec![false; names.len()];
        for &label in self.labels() {
            present[label as usize] = true;
        }
        match names.iter().zip(present).find(|(_, present)| !present) {
            Some((class, _)) => Err(DataError::NoImageOfClass { class: class.clone(), split: self.split }),
            None => Ok(()),
        }
    }

    /// Where image `index` came from: the path of the photo, or the name of a generated image. None
    /// past the end.
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        let name = self.cache.header.files.get(self.range.clone())?.get(index)?;
        Some(self.cache.header.root.join(name))
    }

    /// Where the images `indices` lie: the bytes of each. In this order they are the rows of a batch, whose shape is
    /// [`Cache::batch_shape`] of their number and whose type is the cache's.
    ///
    /// # Errors
    /// An index past the end.
    pub fn images(&self, indices: &[usize]) -> Result<Vec<&'a [u8]>, DataError> {
        indices.iter().map(|&index| self.image_bytes(index)).collect()
    }

    /// A copy of the images `indices` as one batch.
    ///
    /// # Errors
    /// An index past the end.
    pub fn batch(&self, indices: &[usize]) -> Result<Tensor, DataError> {
        let (cache, images) = (self.cache, self.images(indices)?);
        let rows = Rows::new(cache.batch_shape(indices.len()), cache.dtype(), &images)?;
        Ok(Source::from(rows).to_tensor(cache.dtype())?)
    }

    fn image_bytes(&self, index: usize) -> Result<&'a [u8], DataError> {
        let past_end = DataError::Index { index, len: self.len() };
        if index >= self.len() {
            return Err(past_end);
        }
        self.cache.image_bytes(self.range.start + index).ok_or(past_end)
    }
}
