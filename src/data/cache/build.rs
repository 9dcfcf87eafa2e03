//! Building a cache: what decides that one is current, and decoding in parallel into a new one.

use super::duplicates::{Content, content_of};
use super::file::{self, Header, PIXELS_AT, PixelType, Skipped, VERSION};
use super::{Cache, CacheOptions, Storage};
use crate::data::decode::{self, SixteenBit};
use crate::data::{DataError, Dataset, Item, Preprocess, Split};
use crate::files;
use crate::hash::{Parts, hex};
use crate::progress::Monitor;
use crate::tensor::DType;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use std::fs::{File, Metadata};
use std::io::{Error as IoError, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) fn open_or_build(
    source: &Dataset,
    preprocess: &Preprocess,
    dtype: DType,
    cache_dir: &Path,
    options: &CacheOptions,
    monitor: &dyn Monitor,
) -> Result<Cache, DataError> {
    let dtype = PixelType::new(dtype)?;
    std::fs::create_dir_all(cache_dir).map_err(DataError::io(cache_dir, "make the cache folder"))?;
    let fingerprint = fingerprint(source, preprocess, dtype);
    let path = cache_dir.join(file_name(source, preprocess, dtype));
    match file::open(&path) {
        Ok((header, mapping)) => {
            let complete = header.skipped.is_empty() || options.skip_bad_images;
            if header.fingerprint == fingerprint && complete {
                report(&header, options, monitor)?;
                return Ok(Cache { header, storage: Storage::Mapped(mapping), reused: true });
            }
        }
        Err(DataError::Io(error)) if error.source.kind() == ErrorKind::NotFound => {}
        Err(DataError::Cache { path, reason }) => {
            monitor
                .warn(&format!("{}: not a usable cache file: {reason}; building it again", path.display()));
        }
        Err(error) => return Err(error),
    }
    let mut header = Header::new(source.class_names.clone(), preprocess.clone(), dtype);
    header.fingerprint = fingerprint;
    header.root = source.root.clone();
    monitor.begin("preparing images", source.len() as u64);
    let built = build(source, header, &path, options, monitor);
    monitor.finish();
    built?;
    let (header, mapping) = file::open(&path)?;
    report(&header, options, monitor)?;
    Ok(Cache { header, storage: Storage::Mapped(mapping), reused: false })
}

/// Says which images were left out, and which are there more than once.
fn report(header: &Header, options: &CacheOptions, monitor: &dyn Monitor) -> Result<(), DataError> {
    if options.said {
        return Ok(());
    }
    if let Some(first) = header.skipped.first() {
        monitor.warn(&format!(
            "left out {} that cannot be decoded; the first: {}",
            header.skipped.len(),
            first.reason
        ));
    }
    let problems = header.duplicates.problems();
    if options.refuse_duplicates
        && let Some(first) = problems.first()
    {
        return Err(DataError::file(&header.root, format!("{first}; remove all but one of them")));
    }
    let warning =
        |problem: &String| monitor.warn(&format!("{problem}; --refuse-duplicates makes it an error"));
    problems.iter().for_each(warning);
    header.sixteen_bit.warning().iter().for_each(|warning| monitor.warn(warning));
    Ok(())
}

/// Writes the cache at `path`: all or nothing.
fn build(
    source: &Dataset,
    mut header: Header,
    path: &Path,
    options: &CacheOptions,
    monitor: &dyn Monitor,
) -> Result<(), DataError> {
    const ACTION: &str = "write the cache";
    let items: Vec<&Item> = source.items().collect();
    let pixels = items.len() as u64 * header.image_bytes();
    // Removed again when dropped, whichever way this function ends early.
    let temporary = temporary_beside(path)?;
    let out = temporary.as_file();
    reserve(out, PIXELS_AT + pixels).map_err(|e| write_error(path, pixels, e))?;
    let Decoded { bad, contents, sixteen_bit } = decode_all(&items, &header, out, path, options, monitor)?;
    header.sixteen_bit = sixteen_bit;

    list_images(source, bad, &mut header)?;
    header.summarise(&contents);
    let json = serde_json::to_vec(&header)
        .map_err(|e| DataError::Cache { path: path.to_path_buf(), reason: e.to_string() })?;
    let end = || -> Result<(), IoError> {
        write_at(out, &json, PIXELS_AT + pixels)?;
        write_at(out, &file::start(pixels, &json), 0)?;
        out.sync_all()
    };
    end().map_err(|e| write_error(path, pixels, e))?;
    files::persist(temporary, path).map_err(DataError::io(path, ACTION))
}

/// Fills in labels, files and rows of the images that are not bad.
fn list_images(source: &Dataset, bad: Vec<(usize, DataError)>, header: &mut Header) -> Result<(), DataError> {
    let mut bad = bad.into_iter().peekable();
    let mut index = 0;
    for split in Split::ALL {
        for item in source.split(split) {
            let file = relative(source, item).to_string_lossy().into_owned();
            match bad.next_if(|(bad, _)| *bad == index) {
                Some((_, error)) => header.skipped.push(Skipped { file, reason: error.to_string() }),
                None => header.push(split, file, item.label, index as u64),
            }
            index += 1;
        }
        if header.range(split).is_empty() && !source.split(split).is_empty() {
            let (root, skipped) = (source.root.clone(), header.skipped.len());
            return Err(DataError::NothingLeft { root, split, skipped });
        }
    }
    Ok(())
}

