//! Image folders: one folder per class, split by folders or by a seed.

use super::source::{Item, Source, SourceKind};
use super::{DataError, Split};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// File name endings that are taken for images, in lower case. What a file really is, its content says.
const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// Shares of the validation and of the test split when a folder of classes is split by seed.
const VAL_SHARE: f64 = 0.15;
const TEST_SHARE: f64 = 0.15;

/// True when `root` is laid out by splits: a folder `train`, or another split without it.
pub(super) fn has_splits(root: &Path) -> bool {
    Split::ALL.into_iter().any(|split| split_folder(root, split).is_some())
}

/// Opens `root/{train,val,test}/CLASS/*`. `val` may be called `valid` or `validation`; `test` may be
/// missing. Every split must hold the same classes.
pub(super) fn open_splits(root: &Path) -> Result<Source, DataError> {
    let need = |split: Split| {
        split_folder(root, split).ok_or_else(|| DataError::Layout {
            path: root.to_path_buf(),
            found: format!("there is no {split} folder beside the other splits"),
        })
    };
    let train = need(Split::Train)?;
    let val = need(Split::Val)?;
    let class_names = class_names(&train)?;
    let items = |folder: &Path, split: Split| {
        same_classes(root, &class_names, folder, split)?;
        let mut items = Vec::new();
        for (label, class) in (0u32..).zip(&class_names) {
            items.extend(images(&folder.join(class))?.into_iter().map(|path| Item { path, label }));
        }
        Ok::<_, DataError>(items)
    };
    Ok(Source {
        root: root.to_path_buf(),
        kind: SourceKind::SplitFolders,
        train: items(&train, Split::Train)?,
        val: items(&val, Split::Val)?,
        test: match split_folder(root, Split::Test) {
            Some(folder) => items(&folder, Split::Test)?,
            None => Vec::new(),
        },
        class_names,
    })
}

/// Opens `root/CLASS/*` and splits each class 70 / 15 / 15 by `seed`.
///
/// The photos of a class are ordered by the SHA-256 of seed, class and file name; the first of that
/// order are the test photos, the next the validation photos, the rest is for training. So the split
/// depends on names and seed only, and a photo more or less moves few of the others. From three
/// photos on a class has at least one in each split; two go to train and val, a single one to train.
pub(super) fn open_classes(root: &Path, seed: u64) -> Result<Source, DataError> {
    let class_names = class_names(root)?;
    let mut source = Source {
        root: root.to_path_buf(),
        kind: SourceKind::ClassFolders { seed },
        class_names,
        train: Vec::new(),
        val: Vec::new(),
        test: Vec::new(),
    };
    for (label, class) in (0u32..).zip(&source.class_names) {
        let mut ranked: Vec<_> =
            images(&root.join(class))?.into_iter().map(|path| (rank(seed, class, &path), path)).collect();
        ranked.sort();
        let (val, test) = split_counts(ranked.len());
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for (i, (_, path)) in ranked.into_iter().enumerate() {
            let part = if i < test { 2 } else { usize::from(i < test + val) };
            parts[part].push(Item { path, label });
        }
        let [train, val, test] = &mut parts;
        for (all, part) in [(&mut source.train, train), (&mut source.val, val), (&mut source.test, test)] {
            part.sort_by(|a, b| a.path.cmp(&b.path));
            all.append(part);
        }
    }
    Ok(source)
}

/// How many of a class's `n` photos go to val and to test.
fn split_counts(n: usize) -> (usize, usize) {
    let share = |share: f64| (n as f64 * share).round() as usize;
    match n {
        0 | 1 => (0, 0),
        2 => (1, 0),
        _ => (share(VAL_SHARE).max(1), share(TEST_SHARE).max(1)),
    }
}

/// A photo's place in the order by which its class is split.
fn rank(seed: u64, class: &str, path: &Path) -> [u8; 32] {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((class.len() as u64).to_le_bytes());
    hash.update(class);
    hash.update(name);
    hash.finalize().into()
}

fn split_folder(root: &Path, split: Split) -> Option<PathBuf> {
    let names: &[&str] = match split {
        Split::Train => &["train"],
        Split::Val => &["val", "valid", "validation"],
        Split::Test => &["test"],
    };
    names.iter().map(|name| root.join(name)).find(|folder| folder.is_dir())
}

/// The names of the class folders of `folder`, sorted; at least two.
fn class_names(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    let mut loose_images = false;
    for path in entries(folder)? {
        if path.is_dir() {
            let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| DataError::Layout {
                path: path.clone(),
                found: "the folder's name is not UTF-8".to_owned(),
            })?;
            names.push(name.to_owned());
        } else {
            loose_images |= is_image(&path);
        }
    }
    let found = match names.len() {
        0 if loose_images => "the images lie in the folder itself, not in one folder per class",
        0 => "the folder is empty or holds no images",
        1 => "there is only one class folder",
        _ => {
            names.sort();
            return Ok(names);
        }
    };
    Err(DataError::Layout { path: folder.to_path_buf(), found: found.to_owned() })
}

/// Compares a split's classes with those of train.
fn same_classes(root: &Path, train: &[String], folder: &Path, split: Split) -> Result<(), DataError> {
    let here: BTreeSet<String> = class_names(folder)?.into_iter().collect();
    let missing = |class: &String, present, absent| {
        Err(DataError::ClassMissing { root: root.to_path_buf(), class: class.clone(), present, absent })
    };
    if let Some(class) = train.iter().find(|class| !here.contains(*class)) {
        return missing(class, Split::Train, split);
    }
    if let Some(class) = here.iter().find(|class| train.binary_search(class).is_err()) {
        return missing(class, split, Split::Train);
    }
    Ok(())
}

/// The images directly in a class folder, sorted by name; at least one.
fn images(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let paths: Vec<PathBuf> =
        entries(folder)?.into_iter().filter(|path| is_image(path) && path.is_file()).collect();
    if paths.is_empty() { Err(DataError::EmptyClass { path: folder.to_path_buf() }) } else { Ok(paths) }
}

/// All photos in `root` and its subfolders, in the order of their paths; hidden files and folders are
/// passed over.
///
/// # Errors
/// A missing folder, one that cannot be listed, and one without photos.
pub fn images_below(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    if !root.is_dir() {
        return Err(DataError::NoImages { path: root.to_path_buf(), found: "no such folder" });
    }
    let visible = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
    };
    let mut paths = Vec::new();
    for entry in walkdir::WalkDir::new(root).follow_links(true).into_iter().filter_entry(visible) {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(root).to_path_buf();
            DataError::Io { path, action: "list the folder", source: e.into() }
        })?;
        if entry.file_type().is_file() && is_image(entry.path()) {
            paths.push(entry.into_path());
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(DataError::NoImages { path: root.to_path_buf(), found: "no images in it" });
    }
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    EXTENSIONS.contains(&extension.as_str())
}

/// The entries of a folder, sorted by name, without hidden ones (`.DS_Store`, `._photo.jpg`).
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DataError::io(folder, "list the folder"))? {
        let entry = entry.map_err(DataError::io(folder, "list the folder"))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_of_a_class_gets_a_photo_where_possible() {
        assert_eq!(
            [1, 2, 3, 4, 20, 100].map(split_counts),
            [(0, 0), (1, 0), (1, 1), (1, 1), (3, 3), (15, 15)]
        );
    }
}
