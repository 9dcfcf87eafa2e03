//! Photos that are there more than once, byte for byte.

use super::file::Header;
use crate::data::Split;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// What tells a photo's bytes from those of others.
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
    /// How many different ones.
    photos: usize,
    /// Two files with the same bytes.
    example: [String; 2],
}

/// The same photo in places where that spoils the results.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Duplicates {
    /// In train and val, in train and test, in val and test.
    splits: [Option<Same>; 3],
    /// In two classes.
    classes: Option<Same>,
}

/// The pairs of `Duplicates::splits`.
const PAIRS: [[Split; 2]; 3] =
    [[Split::Train, Split::Val], [Split::Train, Split::Test], [Split::Val, Split::Test]];

impl Duplicates {
    /// What is wrong, one line for each kind.
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

impl Header {
    /// Notes what the contents of the source's photos, in its order and with those left out, say: which are the same,
    /// and what tells these photos from others.
    pub(super) fn summarise(&mut self, contents: &[Content]) {
        let mut first: HashMap<Content, [Option<usize>; 3]> = HashMap::with_capacity(self.rows.len());
        let mut counted: HashMap<Content, [bool; 4]> = HashMap::new();
        let mut duplicates = Duplicates::default();
        let mut digest = Sha256::new();
        let splits: Vec<Split> = Split::ALL
            .into_iter()
            .flat_map(|split| std::iter::repeat_n(split, self.range(split).len()))
            .collect();
        for (image, (&split, &row)) in splits.iter().zip(&self.rows).enumerate() {
            let content = contents[row as usize];
            digest.update([split as u8]);
            digest.update(self.labels[image].to_le_bytes());
            digest.update(content);
            let seen = first.entry(content).or_default();
            let earlier: Vec<usize> = seen.iter().flatten().copied().collect();
            if !earlier.is_empty() {
                let counted = counted.entry(content).or_default();
                let mut note = |place: usize, same: &mut Option<Same>, other: usize| {
                    if !std::mem::replace(&mut counted[place], true) {
                        let example = || [self.files[other].clone(), self.files[image].clone()];
                        same.get_or_insert_with(|| Same { photos: 0, example: example() }).photos += 1;
                    }
                };
                for (place, [a, b]) in PAIRS.into_iter().enumerate() {
                    if let (true, Some(other)) = (split == b, seen[a as usize]) {
                        note(place, &mut duplicates.splits[place], other);
                    }
                }
                if let Some(&other) = earlier.iter().find(|&&other| self.labels[other] != self.labels[image])
                {
                    note(3, &mut duplicates.classes, other);
                }
            }
            seen[split as usize].get_or_insert(image);
        }
        self.duplicates = duplicates;
        self.photos = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    }
}
