//! The cache's file format.
//!
//! ```text
//! 0    magic                 8 bytes
//! 8    version               u32, little endian as all numbers
//! 12   zero                  u32
//! 16   length of the pixels  u64
//! 24   length of the header  u64
//! 32   SHA-256 of the header 32 bytes
//! 64   pixels                image after image, 64-byte aligned
//! …    header                JSON: everything else
//! ```
//! The header comes last because it is known last: which images were left out shows while the pixels are
//! written. The first 64 bytes are written after everything else.

use super::duplicates::{Content, Duplicates, Image, hash_of};
use crate::data::decode::SixteenBit;
use crate::data::resize::CHANNELS;
use crate::data::{DataError, Preprocess, Split};
use crate::tensor::{DType, Shape};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::iter::repeat_n;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"CLIPPIX\n";
/// Goes up with every change of the format or of the pixels.
pub(super) const VERSION: u32 = 3;
/// Where the pixels start.
pub(super) const PIXELS_AT: u64 = 64;

/// The element types a cache can hold, as they are written in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PixelType {
    U8,
    F16,
    F32,
}

impl PixelType {
    pub(super) fn new(dtype: DType) -> Result<PixelType, DataError> {
        match dtype {
            DType::U8 => Ok(PixelType::U8),
            DType::F16 => Ok(PixelType::F16),
            DType::F32 => Ok(PixelType::F32),
            other => Err(DataError::DType(other)),
        }
    }
}

impl From<PixelType> for DType {
    fn from(pixel: PixelType) -> DType {
        match pixel {
            PixelType::U8 => DType::U8,
            PixelType::F16 => DType::F16,
            PixelType::F32 => DType::F32,
        }
    }
}

/// An image that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its path, relative to the dataset's folder.
    pub file: String,
    /// The error it gave.
    pub reason: String,
}

/// Everything but the pixels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Header {
    /// Hash of the photos and settings that the cache was made from; empty for images in memory.
    pub fingerprint: String,
    pub preprocess: Preprocess,
    pub dtype: PixelType,
    pub class_names: Vec<String>,
    /// The folder that `files` are relative to.
    pub root: PathBuf,
    /// Images in train, val and test.
    pub counts: [usize; 3],
    /// Label, file and place among the pixels of every image: train first, then val, then test.
    pub labels: Vec<u32>,
    pub files: Vec<String>,
    pub rows: Vec<u64>,
    pub skipped: Vec<Skipped>,
    /// Hash of the photos' bytes, labels and splits; empty for images in memory.
    pub photos: String,
    /// Photos that are there more than once.
    pub duplicates: Duplicates,
    pub sixteen_bit: SixteenBit,
}

impl Header {
    pub(super) fn new(class_names: Vec<String>, preprocess: Preprocess, dtype: PixelType) -> Header {
        Header {
            fingerprint: String::new(),
            preprocess,
            dtype,
            class_names,
            root: PathBuf::new(),
            counts: [0; 3],
            labels: Vec::new(),
            files: Vec::new(),
            rows: Vec::new(),
            skipped: Vec::new(),
            photos: String::new(),
            duplicates: Duplicates::default(),
            sixteen_bit: SixteenBit::default(),
        }
    }

    /// Appends an image. Images come split by split.
    pub(super) fn push(&mut self, split: Split, file: String, label: u32, row: u64) {
        self.counts[split as usize] += 1;
        self.labels.push(label);
        self.files.push(file);
        self.rows.push(row);
    }

    /// Notes what the contents of the dataset's photos, in its order and with those left out, say: which are the same,
    /// and what tells these photos from others.
    pub(super) fn summarise(&mut self, contents: &[Content]) {
        let splits = Split::ALL.into_iter().flat_map(|split| repeat_n(split, self.range(split).len()));
        let images = splits.zip(&self.labels).zip(self.files.iter().zip(&self.rows));
        let images: Vec<Image<'_>> = images
            .map(|((split, &label), (file, &row))| Image {
                split,
                label,
                file,
                content: contents[row as usize],
            })
            .collect();
        (self.duplicates, self.photos) = (Duplicates::among(&images), hash_of(&images));
    }

    /// The images of a split, counted over all.
    pub(super) fn range(&self, split: Split) -> Range<usize> {
        let start = self.counts[..split as usize].iter().sum();
        start..start + self.counts[split as usize]
    }

    /// Shape of a batch of `rows` images.
    pub(super) fn batch_shape(&self, rows: usize) -> Shape {
        let side = self.preprocess.image_size();
        match self.dtype {
            PixelType::U8 => [rows, side, side, CHANNELS].into(),
            PixelType::F16 | PixelType::F32 => [rows, CHANNELS, side, side].into(),
        }
    }

