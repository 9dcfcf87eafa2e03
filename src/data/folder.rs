//! Image folders: one folder per class, split by folders or by a seed.

use super::listing::{LeftOut, Listing, entries, is_photo};
use super::opened::{Classes, Note, Photo, Purpose};
use super::{DataError, Split, split};
use crate::words::readable;
use std::path::{Path, PathBuf};

/// Folders that are wrapped around the data at the most.
const WRAPPED: usize = 3;

/// How a folder of folders is to be read.
#[derive(Debug)]
pub(super) enum Layout {
    /// Class folders in folders of splits, in the order of [`Split::ALL`].
    Splits([Option<PathBuf>; 3]),
    /// Class folders.
    Classes,
}

/// Entries that lie directly in a folder.
#[derive(Debug)]
struct Inside {
    folders: Vec<PathBuf>,
    /// Photos beside the folders.
    loose: usize,
    /// A table that may have their labels.
    list: Option<PathBuf>,
}

impl Inside {
    fn of(folder: &Path) -> Result<Inside, DataError> {
        let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) =
            entries(folder)?.into_iter().partition(|path| path.is_dir());
        let ending = |file: &&PathBuf, endings: &[&str]| {
            file.extension()
                .and_then(|e| e.to_str())
                .is_some_and(|e| endings.contains(&e.to_ascii_lowercase().as_str()))
        };
        let list = files.iter().find(|file| ending(file, &["csv", "tsv", "jsonl"])).cloned();
        Ok(Inside { folders, loose: files.iter().filter(|file| is_photo(file)).count(), list })
    }
}

/// The folder that holds the data: `root`, or one that it does nothing but wrap.
pub(super) fn unwrapped(root: &Path, is_data: impl Fn(&Path) -> bool) -> Result<PathBuf, DataError> {
    let mut folder = root.to_path_buf();
    for _ in 0..WRAPPED {
        let inside = Inside::of(&folder)?;
        let [only] = &inside.folders[..] else { break };
        if is_data(&folder) || inside.loose > 0 || split::named(&name_of(only)).is_some() {
            break;
        }
        if !is_data(only) && Inside::of(only)?.folders.is_empty() {
            break;
        }
        folder = only.clone();
    }
    Ok(folder)
}

/// Finds out whether the folders in `root` are splits or classes. They are splits where `train` holds class folders
/// and nothing speaks for `train` being a class itself; for an evaluation another split is enough.
pub(super) fn layout(root: &Path, purpose: Purpose) -> Result<Layout, DataError> {
    let inside = Inside::of(root)?;
    let mut found: [Option<PathBuf>; 3] = [None, None, None];
    let mut others = Vec::new();
    let holds_folders = |folder: &Path| Inside::of(folder).is_ok_and(|inside| !inside.folders.is_empty());
    let mut flat = 0;
    for folder in &inside.folders {
        match split::named(&name_of(folder)) {
            None => others.push(folder),
            Some(split) => {
                flat += usize::from(!holds_folders(folder));
                if let Some(other) = &found[split as usize] {
                    // Two classes may be called so, but no two splits of one kind can be meant.
                    if holds_folders(folder) && holds_folders(other) {
                        let found = format!("{} is the {split} split too", name_of(other));
                        return Err(DataError::layout(folder, found));
                    }
                    continue;
                }
                found[split as usize] = Some(folder.clone());
            }
        }
    }
    let holds = |split: Split| found[split as usize].as_deref().is_some_and(holds_folders);
    let tested = holds(Split::Val) || holds(Split::Test);
    let alone =
        || others.iter().all(|folder| Listing::below(folder).is_ok_and(|found| found.photos.is_empty()));
    if holds(Split::Train) && (tested || alone()) || tested && alone() {
        if !holds(Split::Train) && purpose == Purpose::Train {
            let found = "there is no train folder with class folders beside the other splits";
            return Err(DataError::layout(root, found));
        }
        return Ok(Layout::Splits(found));
    }
    if flat > 1 && others.is_empty() && found[Split::Train as usize].is_some() {
        let found = "the splits hold photos, and no class folders; labels in a list are read by --data LIST";
        return Err(DataError::layout(root, found));
    }
    Ok(Layout::Classes)
}

/// Photos of class folders, and what is to be said of them.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub photos: Vec<Photo>,
    pub notes: Vec<Note>,
    pub left_out: LeftOut,
}

