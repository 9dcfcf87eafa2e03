//! What the `--data` argument opens: the photos, their classes and their splits.

use super::groups::Groups;
use super::opened::{Classes, DatasetKind, DatasetOptions, Note, Opened, Photo, Purpose, slashed};
use super::split::{Draw, Drawn};
use super::{DataError, Split, flowers102, folder, list, names};
use crate::words::readable;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// One photo and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The file, below [`Dataset::root`] unless a list names it elsewhere.
    pub path: PathBuf,
    /// Index into [`Dataset::class_names`].
    pub label: u32,
}

/// A labelled, split set of photos on disk. The order of everything is that of the names, so it does
/// not depend on the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The folder that the photos are below.
    pub root: PathBuf,
    /// Path that was opened: `root`, a folder around it, or a list.
    pub origin: PathBuf,
    /// The layout of `root`.
    pub kind: DatasetKind,
    /// The seed by which a split was drawn; none where the data say it themselves.
    pub drawn: Option<u64>,
    /// Class names in label order, as the folders are named, or a file of names has it; underscores are kept.
    pub class_names: Vec<String>,
    /// Photos that training learns from. Never empty in what is opened for training.
    pub train: Vec<Item>,
    /// Photos that every epoch is judged by.
    pub val: Vec<Item>,
    /// Photos that the kept epoch is measured on. Empty where the data has no test split.
    pub test: Vec<Item>,
    /// Notes for the user: which files were left out, and what else is to be said.
    pub notes: Vec<Note>,
}

/// Whether what is in `path` is Flowers-102 in its own layout.
pub(crate) fn is_flowers102_root(path: &Path) -> bool {
    path.is_dir() && folder::unwrapped(path, flowers102::is_root).is_ok_and(|root| flowers102::is_root(&root))
}

impl Dataset {
    /// Finds out which layout `path` has and lists its photos; a number as `options` is the seed of a split that
    /// is drawn.
    ///
    /// # Errors
    /// A missing or empty folder, an unknown layout, a class without images or missing from train, lists and files of
    /// names and groups that do not fit, and unusable Flowers-102 files.
    pub fn open(path: &Path, options: impl Into<DatasetOptions>) -> Result<Dataset, DataError> {
        let options = options.into();
        let opened = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let problem = "no such folder; check the path given to --data, or give the word flowers102";
                return Err(DataError::file(path, problem));
            }
            Err(e) => return Err(DataError::io(path, "open the folder")(e)),
            Ok(found) if found.is_file() => list::open(path, &options)?,
            Ok(found) if found.is_dir() => {
                let root =
                    folder::unwrapped(path, |folder| flowers102::is_root(folder) || list::is_beside(folder))?;
                let lists = list::beside(&root)?;
                let mut opened = match flowers102::find(&root) {
                    Some(files) => flowers102::open(&root, &files)?,
                    None if !lists.is_empty() => list::open_beside(&root, &lists, &options)?,
                    None => open_folders(&root, &options)?,
                };
                if root != path {
                    opened.notes.insert(0, Note::line(format!("the data are in {}", root.display())));
                }
                opened
            }
            Ok(_) => {
                let problem = "neither a folder nor a list; give --data the folder that holds the photos";
                return Err(DataError::file(path, problem));
            }
        };
        settle(path, opened, &options)
    }

    /// The photos of one split.
    pub fn split(&self, split: Split) -> &[Item] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
            Split::Test => &self.test,
        }
    }

    /// Empties the other splits, for a cache of these alone.
    pub fn only(&self, splits: &[Split]) -> Dataset {
        let keep = |split| if splits.contains(&split) { self.split(split).to_vec() } else { Vec::new() };
        Dataset {
            train: keep(Split::Train),
            val: keep(Split::Val),
            test: keep(Split::Test),
            class_names: self.class_names.clone(),
            root: self.root.clone(),
            origin: self.origin.clone(),
            notes: Vec::new(),
            ..*self
        }
    }

    /// Moves all photos to the test split.
    pub fn all_as_test(self) -> Dataset {
        let Dataset { train, val, test, .. } = self;
        let test = train.into_iter().chain(val).chain(test).collect();
        Dataset { train: Vec::new(), val: Vec::new(), test, ..self }
    }

    /// All photos: train, then val, then test.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        Split::ALL.into_iter().flat_map(|split| self.split(split))
    }

    /// Number of photos in all splits.
    pub fn len(&self) -> usize {
        self.train.len() + self.val.len() + self.test.len()
    }

    /// True when there is no photo at all; [`Dataset::open`] never returns such a one, [`Dataset::only`] may.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn open_folders(root: &Path, options: &DatasetOptions) -> Result<Opened, DataError> {
    let mut classes = Classes::default();
    let (kind, found) = match folder::layout(root, options.purpose)? {
        folder::Layout::Splits(folders) => {
            (DatasetKind::SplitFolders, folder::open_splits(root, &folders, options.purpose, &mut classes)?)
        }
        folder::Layout::Classes => {
            (DatasetKind::ClassFolders, folder::open_classes(root, None, options.purpose, &mut classes)?)
        }
    };
    let folder::Found { photos, mut notes, left_out } = found;
    notes.extend(left_out.warning().map(Note::warning));
    Ok(Opened { root: root.to_path_buf(), kind, classes, photos, notes })
}

