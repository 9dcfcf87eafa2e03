//! Oxford Flowers-102 (Nilsback and Zisserman, 2008): 8,189 photos of 102 flowers with an official split.

use super::opened::{Classes, DatasetKind, Opened, Photo};
use super::{DataError, Split, listing, mat};
use std::path::{Path, PathBuf};

/// Class names in the order of the official labels: entry i names label i + 1.
pub const CLASS_NAMES: [&str; 102] = [
    "pink primrose",
    "hard-leaved pocket orchid",
    "canterbury bells",
    "sweet pea",
    "english marigold",
    "tiger lily",
    "moon orchid",
    "bird of paradise",
    "monkshood",
    "globe thistle",
    "snapdragon",
    "colt's foot",
    "king protea",
    "spear thistle",
    "yellow iris",
    "globe-flower",
    "purple coneflower",
    "peruvian lily",
    "balloon flower",
    "giant white arum lily",
    "fire lily",
    "pincushion flower",
    "fritillary",
    "red ginger",
    "grape hyacinth",
    "corn poppy",
    "prince of wales feathers",
    "stemless gentian",
    "artichoke",
    "sweet william",
    "carnation",
    "garden phlox",
    "love in the mist",
    "mexican aster",
    "alpine sea holly",
    "ruby-lipped cattleya",
    "cape flower",
    "great masterwort",
    "siam tulip",
    "lenten rose",
    "barbeton daisy",
    "daffodil",
    "sword lily",
    "poinsettia",
    "bolero deep blue",
    "wallflower",
    "marigold",
    "buttercup",
    "oxeye daisy",
    "common dandelion",
    "petunia",
    "wild pansy",
    "primula",
    "sunflower",
    "pelargonium",
    "bishop of llandaff",
    "gaura",
    "geranium",
    "orange dahlia",
    "pink-yellow dahlia",
    "cautleya spicata",
    "japanese anemone",
    "black-eyed susan",
    "silverbush",
    "californian poppy",
    "osteospermum",
    "spring crocus",
    "bearded iris",
    "windflower",
    "tree poppy",
    "gazania",
    "azalea",
    "water lily",
    "rose",
    "thorn apple",
    "morning glory",
    "passion flower",
    "lotus",
    "toad lily",
    "anthurium",
    "frangipani",
    "clematis",
    "hibiscus",
    "columbine",
    "desert-rose",
    "tree mallow",
    "magnolia",
    "cyclamen",
    "watercress",
    "canna lily",
    "hippeastrum",
    "bee balm",
    "ball moss",
    "foxglove",
    "bougainvillea",
    "camellia",
    "mallow",
    "mexican petunia",
    "bromelia",
    "blanket flower",
    "trumpet creeper",
    "blackberry lily",
];

/// Where the three parts of the data set lie.
#[derive(Debug)]
pub(super) struct Files {
    photos: PathBuf,
    labels: PathBuf,
    splits: PathBuf,
}

/// Whether a folder is laid out as Flowers-102.
pub(super) fn is_root(root: &Path) -> bool {
    find(root).is_some()
}

/// The data set's files when `root` looks like one: torchvision's `root/flowers-102/`, or the files in
/// `root` itself.
pub(super) fn find(root: &Path) -> Option<Files> {
    [root.join("flowers-102"), root.to_path_buf()].into_iter().find_map(|folder| {
        let files = Files {
            photos: folder.join("jpg"),
            labels: folder.join("imagelabels.mat"),
            splits: folder.join("setid.mat"),
        };
        // Whoever sorted the photos into folders may have left the two files there.
        let sorted = || !files.photos.is_dir() && has_folders(&folder);
        ((files.labels.is_file() || files.splits.is_file()) && !sorted()).then_some(files)
    })
}

fn has_folders(folder: &Path) -> bool {
    listing::entries(folder).is_ok_and(|entries| entries.iter().any(|path| path.is_dir()))
}

