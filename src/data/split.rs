//! What belongs to which split: by the names that people give them, or drawn by a seed.

use super::Split;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// Share of the test split when photos are split by seed.
const TEST_SHARE: f64 = 0.15;

/// Share of the validation split where none is chosen.
pub(crate) const VAL_SHARE: f64 = 0.15;

/// The split that a folder or a column of this name means: `Training`, `val`, `test_set`.
pub(super) fn named(name: &str) -> Option<Split> {
    let name: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let name =
        ["set", "data", "images", "split"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    match name {
        "train" | "training" | "trn" => Some(Split::Train),
        "val" | "valid" | "validation" | "validate" | "dev" => Some(Split::Val),
        "test" | "testing" | "tst" => Some(Split::Test),
        _ => None,
    }
}

/// How photos are drawn into splits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub seed: u64,
    /// Share of the validation split, above 0 and below 1.
    pub val_share: f64,
    /// Share of the test split, 0 for none.
    pub test_share: f64,
}

/// A photo as a draw sees it.
pub(super) struct Drawn<'a> {
    /// Index into the names of the classes.
    pub class: u32,
    /// Below its class.
    pub name: &'a [u8],
    pub group: Option<Cow<'a, str>>,
}

impl Draw {
    pub fn new(seed: u64, val_share: f64) -> Self {
        Draw { seed, val_share, test_share: TEST_SHARE }
    }

    /// The split of every photo.
    ///
    /// The photos of a class are ordered by the SHA-256 of seed, class and name; the first of that order are the test
    /// photos, the next the validation photos, the rest is for training. So the split depends on names and seed
    /// only, and a photo more or less moves few of the others. From three photos on a class has at least one in
    /// each split; two go to train and val, a single one to train. Where there are groups, each goes as a whole where
    /// it leaves the class of most of its photos nearest to its shares.
    ///
    /// # Panics
    /// On a class without a name.
    pub fn splits(&self, photos: &[Drawn<'_>], class_names: &[&str]) -> Vec<Split> {
        let mut splits = vec![Split::Train; photos.len()];
        let mut by_class: Vec<u32> = (0..photos.len() as u32).collect();
        by_class.sort_by_key(|&photo| photos[photo as usize].class);
        let mut groups = self.groups(photos, class_names);
        // A class at a time, so that not all photos have a hash at once.
        for of_class in by_class.chunk_by(|&a, &b| photos[a as usize].class == photos[b as usize].class) {
            let class = photos[of_class[0] as usize].class;
            let name = class_names[class as usize];
            let alone = of_class.iter().filter(|&&photo| photos[photo as usize].group.is_none());
            let single = |&photo: &u32| Unit {
                rank: rank(self.seed, name, photos[photo as usize].name),
                members: vec![photo],
            };
            let mut units: Vec<Unit> = alone.map(single).collect();
            units.extend(groups.remove(&class).unwrap_or_default());
            units.sort_unstable_by_key(|unit| unit.rank);
            let total = units.iter().map(|unit| unit.members.len()).sum();
            let (val, test) = self.counts(units.len(), total);
            for (place, unit) in places(&units, val, test).into_iter().zip(&units) {
                unit.members.iter().for_each(|&member| splits[member as usize] = place);
            }
        }
        splits
    }

    /// The groups by the class of most of their photos.
    fn groups(&self, photos: &[Drawn<'_>], class_names: &[&str]) -> HashMap<u32, Vec<Unit>> {
        let mut members: HashMap<&str, Vec<u32>> = HashMap::new();
        for (photo, drawn) in (0..).zip(photos) {
            if let Some(group) = &drawn.group {
                members.entry(group).or_default().push(photo);
            }
        }
        let mut groups: HashMap<u32, Vec<Unit>> = HashMap::new();
        for (group, members) in members {
            let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
            members.iter().for_each(|&member| *counts.entry(photos[member as usize].class).or_default() += 1);
            let most = counts.iter().max_by_key(|(class, count)| (**count, Reverse(**class)));
            let class = most.map_or(0, |(class, _)| *class);
            let rank = rank(self.seed, class_names[class as usize], group.as_bytes());
            groups.entry(class).or_default().push(Unit { rank, members });
        }
        groups
    }

    /// How many of a class's photos, in `n` groups or alone, should go to val and to test.
    fn counts(&self, n: usize, photos: usize) -> (usize, usize) {
        let share = |share: f64| (photos as f64 * share).round() as usize;
        let test = |n: usize| if self.test_share == 0.0 || n < 3 { 0 } else { share(self.test_share).max(1) };
        match n {
            0 | 1 => (0, 0),
            n => (share(self.val_share).max(1), test(n)),
        }
    }
}

/// The split of each of a class's units, of which `val` and `test` photos should go to validation and test: in their
/// order those that bring a split nearer to its number, and at least the smallest. One at least stays for training.
fn places(units: &[Unit], val: usize, test: usize) -> Vec<Split> {
    let mut places = vec![Split::Train; units.len()];
    for (split, wanted) in [(Split::Test, test), (Split::Val, val)] {
        let mut taken = 0;
        let mut left = places.iter().filter(|place| **place == Split::Train).count();
        let smallest = |places: &[Split]| {
            let free = (0..units.len()).filter(|&i| places[i] == Split::Train);
            free.min_by_key(|&i| (units[i].members.len(), i))
        };
        for (place, unit) in places.iter_mut().zip(units) {
            let size = unit.members.len();
            if *place == Split::Train && left > 1 && 2 * taken + size <= 2 * wanted {
                (*place, taken, left) = (split, taken + size, left - 1);
            }
        }
        if taken == 0
            && wanted > 0
            && left > 1
            && let Some(unit) = smallest(&places)
        {
            places[unit] = split;
        }
    }
    places
}

/// Photos that stay together.
struct Unit {
    rank: [u8; 32],
    members: Vec<u32>,
}

/// A photo's place in the order by which its class is split.
fn rank(seed: u64, class: &str, name: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((class.len() as u64).to_le_bytes());
    hash.update(class);
    hash.update(name);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_of_a_class_gets_a_photo_where_possible() {
        let draw = Draw::new(0, VAL_SHARE);
        let counts = [1, 2, 3, 4, 20, 100].map(|n| draw.counts(n, n));
        assert_eq!(counts, [(0, 0), (1, 0), (1, 1), (1, 1), (3, 3), (15, 15)]);
    }

    #[test]
    fn splits_are_known_by_the_names_that_people_give_them() {
        for (split, names) in [
            (Split::Train, &["train", "Training", "training_set", "TRAIN-IMAGES", "train data"][..]),
            (Split::Val, &["val", "Valid", "validation", "validation_set", "dev"]),
            (Split::Test, &["test", "Testing", "test_set", "testset"]),
        ] {
            names.iter().for_each(|name| assert_eq!(named(name), Some(split), "{name}"));
        }
        for name in ["", "trains", "set", "retrain", "invalid", "control", "data", "tests and more"] {
            assert_eq!(named(name), None, "{name}");
        }
    }
}