/// Draws the splits that the data do not say, orders the classes and names them.
fn settle(origin: &Path, opened: Opened, options: &DatasetOptions) -> Result<Dataset, DataError> {
    let Opened { root, kind, classes, mut photos, mut notes } = opened;
    if options.purpose == Purpose::Train && kind != DatasetKind::Flowers102 {
        require_in_train(&root, &classes, &photos)?;
    }
    let drawn = draw(&root, &classes, &mut photos, options, &mut notes)?;
    if kind != DatasetKind::Flowers102 {
        notes.extend(torn(&root, &photos, options.groups.as_ref())?);
    }
    let keys: Vec<String> = classes.names().map(String::from).collect();
    let order = match kind {
        // In the order of the official labels.
        DatasetKind::Flowers102 => (0..keys.len()).collect(),
        _ => by_name(&keys),
    };
    let sorted: Vec<String> = order.iter().map(|&class| keys[class].clone()).collect();
    let (class_names, file) = match kind {
        DatasetKind::Flowers102 if options.class_names.is_none() => (sorted, None),
        _ => names::of_classes(&sorted, options.class_names.as_deref(), &beside(origin, &root))?,
    };
    if let Some(file) = file.filter(|_| options.class_names.is_none()) {
        notes.push(Note::line(format!("class names from {}", file.display())));
    }
    notes.extend(names::doubts(&class_names).map(Note::warning));
    let (class_names, labels) = match &options.classes {
        Some(known) => (known.clone(), labels_among(known, &class_names, &root)?),
        None => (class_names, (0..order.len() as u32).collect()),
    };
    let mut label_of = vec![0; order.len()];
    order.iter().zip(labels).for_each(|(&class, label)| label_of[class] = label);
    let mut source = Dataset {
        root,
        origin: origin.to_path_buf(),
        kind,
        drawn,
        class_names,
        train: Vec::new(),
        val: Vec::new(),
        test: Vec::new(),
        notes,
    };
    for photo in photos {
        let item = Item { path: photo.path, label: label_of[photo.class as usize] };
        match photo.split.unwrap_or(Split::Train) {
            Split::Train => source.train.push(item),
            Split::Val => source.val.push(item),
            Split::Test => source.test.push(item),
        }
    }
    for split in [&mut source.train, &mut source.val, &mut source.test] {
        if kind != DatasetKind::Flowers102 {
            split.sort_by(|a, b| (a.label, &a.path).cmp(&(b.label, &b.path)));
        }
    }
    if drawn.is_some() && options.purpose == Purpose::Train {
        let few = "too few photos or groups of a class to draw";
        if source.val.is_empty() {
            let found = format!("{few} a validation split; a class needs two, in two groups");
            return Err(DataError::layout(origin, found));
        }
        if source.test.is_empty() && kind != DatasetKind::SplitFolders {
            source.notes.push(Note::line(format!("{few} a test split: results are those of validation")));
        }
    }
    Ok(source)
}

/// Refuses a class that only val or test have.
fn require_in_train(root: &Path, classes: &Classes, photos: &[Photo]) -> Result<(), DataError> {
    if photos.iter().all(|photo| photo.split.is_some_and(|split| split != Split::Train)) {
        return Err(DataError::layout(root, "no photo is in the train split"));
    }
    let known: HashSet<u32> = photos
        .iter()
        .filter(|photo| photo.split.is_none_or(|split| split == Split::Train))
        .map(|photo| photo.class)
        .collect();
    let names: Vec<&str> = classes.names().collect();
    match photos.iter().find(|photo| !known.contains(&photo.class)) {
        Some(Photo { class, split: Some(split), .. }) => {
            let class = names[*class as usize];
            let near = names::did_you_mean(class, known.iter().map(|&class| names[class as usize]));
            let problem =
                format!("class {class:?} is in {split} and not in train{near}; add it there or remove it");
            Err(DataError::file(root, problem))
        }
        _ => Ok(()),
    }
}

