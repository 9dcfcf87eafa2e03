//! Photos by a list: a table of paths and classes (CSV, TSV, JSON lines; Hugging Face's metadata among them), or CoOp's
//! `split_*.json`.

use super::opened::{Classes, DatasetKind, DatasetOptions, Note, Opened, Photo, slashed};
use super::table;
use super::{DataError, Split, listing, split};
use crate::words::readable;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Columns of classes, the ones with names first: Hugging Face's `label` may be a number beside a name.
const CLASS: [&str; 9] =
    ["classname", "labelname", "class", "category", "label", "species", "breed", "target", "labels"];
const SPLIT: [&str; 4] = ["split", "set", "subset", "partition"];

/// Names of the lists that Hugging Face's imagefolder reads beside photos.
const METADATA: [&str; 2] = ["metadata.csv", "metadata.jsonl"];

/// One row: a photo as the list names it, its class, and what else the list says.
struct Row<'a> {
    file: &'a str,
    class: &'a str,
    split: Option<Split>,
    group: Option<&'a str>,
}

/// The list that lies beside the photos of a folder, if it has one and no class folders.
fn metadata(folder: &Path) -> Option<PathBuf> {
    METADATA.iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

/// True for a folder with a list beside its photos.
pub(super) fn is_beside(folder: &Path) -> bool {
    metadata(folder).is_some()
}

/// The lists of a folder as Hugging Face lays it out, if there are any: one for all photos, or one in the folder of
/// each split.
pub(super) fn beside(root: &Path) -> Result<Vec<(Option<Split>, PathBuf)>, DataError> {
    if let Some(list) = metadata(root) {
        return Ok(vec![(None, list)]);
    }
    let mut lists = Vec::new();
    for folder in listing::entries(root)?.into_iter().filter(|path| path.is_dir()) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if let (Some(split), Some(list)) = (split::named(&name), metadata(&folder)) {
            lists.push((Some(split), list));
        }
    }
    Ok(lists)
}

/// Opens the lists of [`beside`].
pub(super) fn open_beside(
    root: &Path,
    lists: &[(Option<Split>, PathBuf)],
    options: &DatasetOptions,
) -> Result<Opened, DataError> {
    let mut all = Reader::default();
    let mut notes = Vec::new();
    for (split, list) in lists {
        let folder = list.parent().unwrap_or(root);
        all.read(list, folder, *split)?;
        notes.push(Note::line(format!("classes from {}", list.display())));
    }
    let root = options.images.as_deref().unwrap_or(root);
    all.finish(root, notes, lists.first().map_or(root, |(_, list)| list))
}

/// Opens the list `file`, whose paths are relative to its folder or to `--images`.
pub(super) fn open(file: &Path, options: &DatasetOptions) -> Result<Opened, DataError> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let root = options.images.as_deref().unwrap_or(parent);
    if !root.is_dir() {
        return Err(DataError::Option {
            option: "--images",
            problem: format!("{}: no such folder", root.display()),
            remedy: "name the folder that the list's paths begin in",
        });
    }
    let mut all = Reader::default();
    all.read(file, root, None)?;
    all.finish(root, Vec::new(), file)
}

/// Photos and classes that lists have named so far.
#[derive(Default)]
struct Reader {
    classes: Classes,
    photos: Vec<Photo>,
    unlabelled: usize,
    missing: usize,
}

impl Reader {
    fn read(&mut self, file: &Path, root: &Path, of: Option<Split>) -> Result<(), DataError> {
        each_row(file, &table::text_of_file(file)?, &mut |row| {
            if row.class.is_empty() {
                self.unlabelled += 1;
                return;
            }
            let path = photo(root, &row.file.replace('\\', "/"));
            self.missing += usize::from(std::fs::symlink_metadata(&path).is_err());
            let class = self.classes.index(&readable(row.class));
            let photo = Photo::below(root, path, class, row.split.or(of));
            self.photos.push(Photo { group: row.group.map(Box::from), ..photo });
        })
    }

    /// Takes the folders that all paths begin with for splits, where the list says none, as Hugging Face does.
    fn split_by_folders(&mut self, root: &Path) -> bool {
        let split = |photo: &Photo| {
            let path = slashed(root, &photo.path);
            path.split_once('/').and_then(|(folder, _)| split::named(folder))
        };
        let splits: Option<Vec<Split>> = self.photos.iter().map(split).collect();
        let said = self.photos.iter().any(|photo| photo.split.is_some());
        match splits.filter(|splits| !said && splits.contains(&Split::Train)) {
            Some(splits) => {
                self.photos.iter_mut().zip(splits).for_each(|(photo, split)| photo.split = Some(split));
                true
            }
            None => false,
        }
    }