/// Outcome of decoding the images.
struct Decoded {
    /// Images that cannot be decoded, in order, each with its error.
    bad: Vec<(usize, DataError)>,
    /// Content of every image, also of a bad one that could be read.
    contents: Vec<Content>,
    sixteen_bit: SixteenBit,
}

/// Decodes every image and writes it at its place. Returns the bad ones, in order, when they are to be
/// skipped; otherwise the first of them is the error, whatever the order in which threads met them. And which
/// are of 16-bit grey.
fn decode_all(
    items: &[&Item],
    header: &Header,
    out: &File,
    path: &Path,
    options: &CacheOptions,
    monitor: &dyn Monitor,
) -> Result<Decoded, DataError> {
    let size = header.image_bytes();
    let total = items.len() as u64 * size;
    let failure = Failure::default();
    let skipped = Mutex::new(Vec::new());
    let deep = Mutex::new(Vec::new());
    let one = |converter: &mut Converter, index: usize, item: &Item, content: &mut Content| {
        if monitor.stopped() || failure.is_before(index) {
            return;
        }
        let photo = decode::read(&item.path).and_then(|bytes| {
            *content = content_of(&bytes);
            header.preprocess.read(&item.path, &bytes)
        });
        match photo {
            Ok((pixels, sixteen_bit)) => {
                if let Some(largest) = sixteen_bit {
                    lock(&deep).push((index, largest));
                }
                let bytes = converter.convert(header, pixels);
                if let Err(error) = write_at(out, bytes, PIXELS_AT + index as u64 * size) {
                    // Ends everything, so it counts as the first.
                    failure.record(0, write_error(path, total, error));
                }
            }
            Err(error) if options.skip_bad_images => lock(&skipped).push((index, error)),
            Err(error) => failure.record(index, DataError::BadImage(Box::new(error))),
        }
        monitor.advance(1);
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .build()
        .map_err(|e| DataError::io(path, "start threads for the cache")(IoError::other(e)))?;
    let mut contents = vec![Content::default(); items.len()];
    pool.install(|| {
        items
            .par_iter()
            .zip(&mut contents)
            .enumerate()
            .for_each_init(Converter::default, |converter, (index, (item, content))| {
                one(converter, index, item, content)
            });
    });
    if monitor.stopped() {
        return Err(DataError::Interrupted);
    }
    failure.into_result()?;
    let mut skipped = skipped.into_inner().unwrap_or_else(PoisonError::into_inner);
    skipped.sort_by_key(|(index, _)| *index);
    let mut deep = deep.into_inner().unwrap_or_else(PoisonError::into_inner);
    deep.sort_unstable();
    let mut sixteen_bit = SixteenBit::default();
    for (index, largest) in deep {
        sixteen_bit.add(&items[index].path, largest);
    }
    Ok(Decoded { bad: skipped, contents, sixteen_bit })
}

/// The first failure by position, kept so that images after it need not be decoded.
struct Failure {
    position: AtomicUsize,
    first: Mutex<Option<(usize, DataError)>>,
}

impl Default for Failure {
    fn default() -> Self {
        Failure { position: AtomicUsize::new(usize::MAX), first: Mutex::new(None) }
    }
}

impl Failure {
    fn is_before(&self, index: usize) -> bool {
        self.position.load(Ordering::Relaxed) < index
    }

    fn record(&self, index: usize, error: DataError) {
        let mut first = lock(&self.first);
        if first.as_ref().is_none_or(|(known, _)| index < *known) {
            *first = Some((index, error));
            self.position.store(index, Ordering::Relaxed);
        }
    }

    fn into_result(self) -> Result<(), DataError> {
        match self.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns cropped pixels into the bytes that are stored; one per thread, for its buffers.
#[derive(Default)]
struct Converter {
    pixels: Vec<u8>,
    values: Vec<f32>,
    halves: Vec<f16>,
}

impl Converter {
    fn convert(&mut self, header: &Header, pixels: Vec<u8>) -> &[u8] {
        self.pixels = pixels;
        if header.dtype == PixelType::U8 {
            return &self.pixels;
        }
        self.values.resize(self.pixels.len(), 0.0);
        header.preprocess.normalise(&self.pixels, &mut self.values);
        if header.dtype == PixelType::F32 {
            return bytemuck::cast_slice(&self.values);
        }
        self.halves.resize(self.values.len(), f16::ZERO);
        self.halves.convert_from_f32_slice(&self.values);
        bytemuck::cast_slice(&self.halves)
    }
}

/// A hash of everything the pixels, labels and splits follow from. Photos count by their names and by what a file
/// system knows of a file: size, times and its number there, of which the time of its last change is nobody's to set.
/// Renamed folders and files put in the place of others show in it, whatever their sizes and modification times.
fn fingerprint(source: &Dataset, preprocess: &Preprocess, dtype: PixelType) -> String {
    let mut hash = Parts::default();
    settings(&mut hash, source, preprocess, dtype);
    for name in &source.class_names {
        hash.add(name.as_bytes());
    }
    for split in Split::ALL {
        hash.add(split.name().as_bytes());
        for item in source.split(split) {
            hash.add(relative(source, item).as_os_str().as_encoded_bytes());
            hash.add(item.label.to_le_bytes());
            // One that cannot be reached is a bad image.
            let metadata = std::fs::metadata(&item.path).ok();
            hash.add(metadata.as_ref().map_or([0; 4], identity).map(u64::to_le_bytes).concat());
        }
    }
    hex(&hash.finish())
}

/// Size, times and number of a file.
#[cfg(unix)]
fn identity(metadata: &Metadata) -> [u64; 4] {
    use std::os::unix::fs::MetadataExt;
    let nanoseconds =
        |seconds: i64, rest: i64| (seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(rest as u64);
    let modified = nanoseconds(metadata.mtime(), metadata.mtime_nsec());
    let changed = nanoseconds(metadata.ctime(), metadata.ctime_nsec());
    [metadata.len(), modified, changed, metadata.ino()]
}

/// Size and times of a file.
#[cfg(not(unix))]
fn identity(metadata: &Metadata) -> [u64; 4] {
    let nanoseconds = |time: std::io::Result<std::time::SystemTime>| {
        time.ok()
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |d| d.as_nanos() as u64)
    };
    [metadata.len(), nanoseconds(metadata.modified()), nanoseconds(metadata.created()), 0]
}

/// Hashes the settings that tell caches of the same photos apart: layout, seed of the split, preprocessing and
/// element type.
fn settings(hash: &mut Parts, source: &Dataset, preprocess: &Preprocess, dtype: PixelType) {
    let seed = source.drawn.unwrap_or_default();
    hash.add(VERSION.to_le_bytes());
    hash.add(source.kind.name().as_bytes());
    hash.add(seed.to_le_bytes());
    hash.add(DType::from(dtype).name().as_bytes());
    hash.add(format!("{:?}, {:?}", preprocess.resize(), preprocess.orientation()).as_bytes());
    hash.add((preprocess.image_size() as u64).to_le_bytes());
    for value in preprocess.mean().into_iter().chain(preprocess.std()) {
        hash.add(value.to_bits().to_le_bytes());
    }
}

/// Stable for one dataset, preprocessing, type and choice of splits, so that a newer cache replaces the older.
fn file_name(source: &Dataset, preprocess: &Preprocess, dtype: PixelType) -> String {
    let mut hash = Parts::default();
    let settled = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let root = settled(&source.root);
    hash.add(root.as_os_str().as_encoded_bytes());
    // Several lists may be of photos in one folder.
    hash.add(settled(&source.origin).as_os_str().as_encoded_bytes());
    settings(&mut hash, source, preprocess, dtype);
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(40).collect();
    // A cache of one split alone lies beside that of all, also where their images are of one size.
    let filled: Vec<Split> =
        Split::ALL.into_iter().filter(|&split| !source.split(split).is_empty()).collect();
    let only = if let [split] = filled[..] { format!("-{split}") } else { String::new() };
    let (side, dtype) = (preprocess.image_size(), DType::from(dtype));
    format!("{plain}{only}-{side}px-{dtype}-{}.pixels", hex(&hash.finish()[..8]))
}

fn relative<'a>(source: &Dataset, item: &'a Item) -> &'a Path {
    item.path.strip_prefix(&source.root).unwrap_or(&item.path)
}

/// How a cache in the making is named.
const PREFIX: &str = ".preparing-";

/// A new file beside `path`, locked for as long as it is open.
fn temporary_beside(path: &Path) -> Result<tempfile::NamedTempFile, DataError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    remove_abandoned(folder);
    let file = files::beside(path, PREFIX).map_err(DataError::io(folder, "write a cache in the folder"))?;
    // A file system without locks only loses the tidying up.
    let _ = file.as_file().try_lock();
    Ok(file)
}

/// Removes what a killed process left half-made: such files are as large as a whole cache. The lock says
/// that nobody is writing one; the age, that nobody is about to lock it.
fn remove_abandoned(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let ours = files::has_affixes(&entry.file_name(), PREFIX);
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
        if ours && age.is_some_and(|age| age > Duration::from_secs(60)) {
            let unlocked = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
            if unlocked {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Takes `length` bytes of disk before anything is decoded, where the system can.
fn reserve(file: &File, length: u64) -> Result<(), IoError> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, length) {
            Ok(()) => return Ok(()),
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => return Err(error.into()),
            // Not every file system can; the writes then tell.
            Err(_) => {}
        }
    }
    file.set_len(length)
}

/// Tells a full disk from other failures.
fn write_error(path: &Path, pixels: u64, error: IoError) -> DataError {
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    if full.contains(&error.kind()) {
        return DataError::DiskFull { path: path.to_path_buf(), needed: PIXELS_AT + pixels };
    }
    DataError::io(path, "write the cache")(error)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> Result<(), IoError> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> Result<(), IoError> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}