/// Draws all splits where no photo has one, or val from train where there is none. The seed where it mattered.
fn draw(
    root: &Path,
    classes: &Classes,
    photos: &mut [Photo],
    options: &DatasetOptions,
    notes: &mut Vec<Note>,
) -> Result<Option<u64>, DataError> {
    let counts = Split::ALL.map(|split| photos.iter().filter(|photo| photo.split == Some(split)).count());
    let [train, val, _] = counts;
    let undecided = photos.iter().filter(|photo| photo.split.is_none()).count();
    let from_train = undecided == 0 && train > 0 && val == 0;
    if undecided == 0 && !from_train {
        return Ok(None);
    }
    let names: Vec<&str> = classes.names().collect();
    let taken: Vec<u32> = (0..photos.len() as u32)
        .filter(|&i| photos[i as usize].split.is_none_or(|split| from_train && split == Split::Train))
        .collect();
    let group = |photo: &Photo| match &options.groups {
        Some(groups) => groups.of(&slashed(root, &photo.path)),
        None => Ok(None),
    };
    let mut draw = Draw::new(options.seed, options.val_share);
    if from_train || counts != [0; 3] {
        draw.test_share = 0.0;
    }
    let splits = {
        let drawn = taken.iter().map(|&i| {
            let photo = &photos[i as usize];
            let group = group(photo)?.map(Cow::Owned).or(photo.group.as_deref().map(Cow::Borrowed));
            Ok(Drawn { class: photo.class, name: photo.name(), group })
        });
        draw.splits(&drawn.collect::<Result<Vec<_>, DataError>>()?, &names)
    };
    if from_train {
        let count = splits.iter().filter(|&&split| split == Split::Val).count();
        notes.push(Note::line(format!(
            "there is no validation split: {count} of {train} training photos were drawn for it (--val-share)"
        )));
    }
    taken.into_iter().zip(splits).for_each(|(i, split)| photos[i as usize].split = Some(split));
    Ok(Some(options.seed))
}

/// A warning where splits that the data bring tear groups apart.
fn torn(root: &Path, photos: &[Photo], groups: Option<&Groups>) -> Result<Option<Note>, DataError> {
    let mut splits: BTreeMap<Cow<'_, str>, HashSet<Option<Split>>> = BTreeMap::new();
    for photo in photos {
        let group = match groups {
            Some(groups) => groups.of(&slashed(root, &photo.path))?.map(Cow::Owned),
            None => photo.group.as_deref().map(Cow::Borrowed),
        };
        if let Some(group) = group {
            splits.entry(group).or_default().insert(photo.split);
        }
    }
    if let (Some(Groups::Found(regex)), true) = (groups, splits.is_empty()) {
        return Err(DataError::Option {
            option: "--groups",
            problem: format!("the expression {:?} is found in no path", regex.as_str()),
            remedy: "paths are those below the data, with slashes",
        });
    }
    let mut torn = splits.iter().filter(|(_, splits)| splits.len() > 1).map(|(group, _)| group);
    let Some(first) = torn.next() else { return Ok(None) };
    let (torn, all) = (1 + torn.count(), splits.len());
    Ok(Some(Note::warning(format!(
        "{torn} of {all} groups are in more than one split, as the data have them; the first: {first:?}"
    ))))
}

/// The places of names in their order.
fn by_name(names: &[String]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by(|&a, &b| names[a].cmp(&names[b]));
    order
}

/// Where a file of class names may lie: in the folder of the photos and in those around it up to what was opened.
fn beside<'a>(origin: &'a Path, root: &'a Path) -> Vec<&'a Path> {
    let mut folders = vec![root];
    let origin = if origin.is_file() { origin.parent() } else { Some(origin) };
    folders.extend(origin.filter(|origin| *origin != root));
    folders
}

/// The labels that classes have among those of a run.
fn labels_among(known: &[String], classes: &[String], root: &Path) -> Result<Vec<u32>, DataError> {
    let known_readable: Vec<String> = known.iter().map(|name| readable(name)).collect();
    let label = |class: &String| match known_readable.iter().position(|name| name == class) {
        Some(label) => Ok(label as u32),
        None => {
            let near = names::did_you_mean(class, known.iter().map(String::as_str));
            let problem = format!(
                "class {class:?} is none of the {} classes of the run{near}; rename or remove its folder",
                known.len()
            );
            Err(DataError::file(root, problem))
        }
    };
    classes.iter().map(label).collect()
}
