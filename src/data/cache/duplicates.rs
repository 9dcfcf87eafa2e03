//! Photos that are there more than once, byte for byte.

use crate::data::Split;
use crate::hash::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Hash that tells a photo's bytes from those of others.
pub(super) type Content = [u8; 16];

/// The start of the SHA-256 of a file's bytes.
pub(super) fn content_of(bytes: &[u8]) -> Content {
    let mut content = Content::default();
    let length = content.len();
    content.copy_from_slice(&Sha256::digest(bytes)[..length]);
    content
}

/// Photos that are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Same {
    /// Number of different photos.
    photos: usize,
    /// Two files with the same bytes.
    example: [String; 2],
}

/// Photos that occur in two places where that spoils the results.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Duplicates {
    /// Photos in two splits: train and val, train and test, val and test.
    splits: [Option<Same>; 3],
    /// Photos in two classes.
    classes: Option<Same>,
}

/// The pairs of `Duplicates::splits`.
const PAIRS: [[Split; 2]; 3] =
    [[Split::Train, Split::Val], [Split::Train, Split::Test], [Split::Val, Split::Test]];

/// An image of the cache.
pub(super) struct Image<'a> {
    pub split: Split,
    pub label: u32,
    pub file: &'a str,
    pub content: Content,
}

impl Duplicates {
    /// Finds which of the images are the same.
    pub fn among(images: &[Image<'_>]) -> Duplicates {
        let mut first: HashMap<Content, [Option<&Image<'_>>; 3]> = HashMap::with_capacity(images.len());
        let mut counted: HashMap<Content, [bool; 4]> = HashMap::new();
        let mut duplicates = Duplicates::default();
        for image in images {
            let seen = first.entry(image.content).or_default();
            let earlier: Vec<&Image<'_>> = seen.iter().flatten().copied().collect();
            if !earlier.is_empty() {
                let counted = counted.entry(image.content).or_default();
                let mut note = |place: usize, same: &mut Option<Same>, other: &Image<'_>| {
                    if !std::mem::replace(&mut counted[place], true) {
                        let example = || [other, image].map(|image| image.file.to_owned());
                        same.get_or_insert_with(|| Same { photos: 0, example: example() }).photos += 1;
                    }
                };
                for (place, [a, b]) in PAIRS.into_iter().enumerate() {
                    if let (true, Some(other)) = (image.split == b, seen[a as usize]) {
                        note(place, &mut duplicates.splits[place], other);
                    }
                }
                if let Some(other) = earlier.iter().find(|other| other.label != image.label) {
                    note(3, &mut duplicates.classes, other);
                }
            }
            seen[image.split as usize].get_or_insert(image);
        }
        duplicates
    }

    /// Messages about the duplicates, one line for each kind.
    pub fn problems(&self) -> Vec<String> {
        let spoilt = ["validation", "the test", "the test"];
        let splits = PAIRS.iter().zip(&self.splits).zip(spoilt).filter_map(|(([first, second], same), spoilt)| {
            same.as_ref().map(|same| {
                let [a, b] = &same.example;
                let photos = if same.photos == 1 { "photo is" } else { "photos are" };
                format!(
                    "{} {photos} in {first} and in {second} ({a}, {b}), so that {spoilt} looks better than it is",
                    same.photos
                )
            })
        });
        let classes = self.classes.iter().map(|same| {
            let [a, b] = &same.example;
            let photos = if same.photos == 1 { "photo is" } else { "photos are" };
            format!("{} {photos} in two classes ({a}, {b})", same.photos)
        });
        splits.chain(classes).collect()
    }
}

/// Hash that tells these images from others, whatever their names are: of their contents, labels and splits.
pub(super) fn hash_of(images: &[Image<'_>]) -> String {
    let mut hash = Sha256::new();
    for image in images {
        hash.update([image.split as u8]);
        hash.update(image.label.to_le_bytes());
        hash.update(image.content);
    }
    hex(&hash.finalize())
}
