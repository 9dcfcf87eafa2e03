//! Unpacks the photos of Flowers-102, and nothing else, whatever an archive holds.

use super::{FetchError, Result};
use crate::progress::Monitor;
use flate2::read::GzDecoder;
use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use tar::{Archive, Entry, EntryType};

/// Bounds of what is unpacked: the real archive has 8,189 photos and 350 MB.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Entries of any kind, those included that are passed over [default: 20,000].
    pub entries: usize,
    /// Bytes of the whole archive once it is inflated [default: 2 GiB].
    pub bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { entries: 20_000, bytes: 2 << 30 }
    }
}

/// Where photos are unpacked before their folder gets its name.
const UNFINISHED: &str = ".unpacking";

/// Unpacks the photos jpg/*.jpg of a .tgz into `folder`/jpg, which is there when all of them are, or not at
/// all. One process at a time may do so in a folder.
pub(crate) fn unpack(archive: &Path, folder: &Path, bounds: Bounds, monitor: &dyn Monitor) -> Result<()> {
    let unfinished = folder.join(UNFINISHED);
    remove(&unfinished)?;
    std::fs::create_dir(&unfinished).map_err(FetchError::io(&unfinished, "create the folder"))?;
    let length = std::fs::metadata(archive).map_err(FetchError::io(archive, "read the file"))?.len();
    monitor.begin_bytes("unpacking", length);
    let unpacked = unpack_photos(archive, &unfinished, bounds, monitor).and_then(|()| sync(&unfinished));
    monitor.finish();
    match unpacked {
        Ok(()) => {
            let photos = folder.join("jpg");
            std::fs::rename(&unfinished, &photos).map_err(FetchError::io(&photos, "name the folder"))
        }
        Err(error) => {
            // Why it is there matters more than that it is.
            let _ = remove(&unfinished);
            Err(error)
        }
    }
}

fn unpack_photos(archive: &Path, folder: &Path, bounds: Bounds, monitor: &dyn Monitor) -> Result<()> {
    let refuse = |problem: String| FetchError::Archive { path: archive.to_path_buf(), problem };
    let file = File::open(archive).map_err(FetchError::io(archive, "read the file"))?;
    let read = Cell::new(0);
    let counted = Counted { inner: BufReader::new(file), count: &read };
    // Headers are read whole, so that the bound is on everything that is inflated.
    let mut tar = Archive::new(GzDecoder::new(counted).take(bounds.bytes));
    let (mut entries, mut photos) = (0, 0);
    let damaged = |e: std::io::Error| refuse(format!("damaged, or larger than {} bytes ({e})", bounds.bytes));
    for entry in tar.entries().map_err(damaged)? {
        if monitor.stopped() {
            return Err(FetchError::Interrupted);
        }
        let mut entry = entry.map_err(damaged)?;
        entries += 1;
        if entries > bounds.entries {
            return Err(refuse(format!("more than {} entries", bounds.entries)));
        }
        if let Some(name) = photo(&entry).map_err(refuse)? {
            let to = folder.join(&name);
            let file = write(&mut entry, &to, archive)?;
            // Unpacked again the photos are the same ones, also to a cache; one that finds other times is built anew.
            if let Ok(modified) = entry.header().mtime() {
                let _ = file.set_modified(UNIX_EPOCH + Duration::from_secs(modified));
            }
            photos += 1;
        }
        monitor.advance(read.take());
    }
    if photos == 0 {
        return Err(refuse("no photos jpg/*.jpg in it".into()));
    }
    Ok(())
}

/// The file name of a photo; None for a folder or another file, which is passed over.
fn photo(entry: &Entry<'_, impl Read>) -> Result<Option<String>, String> {
    let path = entry.path_bytes();
    let name = String::from_utf8_lossy(&path);
    let kind = entry.header().entry_type();
    if !matches!(kind, EntryType::Regular | EntryType::Directory | EntryType::XGlobalHeader) {
        return Err(format!("{name:?} is neither a file nor a folder"));
    }
    if name.starts_with('/') || name.contains(['\\', ':', '\0']) || name.split('/').any(|part| part == "..") {
        return Err(format!("{name:?} leads out of the folder"));
    }
    let plain = name.strip_prefix("./").unwrap_or(&name);
    let file = plain.strip_prefix("jpg/").filter(|file| file.ends_with(".jpg"));
    let file = file.filter(|file| !file.starts_with('.') && !file.contains('/'));
    Ok(file.filter(|_| kind == EntryType::Regular).map(str::to_owned))
}

fn write(entry: &mut impl Read, to: &Path, archive: &Path) -> Result<File> {
    // A second photo of the same name is refused, rather than taking the place of the first.
    let mut file = File::create_new(to).map_err(FetchError::io(to, "create the file"))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = match entry.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => {
                let problem = format!("damaged, or larger than it may be ({e})");
                return Err(FetchError::Archive { path: archive.to_path_buf(), problem });
            }
        };
        std::io::Write::write_all(&mut file, &buffer[..count])
            .map_err(FetchError::io(to, "write the file"))?;
    }
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(FetchError::io(folder, "remove the folder")(e)),
        _ => Ok(()),
    }
}

/// Forces thousands of photos to the disk at once, before their folder says that they are there.
#[cfg(target_os = "linux")]
fn sync(folder: &Path) -> Result<()> {
    let io = |e| FetchError::io(folder, "write the folder")(e);
    let opened = File::open(folder).map_err(io)?;
    rustix::fs::syncfs(opened).map_err(|e| io(e.into()))
}

#[cfg(not(target_os = "linux"))]
fn sync(_folder: &Path) -> Result<()> {
    Ok(())
}

/// Counts what is read.
struct Counted<'a, R> {
    inner: R,
    count: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}