    /// Drops rows that repeat others, and refuses those that contradict others; how many were dropped.
    fn without_repetitions(&mut self, file: &Path) -> Result<usize, DataError> {
        let all = self.photos.len();
        self.photos.sort_by(|a, b| a.path.cmp(&b.path));
        for pair in self.photos.windows(2) {
            let [a, b] = pair else { continue };
            let problem = match (a.path == b.path, a.class == b.class, a.split == b.split) {
                (false, ..) | (true, true, true) => continue,
                (true, false, _) => {
                    let names: Vec<&str> = self.classes.names().collect();
                    format!("the classes {:?} and {:?}", names[a.class as usize], names[b.class as usize])
                }
                (true, true, false) => "two splits".to_owned(),
            };
            let problem = format!("gives {} {problem}", a.path.display());
            return Err(DataError::file(file, problem));
        }
        self.photos.dedup_by(|b, a| a.path == b.path);
        Ok(all - self.photos.len())
    }

    fn finish(mut self, root: &Path, mut notes: Vec<Note>, file: &Path) -> Result<Opened, DataError> {
        let wrong = |problem: String| Err(DataError::file(file, problem));
        let repeated = self.without_repetitions(file)?;
        if self.split_by_folders(root) {
            notes.push(Note::line("the splits are the folders that the list's paths begin with".to_owned()));
        }
        let Some(first) = self.photos.first() else {
            return wrong("names no photo with a class".to_owned());
        };
        if self.missing == self.photos.len() {
            let (first, root) = (slashed(root, &first.path), root.display());
            return wrong(format!(
                "names photos that are not there, the first {root}/{first}; --images DIR says where they are"
            ));
        }
        let decided = self.photos.iter().filter(|photo| photo.split.is_some()).count();
        if decided > 0 && decided < self.photos.len() {
            let some = self.photos.iter().find(|photo| photo.split.is_none());
            let name = some.map_or_else(String::new, |photo| slashed(root, &photo.path));
            return wrong(format!(
                "says no split for {} of {} photos, the first {name}",
                self.photos.len() - decided,
                self.photos.len()
            ));
        }
        if self.classes.len() < 2 {
            return wrong("has only one class".to_owned());
        }
        if repeated > 0 {
            notes.push(Note::warning(format!("{}: {} rows repeat others", file.display(), repeated)));
        }
        if self.unlabelled > 0 {
            notes.push(Note::warning(format!(
                "{}: left out {} rows without a class",
                file.display(),
                self.unlabelled
            )));
        }
        Ok(Opened {
            root: root.to_path_buf(),
            kind: DatasetKind::List,
            classes: self.classes,
            photos: self.photos,
            notes,
        })
    }
}

/// Hands every row of a list to `take`.
fn each_row(file: &Path, text: &str, take: &mut dyn FnMut(Row<'_>)) -> Result<(), DataError> {
    // A JSON document is CoOp's; JSON lines have more than one.
    if text.trim_start().starts_with('{')
        && let Ok(Value::Object(object)) = serde_json::from_str(text)
        && object.values().any(Value::is_array)
    {
        return each_of_coop(file, &object, take);
    }
    let table = table::parse(file, text)?;
    let (path, class) = (table.column(&table::PATH), table.column(&CLASS));
    let (Some(path), Some(class)) = (path, class) else {
        let header = table.header();
        return Err(table.wrong(format!(
            "needs a column path (or file_name, filename) and a column label (or class); its first line is {header:?}"
        )));
    };
    let (split, group) = (table.column(&SPLIT), table.column(&table::GROUP));
    for row in table.rows() {
        let cell = |column: Option<usize>| column.map(|column| row[column]).filter(|cell| !cell.is_empty());
        let (file, class) = (row[path], row[class]);
        let split = match cell(split) {
            None => None,
            Some(word) => Some(split::named(word).ok_or_else(|| {
                table.wrong(format!("has the split {word:?} for {file}; there are train, val and test"))
            })?),
        };
        if class.starts_with(['[', '{']) {
            return Err(table.wrong(format!("has {class} for a class; a photo has one, in words")));
        }
        if file.is_empty() {
            return Err(table.wrong(format!("has a row without a path, of the class {class:?}")));
        }
        take(Row { file, class, split, group: cell(group) });
    }
    Ok(())
}

/// `{"train": [[path, label, class name], …], "val": …, "test": …}`.
fn each_of_coop(
    file: &Path,
    object: &serde_json::Map<String, Value>,
    take: &mut dyn FnMut(Row<'_>),
) -> Result<(), DataError> {
    let wrong = |problem: String| DataError::file(file, problem);
    for (name, list) in object {
        let split = split::named(name)
            .ok_or_else(|| wrong(format!("has an entry {name:?}; CoOp's lists have train, val and test")))?;
        let Value::Array(list) = list else { return Err(wrong(format!("{name:?} is no list"))) };
        for entry in list {
            match entry.as_array().map(Vec::as_slice) {
                Some([Value::String(file), _, Value::String(class)]) => {
                    take(Row { file, class, split: Some(split), group: None })
                }
                _ => {
                    return Err(wrong(format!(
                        "{name:?} has an entry that is not [path, label, class name]"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// The file that a list names, with an ending where it leaves that out, as Kaggle's lists of ids do.
fn photo(root: &Path, name: &str) -> PathBuf {
    let path = root.join(name);
    if path.symlink_metadata().is_ok() {
        return path;
    }
    let completed = listing::endings().map(|ending| root.join(format!("{name}.{ending}")));
    completed.into_iter().find(|path| path.is_file()).unwrap_or(path)
}