/// The photos in `root/CLASS/`, with subfolders; at least two classes, for an evaluation one.
pub(super) fn open_classes(
    root: &Path,
    split: Option<Split>,
    purpose: Purpose,
    classes: &mut Classes,
) -> Result<Found, DataError> {
    let inside = Inside::of(root)?;
    let layout = |found: String| Err(DataError::layout(root, found));
    match (inside.folders.len(), purpose) {
        (0, _) if inside.loose > 0 => {
            return layout(match &inside.list {
                Some(list) => format!(
                    "the images lie in the folder itself, not in one folder per class; if {} has their labels, give --data {}",
                    name_of(list),
                    list.display()
                ),
                None => "the images lie in the folder itself, not in one folder per class".to_owned(),
            });
        }
        (0, _) => {
            let left_out = Listing::below(root)?.left_out;
            return layout(match left_out.is_empty() {
                true => "the folder is empty or holds no images".to_owned(),
                false => format!("the folder holds {left_out}, which are not read, and no images"),
            });
        }
        (1, Purpose::Train) => return layout("there is only one class folder".to_owned()),
        _ => {}
    }
    let mut found = Found::default();
    if inside.loose > 0 {
        let (count, place) = (inside.loose, root.display());
        let photos = if count == 1 { "photo that lies" } else { "photos that lie" };
        found
            .notes
            .push(Note::warning(format!("left out {count} {photos} beside the class folders of {place}")));
    }
    if split.is_none() {
        found.notes.extend(same_folders(&inside.folders)?.map(Note::warning));
    }
    for folder in &inside.folders {
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
            return Err(DataError::layout(folder, "the folder's name is not UTF-8"));
        };
        let Listing { photos, left_out } = Listing::below(folder)?;
        found.left_out.add(&left_out);
        if photos.is_empty() && split.is_none_or(|split| split == Split::Train) {
            let instead = if left_out.is_empty() { String::new() } else { format!(" but {left_out}") };
            return Err(DataError::EmptyClass { path: folder.clone(), instead });
        }
        if photos.is_empty() {
            // A class that the split lacks.
            continue;
        }
        let class = classes.index(&readable(name));
        found.photos.extend(photos.into_iter().map(|path| Photo::below(folder, path, class, split)));
    }
    Ok(found)
}

/// A warning where every class holds the same folders: these may be the classes, and what holds them splits; or they
/// are splits themselves.
fn same_folders(classes: &[PathBuf]) -> Result<Option<String>, DataError> {
    let names = |folder: &PathBuf| -> Result<Vec<String>, DataError> {
        Ok(Inside::of(folder)?.folders.iter().map(|folder| name_of(folder)).collect())
    };
    let [first, others @ ..] = classes else { return Ok(None) };
    let inside = names(first)?;
    if inside.len() < 2 {
        return Ok(None);
    }
    for other in others {
        if names(other)? != inside {
            return Ok(None);
        }
    }
    let outside: Vec<String> = classes.iter().map(|folder| name_of(folder)).take(3).collect();
    let (outside, some) = (outside.join(", "), inside[..2].join(", "));
    Ok(Some(match inside.iter().all(|name| split::named(name).is_some()) {
        true => format!(
            "every class holds the folders {some}, whose photos are split anew: put the classes into train, val and test"
        ),
        false => format!(
            "{outside} are taken for classes, and all hold the same folders ({some}): if those are the classes, call \
             these train, val and test"
        ),
    }))
}

/// Opens class folders in the folders of splits. What is no split is said.
pub(super) fn open_splits(
    root: &Path,
    folders: &[Option<PathBuf>; 3],
    purpose: Purpose,
    classes: &mut Classes,
) -> Result<Found, DataError> {
    let mut found = Found::default();
    let known = folders.iter().flatten().collect::<Vec<_>>();
    for other in Inside::of(root)?.folders.iter().filter(|folder| !known.contains(folder)) {
        let (name, place) = (name_of(other), root.display());
        found.notes.push(Note::line(format!("left out the folder {name} beside the splits of {place}")));
    }
    for split in Split::ALL {
        let Some(folder) = &folders[split as usize] else { continue };
        let train = split == Split::Train;
        if !train && let Some(problem) = unlabelled(folder, classes)? {
            found.notes.push(Note::warning(format!("left out {}: {problem}", folder.display())));
            continue;
        }
        let of_this = if train { purpose } else { Purpose::Evaluate };
        let of_split = open_classes(folder, Some(split), of_this, classes)?;
        found.photos.extend(of_split.photos);
        found.notes.extend(of_split.notes);
        found.left_out.add(&of_split.left_out);
    }
    Ok(found)
}

/// Why a folder of a split has no labels, if it has none: no folder in it, or a single one that is no class.
fn unlabelled(folder: &Path, classes: &Classes) -> Result<Option<String>, DataError> {
    let inside = Inside::of(folder)?;
    Ok(match &inside.folders[..] {
        [] if inside.loose > 0 => Some(format!("its {} photos lie in no class folders", inside.loose)),
        [] => Some("it is empty".to_owned()),
        [only] if classes.len() > 1 && !classes.contains(&readable(&name_of(only))) => {
            Some(format!("its one folder, {}, is no class", name_of(only)))
        }
        _ => None,
    })
}

fn name_of(path: &Path) -> String {
    readable(&path.file_name().unwrap_or_default().to_string_lossy())
}

/// All photos in `root` and its subfolders, in the order of their paths, and what was left out; hidden files and
/// folders are passed over. What cannot be reached is among them.
///
/// # Errors
/// A missing folder, one that cannot be listed, and one without photos.
pub fn images_below(root: &Path) -> Result<(Vec<PathBuf>, Option<String>), DataError> {
    let none = |found: String| Err(DataError::NoImages { path: root.to_path_buf(), found });
    if !root.is_dir() {
        return none("no such folder".to_owned());
    }
    let Listing { photos, left_out } = Listing::below(root)?;
    match (photos.is_empty(), left_out.is_empty()) {
        (true, true) => none("no images in it".to_owned()),
        (true, false) => none(format!("no images in it, but {left_out}, which are not read")),
        _ => Ok((photos, left_out.warning())),
    }
}
