//! Which files of a folder are photos: the one answer for training, predicting and embedding.
//!
//! A file is a photo by its ending, in any case, and where it has none by its first bytes. What cannot be reached is
//! listed too, so that decoding it says why: a link to nothing, a folder that may not be read.

use super::DataError;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// File name endings that are taken for photos, in lower case. What a file really is, its content says.
const PHOTOS: [&str; 14] =
    ["jpg", "jpeg", "jfif", "jpe", "jif", "pjpeg", "pjp", "png", "webp", "bmp", "dib", "gif", "tif", "tiff"];

/// Endings of what somebody may take for photos, and the engine does not read.
const NOT_READ: [&str; 36] = [
    "heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "jpx", "ico", "icns", "tga", "dds", "qoi", "ppm",
    "pgm", "pbm", "pnm", "exr", "hdr", "svg", "psd", "raw", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2",
    "raf", "mp4", "mov", "m4v", "avi", "mkv", "webm",
];

/// Folders that programs leave behind; hidden ones are passed over anyway.
const LEFT_BEHIND: [&str; 5] =
    ["__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"];

/// How much of a file without an ending is looked at.
const START: u64 = 16;

/// How many files that are no photos, but may have been meant as such, were met, by their endings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LeftOut(BTreeMap<String, usize>);

impl LeftOut {
    /// True when there was none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the files of another place.
    pub fn add(&mut self, other: &LeftOut) {
        for (ending, count) in &other.0 {
            *self.0.entry(ending.clone()).or_default() += count;
        }
    }

    /// The one warning, where there is something to warn of.
    pub fn warning(&self) -> Option<String> {
        (!self.is_empty())
            .then(|| format!("left out {self} of a kind that is not read; convert to JPEG or PNG"))
    }
}

/// As in "3 .heic and 1 .mp4 files".
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(ending, count)| format!("{count} .{ending}")).collect();
        let one = self.0.values().sum::<usize>() == 1;
        write!(f, "{} {}", parts.join(", "), if one { "file" } else { "files" })
    }
}

/// The photos of a folder.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Photos in the order of their paths.
    pub photos: Vec<PathBuf>,
    /// Files that are no photos, and may have been meant as such.
    pub left_out: LeftOut,
}

impl Listing {
    /// Lists the photos in `root` and its subfolders; hidden files and folders, and what programs leave behind, are
    /// passed over.
    ///
    /// # Errors
    /// A folder `root` that cannot be listed. What else cannot be read is among the photos.
    pub fn below(root: &Path) -> Result<Listing, DataError> {
        let mut listing = Listing::default();
        let walk = WalkDir::new(root).follow_links(true).into_iter();
        let seen = |entry: &walkdir::DirEntry| {
            entry.depth() == 0
                || !(is_hidden(entry.file_name())
                    || entry.file_type().is_dir() && is_left_behind(entry.path()))
        };
        let mut walk = walk.filter_entry(seen);
        while let Some(entry) = walk.next() {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {
                    // A link out of the folder and around it would bring in everything.
                    if entry.depth() > 0 && entry.path_is_symlink() && leads_around(entry.path(), root) {
                        walk.skip_current_dir();
                        listing.photos.push(entry.into_path());
                    }
                }
                Ok(entry) => listing.take(entry.into_path()),
                Err(error) if error.depth() == 0 => {
                    return Err(DataError::io(root, "list the folder")(error.into()));
                }
                Err(error) => match error.path() {
                    Some(path) if is_hidden(path.file_name().unwrap_or_default()) => {}
                    // In a loop, or not to be read.
                    Some(folder) if folder.is_dir() => listing.photos.push(folder.to_path_buf()),
                    // A link to nothing.
                    Some(path) => listing.take(path.to_path_buf()),
                    None => {}
                },
            }
        }
        listing.photos.sort_unstable();
        Ok(listing)
    }

    fn take(&mut self, path: PathBuf) {
        match kind(&path) {
            Kind::Photo => self.photos.push(path),
            Kind::NotRead(ending) => *self.left_out.0.entry(ending).or_default() += 1,
            Kind::Other => {}
        }
    }
}