    /// Shape of one image.
    pub(super) fn image_shape(&self) -> Shape {
        let side = self.preprocess.image_size();
        match self.dtype {
            PixelType::U8 => [side, side, CHANNELS].into(),
            PixelType::F16 | PixelType::F32 => [CHANNELS, side, side].into(),
        }
    }

    /// Bytes of one image.
    pub(super) fn image_bytes(&self) -> u64 {
        (self.image_shape().elements() * DType::from(self.dtype).size()) as u64
    }

    /// Compares the parts with each other and with the length of the pixels.
    fn check(&self, pixels: u64) -> Result<(), &'static str> {
        if !self.preprocess.is_sane() {
            return Err("its image size is out of range");
        }
        let images = self.labels.len();
        let counted = self.counts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        if counted != Some(images) || self.files.len() != images || self.rows.len() != images {
            return Err("its lists differ in length");
        }
        if self.labels.iter().any(|&label| label as usize >= self.class_names.len()) {
            return Err("a label has no class name");
        }
        let size = self.image_bytes();
        let fits =
            |row: u64| row.checked_add(1).and_then(|n| n.checked_mul(size)).is_some_and(|end| end <= pixels);
        if self.rows.iter().all(|&row| fits(row)) { Ok(()) } else { Err("an image lies past its end") }
    }
}

/// A memory-mapped cache file.
#[derive(Debug)]
pub(super) struct Mapping {
    map: Mmap,
    pixels: Range<usize>,
    path: PathBuf,
}

impl Mapping {
    pub(super) fn pixels(&self) -> &[u8] {
        &self.map[self.pixels.clone()]
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a cache file and checks that it is whole.
pub(super) fn open(path: &Path) -> Result<(Header, Mapping), DataError> {
    const ACTION: &str = "open the cache";
    let wrong = |reason: &str| DataError::Cache { path: path.to_path_buf(), reason: reason.to_owned() };
    let file = File::open(path).map_err(DataError::io(path, ACTION))?;
    if !file.metadata().map_err(DataError::io(path, ACTION))?.is_file() {
        return Err(wrong("not a regular file"));
    }
    // SAFETY: the mapping is read-only and its file is never written in place: caches are renamed over,
    // which leaves the mapped one alive. Truncating it from outside while it is in use is the one thing
    // that would be felt, as with every memory-mapped file.
    let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(path, ACTION))?;
    let start = map.first_chunk::<{ PIXELS_AT as usize }>().ok_or_else(|| wrong("the file is too short"))?;
    let (pixels, header_bytes, hash) = parse_start(start).map_err(wrong)?;
    let end = PIXELS_AT.checked_add(pixels).and_then(|n| n.checked_add(header_bytes));
    if end != Some(map.len() as u64) {
        return Err(wrong("the file is cut short or has grown"));
    }
    let pixels_end = (PIXELS_AT + pixels) as usize;
    let json = &map[pixels_end..];
    if Sha256::digest(json)[..] != *hash {
        return Err(wrong("its header is damaged"));
    }
    let header: Header =
        serde_json::from_slice(json).map_err(|e| wrong(&format!("its header is damaged ({e})")))?;
    header.check(pixels).map_err(wrong)?;
    let pixels = PIXELS_AT as usize..pixels_end;
    Ok((header, Mapping { map, pixels, path: path.to_path_buf() }))
}

/// Lengths of pixels and header, and the header's hash.
fn parse_start(start: &[u8; PIXELS_AT as usize]) -> Result<(u64, u64, &[u8]), &'static str> {
    let u32_at = |at: usize| start[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    let u64_at = |at: usize| start[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    if start[..8] != MAGIC {
        return Err("it does not start as one");
    }
    if u32_at(8) != VERSION {
        return Err("it is of another version");
    }
    Ok((u64_at(16), u64_at(24), &start[32..]))
}

/// The first bytes of a file with `pixels` bytes of pixels and this header.
pub(super) fn start(pixels: u64, header: &[u8]) -> [u8; PIXELS_AT as usize] {
    let mut start = [0; PIXELS_AT as usize];
    start[..8].copy_from_slice(&MAGIC);
    start[8..12].copy_from_slice(&VERSION.to_le_bytes());
    start[16..24].copy_from_slice(&pixels.to_le_bytes());
    start[24..32].copy_from_slice(&(header.len() as u64).to_le_bytes());
    start[32..].copy_from_slice(&Sha256::digest(header));
    start
}
