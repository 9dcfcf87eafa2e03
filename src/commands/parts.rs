//! Results of long lists of photos in parts: files of so many photos each, which several processes make side by side and
//! which are gone on with where one was cut off.

use crate::TrainError;
use crate::files::{Staged, write_atomic};
use crate::hash::{Parts as Hash, hex};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

const MANIFEST: &str = "manifest.json";
const TOTAL: &str = "total.json";
/// Ending of the files that tell of finished parts.
const ABOUT: &str = "json";

/// A process among several that share the parts: part p is that of shard p mod N, both from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    index: u64,
    of: u64,
}

impl Shard {
    /// The only one.
    pub const ALL: Shard = Shard { index: 0, of: 1 };

    fn has(self, part: u64) -> bool {
        part % self.of == self.index
    }
}

/// I/N, I from 1.
impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let number = |text: &str| text.parse::<u64>().ok();
        match text.split_once('/').and_then(|(index, of)| Some((number(index)?, number(of)?))) {
            Some((index, of)) if 1 <= index && index <= of => Ok(Shard { index: index - 1, of }),
            _ => Err("not a shard I/N, with I from 1 to N, such as 1/4".into()),
        }
    }
}

/// A folder of parts.
#[derive(Debug)]
pub(crate) struct Parts {
    dir: PathBuf,
    /// Of the files with the results.
    ending: &'static str,
    /// Photos a part; the last may have fewer.
    size: u64,
    shard: Shard,
    /// Whether parts that are there already are kept; otherwise they are in the way.
    resume: bool,
    /// Photos that were listed so far.
    listed: AtomicU64,
    /// Parts that were there.
    kept: AtomicU64,
    written: AtomicU64,
    /// Photos without a result in both.
    bad: AtomicU64,
}

/// What is known of a finished part. Its file is written after that of the results, so that where it is the part is whole.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Finished {
    photos: u64,
    /// A hash of the paths in their order.
    paths: String,
    /// Photos without a result.
    bad: Vec<BadPhoto>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BadPhoto {
    path: String,
    error: String,
}

impl BadPhoto {
    pub fn new(path: &Path, error: impl ToString) -> Self {
        BadPhoto { path: path.to_string_lossy().into_owned(), error: error.to_string() }
    }
}

/// What all parts come to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Total {
    photos: u64,
    parts: u64,
}

/// Photos that follow each other in the list, and which of its parts they are, from 0.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    number: u64,
    pub photos: Vec<PathBuf>,
}