/// Reads labels and the official split, and checks that every photo is there.
pub(super) fn open(root: &Path, files: &Files) -> Result<Opened, DataError> {
    for needed in [&files.labels, &files.splits, &files.photos] {
        if !needed.exists() {
            let found = "missing from a Flowers-102 root, which needs jpg/, imagelabels.mat and setid.mat";
            return Err(DataError::layout(needed, found));
        }
    }
    let labels = parse_labels(&files.labels, &mat::read(&files.labels)?)?;
    let splits = mat::read(&files.splits)?;
    let mut classes = Classes::default();
    CLASS_NAMES.iter().for_each(|name| _ = classes.index(name));
    let mut found = Vec::new();
    for split in Split::ALL {
        found.extend(photos(files, split, &splits, &labels)?);
    }
    Ok(Opened {
        root: root.to_path_buf(),
        kind: DatasetKind::Flowers102,
        classes,
        photos: found,
        notes: Vec::new(),
    })
}

/// The label of every photo, counted from 0, in the contents of `imagelabels.mat`; `path` is for messages
/// only.
///
/// # Errors
/// Contents that are no MATLAB 5 file with such labels.
pub fn parse_labels(path: &Path, bytes: &[u8]) -> Result<Vec<u32>, DataError> {
    let wrong = |reason: String| DataError::mat_file(path, &reason);
    mat::find_array(bytes, "labels")
        .map_err(wrong)?
        .into_iter()
        .enumerate()
        .map(|(i, value)| match one_based(value, CLASS_NAMES.len()) {
            Some(label) => Ok(label as u32),
            None => Err(wrong(format!("photo {} has label {value}, labels run from 1 to 102", i + 1))),
        })
        .collect()
}

/// The photos of `split` out of `photos`, counted from 0 and sorted, in the contents of `setid.mat`; `path`
/// is for messages only.
///
/// # Errors
/// Contents that are no MATLAB 5 file with such a split, or name a photo that there is not.
pub fn parse_split(path: &Path, bytes: &[u8], split: Split, photos: usize) -> Result<Vec<usize>, DataError> {
    let name = match split {
        Split::Train => "trnid",
        Split::Val => "valid",
        Split::Test => "tstid",
    };
    let wrong = |reason: String| DataError::mat_file(path, &reason);
    let mut indices = Vec::new();
    for value in mat::find_array(bytes, name).map_err(wrong)? {
        let index = one_based(value, photos)
            .ok_or_else(|| wrong(format!("{name} names photo {value}, there are {photos}")))?;
        indices.push(index);
    }
    if indices.is_empty() {
        return Err(wrong(format!("{name} is empty")));
    }
    indices.sort_unstable();
    Ok(indices)
}

/// The photos of one split, in the order of their numbers.
fn photos(files: &Files, split: Split, splits: &[u8], labels: &[u32]) -> Result<Vec<Photo>, DataError> {
    parse_split(&files.splits, splits, split, labels.len())?
        .into_iter()
        .map(|index| {
            let number = index + 1;
            let path = files.photos.join(format!("image_{number:05}.jpg"));
            if path.is_file() {
                Ok(Photo::below(&files.photos, path, labels[index], Some(split)))
            } else {
                Err(DataError::PhotoMissing { path, number })
            }
        })
        .collect()
}

/// Turns a MATLAB index in 1..=len into one in 0..len.
fn one_based(value: f64, len: usize) -> Option<usize> {
    (value.fract() == 0.0 && value >= 1.0 && value <= len as f64).then(|| value as usize - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_names_are_distinct() {
        let distinct: std::collections::BTreeSet<_> = CLASS_NAMES.iter().collect();
        assert_eq!(distinct.len(), 102);
    }

    #[test]
    fn well_known_labels_have_their_names() {
        for (label, name) in [
            (46, "wallflower"),
            (51, "petunia"),
            (54, "sunflower"),
            (74, "rose"),
            (77, "passion flower"),
            (89, "watercress"),
        ] {
            assert_eq!(CLASS_NAMES[label - 1], name);
        }
    }
}