/// Whether a link leads to a folder around `root`.
fn leads_around(link: &Path, root: &Path) -> bool {
    match (link.canonicalize(), root.canonicalize()) {
        (Ok(target), Ok(root)) => root.starts_with(target),
        _ => false,
    }
}

/// Why a listed photo is none to open: a link to nothing, a folder. None where it is a file.
pub(super) fn obstacle(path: &Path) -> Option<String> {
    match (std::fs::metadata(path), std::fs::read_link(path)) {
        (Err(error), Ok(target)) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("a link to {}, which is not there", target.display()))
        }
        (Ok(found), Ok(target)) if found.is_dir() => {
            Some(format!("a link to {}, a folder around it", target.display()))
        }
        (Ok(found), _) if found.is_dir() => {
            Some("a folder that cannot be listed; check its permissions".to_owned())
        }
        (Ok(found), _) if !found.is_file() => Some("not a regular file".to_owned()),
        _ => None,
    }
}

/// The entries of a folder in the order of their names, without hidden ones and what programs leave behind.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    const ACTION: &str = "list the folder";
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DataError::io(folder, ACTION))? {
        let entry = entry.map_err(DataError::io(folder, ACTION))?;
        let path = entry.path();
        let file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_hidden(&entry.file_name()) && (file || !path.is_dir() || !is_left_behind(&path)) {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// True for what a listing takes for a photo.
pub fn is_photo(path: &Path) -> bool {
    matches!(kind(path), Kind::Photo)
}

/// The endings by which a name in a list may have to be completed.
pub(super) fn endings() -> impl Iterator<Item = &'static str> {
    PHOTOS.into_iter()
}

enum Kind {
    Photo,
    /// With its ending in lower case.
    NotRead(String),
    Other,
}

fn kind(path: &Path) -> Kind {
    let ending = ending(path);
    match ending.as_deref() {
        Some(ending) if PHOTOS.contains(&ending) => Kind::Photo,
        Some(ending) if NOT_READ.contains(&ending) => Kind::NotRead(ending.into()),
        Some(_) => Kind::Other,
        None => of_content(path),
    }
}

/// Photos without an ending, and folders and links that cannot be followed.
fn of_content(path: &Path) -> Kind {
    let mut start = Vec::new();
    let read = match std::fs::metadata(path) {
        // Opening a named pipe would wait for somebody to write to it.
        Ok(found) if found.is_file() => std::fs::File::open(path),
        Ok(_) => return Kind::Other,
        Err(error) => Err(error),
    };
    match read.and_then(|file| file.take(START).read_to_end(&mut start)) {
        Ok(_)
            if image::guess_format(&start)
                .is_ok_and(|format| format.can_read() && format.reading_enabled())
                || start.starts_with(&[0xff, 0xd8, 0xff]) =>
        {
            Kind::Photo
        }
        Ok(_) => Kind::Other,
        Err(_) => Kind::Photo,
    }
}

/// In lower case; none where what follows the last dot is no ending: `IMG.2024`, `photo.of a lake`.
fn ending(path: &Path) -> Option<String> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    let usual = (1..=12).contains(&ending.len())
        && ending.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && ending.bytes().any(|byte| byte.is_ascii_alphabetic());
    usual.then_some(ending)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Folders that hold no class: what programs leave behind, runs and caches of the engine itself.
fn is_left_behind(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    LEFT_BEHIND.contains(&name.as_str()) || is_run(path) || is_cache(path)
}

/// A run directory, or a folder of runs.
fn is_run(path: &Path) -> bool {
    let run = |folder: &Path| folder.join("config.toml").is_file() && folder.join("metrics.jsonl").is_file();
    run(path)
        || (path.file_name() == Some(OsStr::new("runs"))
            && std::fs::read_dir(path)
                .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| run(&entry.path())))))
}

/// A folder of nothing but caches.
fn is_cache(path: &Path) -> bool {
    let Ok(mut entries) = std::fs::read_dir(path) else { return false };
    let mut any = false;
    let all = entries.all(|entry| {
        any = true;
        entry.is_ok_and(|entry| entry.path().extension() == Some(OsStr::new("pixels")))
    });
    any && all
}