impl Parts {
    /// Opens or makes the folder. `manifest`, an object, is what the results follow from beside the list of photos.
    ///
    /// # Errors
    /// A folder with parts that follow from something else, and one that cannot be written to.
    pub fn open(
        dir: &Path,
        ending: &'static str,
        size: u64,
        shard: Shard,
        resume: bool,
        mut manifest: Value,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "make the folder"))?;
        manifest["part_size"] = size.into();
        manifest["ending"] = ending.into();
        let path = dir.join(MANIFEST);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let known: Value = serde_json::from_slice(&bytes)
                    .map_err(|e| TrainError::file(&path, format!("not JSON ({e}); name another folder")))?;
                let mut keys = manifest.as_object().into_iter().flatten();
                if let Some((key, value)) = keys.find(|(key, value)| known[key.as_str()] != **value) {
                    let known = &known[key.as_str()];
                    let problem = format!(
                        "the parts there have {key} {known}, and these would have {value}; name another folder"
                    );
                    bail!(TrainError::file(&path, problem));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                write_atomic(&path, format!("{manifest:#}\n").as_bytes()).map_err(TrainError::from)?;
            }
            Err(e) => bail!(TrainError::io(&path, "read the file")(e)),
        }
        let [listed, kept, written, bad] = std::array::from_fn(|_| AtomicU64::new(0));
        Ok(Parts { dir: dir.to_path_buf(), ending, size, shard, resume, listed, kept, written, bad })
    }

    /// The parts that are this shard's and not there yet.
    pub fn left<I>(&self, photos: I) -> Left<'_, I> {
        Left { parts: self, photos, number: 0 }
    }

    /// Writes the results of a part, which `store` prepares at the path that it is given; `bad` are the photos without
    /// one, and why.
    pub fn write(
        &self,
        part: Part,
        bad: Vec<BadPhoto>,
        store: impl FnOnce(&Path) -> Result<Staged, TrainError>,
    ) -> Result<(), TrainError> {
        let about = self.file(part.number, ABOUT);
        self.bad.fetch_add(bad.len() as u64, Ordering::Relaxed);
        let finished = Finished { photos: part.photos.len() as u64, paths: hash_of(&part.photos), bad };
        let text = serde_json::to_vec(&finished).map_err(|e| TrainError::file(&about, e.to_string()))?;
        store(&self.file(part.number, self.ending))?.persist()?;
        write_atomic(&about, &text)?;
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn file(&self, part: u64, ending: &str) -> PathBuf {
        self.dir.join(format!("part-{part:06}.{ending}"))
    }

    /// The first finished part of those from `end` on.
    fn behind(&self, end: u64) -> Result<Option<u64>, TrainError> {
        let number = |entry: std::io::Result<std::fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            let (number, ending) = name.to_str()?.strip_prefix("part-")?.split_once('.')?;
            number.parse::<u64>().ok().filter(|&number| ending == ABOUT && number >= end)
        };
        let entries = std::fs::read_dir(&self.dir).map_err(TrainError::io(&self.dir, "read the folder"))?;
        Ok(entries.filter_map(number).min())
    }

    /// What is known of a finished part; none where it is not finished.
    fn finished(&self, part: u64) -> Result<Option<Finished>, TrainError> {
        let path = self.file(part, ABOUT);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| TrainError::file(&path, format!("not what was written ({e}); remove it"))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(TrainError::io(&path, "read the file")(e)),
        }
    }

    /// Whether a part is there already, made of these photos.
    fn has(&self, part: &Part) -> Result<bool, TrainError> {
        let Some(finished) = self.finished(part.number)? else { return Ok(false) };
        let path = self.file(part.number, self.ending);
        if !self.resume {
            return Err(TrainError::file(&path, "there already; --resume keeps it, or name another folder"));
        }
        if (finished.photos, finished.paths) != (part.photos.len() as u64, hash_of(&part.photos)) {
            let problem = "made of other photos than the list has at its place; give the same list, in the same order, \
                           or name another folder";
            return Err(TrainError::file(&path, problem));
        }
        self.kept.fetch_add(1, Ordering::Relaxed);
        self.bad.fetch_add(finished.bad.len() as u64, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes how many photos and parts the whole list comes to, and says what was written and what is there.
    ///
    /// # Errors
    /// Photos without a result, and parts behind the end of the list; everything is written then.
    pub fn conclude(self) -> Result<String> {
        let Parts { listed, kept, written, bad, .. } = &self;
        let [photos, kept, written, bad] =
            [listed, kept, written, bad].map(|count| count.load(Ordering::Relaxed));
        let total = Total { photos, parts: photos.div_ceil(self.size) };
        let text = serde_json::to_vec(&total)?;
        write_atomic(&self.dir.join(TOTAL), &text).map_err(TrainError::from)?;
        if let Some(number) = self.behind(total.parts)? {
            let problem = format!(
                "the list ends before it, with {photos} photos; remove the parts of a longer one, or name another folder"
            );
            bail!(TrainError::file(&self.file(number, ABOUT), problem));
        }
        let there = (0..total.parts).filter(|&part| self.file(part, ABOUT).is_file()).count() as u64;
        let (dir, kept) =
            (self.dir.display(), if kept > 0 { format!(", {kept} kept") } else { String::new() });
        let there = match total.parts - there {
            0 => format!("all {} of {photos} photos are in {dir}", counted(total.parts, "part")),
            missing => {
                format!("{missing} of {} parts are not in {dir} yet: other shards make them", total.parts)
            }
        };
        if bad > 0 {
            bail!(
                "{} without a result, for the reasons in the .json files of their parts; {there}",
                counted(bad, "photo")
            );
        }
        Ok(format!("{} written{kept}; {there}", counted(written, "part")))
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn hash_of(photos: &[PathBuf]) -> String {
    let mut hash = Hash::default();
    photos.iter().for_each(|path| hash.add(path.as_os_str().as_encoded_bytes()));
    hex(&hash.finish())
}

/// See [`Parts::left`].
pub(crate) struct Left<'p, I> {
    parts: &'p Parts,
    photos: I,
    /// Of the part that comes next.
    number: u64,
}

impl<I: Iterator<Item = Result<PathBuf, TrainError>>> Left<'_, I> {
    /// Photos of the parts to come; none where the list has to be read for that.
    pub fn known(&self) -> Option<u64> {
        let (size, (least, most)) = (self.parts.size, self.photos.size_hint());
        let listed = most.filter(|most| *most == least)? as u64;
        let left = |index: &u64| {
            let part = self.number + index;
            self.parts.shard.has(part) && !self.parts.file(part, ABOUT).is_file()
        };
        Some((0..listed.div_ceil(size)).filter(left).map(|index| size.min(listed - index * size)).sum())
    }

    /// The part that comes next in the list, whosever it is; none at its end.
    fn listed(&mut self) -> Result<Option<Part>, TrainError> {
        let size = self.parts.size as usize;
        let photos = self.photos.by_ref().take(size).collect::<Result<Vec<_>, _>>()?;
        self.parts.listed.fetch_add(photos.len() as u64, Ordering::Relaxed);
        let number = self.number;
        self.number += 1;
        Ok((!photos.is_empty()).then_some(Part { number, photos }))
    }
}

impl<I: Iterator<Item = Result<PathBuf, TrainError>>> Iterator for Left<'_, I> {
    type Item = Result<Part, TrainError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.listed() {
                Ok(None) => return None,
                Ok(Some(part)) if !self.parts.shard.has(part.number) => {}
                Ok(Some(part)) => match self.parts.has(&part) {
                    Ok(true) => {}
                    there => return Some(there.map(|_| part)),
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
