//! What belongs to which split: by the names that people give them, or drawn by a seed.

use super::groups::Groups;
use super::{DataError, Split};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

/// Share of the test split when photos are split by seed.
const TEST_SHARE: f64 = 0.15;

/// Share of the validation split where none is chosen.
pub const VAL_SHARE: f64 = 0.15;

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
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Draw<'a> {
    pub seed: u64,
    /// Share of the validation split, above 0 and below 1.
    pub val_share: f64,
    /// Share of the test split, 0 for none.
    pub test_share: f64,
    pub groups: Option<&'a Groups>,
}

/// A photo as a draw sees it.
pub(super) struct Drawn<'a> {
    pub class: &'a str,
    /// Below its class, and what [`Groups`] look at.
    pub name: &'a [u8],
    pub path: &'a str,
    /// By a column of a list.
    pub group: Option<&'a str>,
}

impl<'a> Draw<'a> {
    pub fn new(seed: u64, val_share: f64, groups: Option<&'a Groups>) -> Self {
        Draw { seed, val_share, test_share: TEST_SHARE, groups }
    }

    /// The split of every photo.
    ///
    /// The photos of a class are ordered by the SHA-256 of seed, class and name; the first of that order are the test
    /// photos, the next the validation photos, the rest is for training. So the split depends on names and seed
    /// only, and a photo more or less moves few of the others. From three photos on a class has at least one in
    /// each split; two go to train and val, a single one to train. Where there are groups, each goes as a whole where
    /// it leaves the class of most of its photos nearest to its shares.
    ///
    /// # Errors
    /// Groups that leave a photo out.
    pub fn splits(&self, photos: &[Drawn<'_>]) -> Result<Vec<Split>, DataError> {
        let mut units: BTreeMap<&str, Vec<Unit>> = BTreeMap::new();
        for unit in self.units(photos)? {
            units.entry(unit.class).or_default().push(unit);
        }
        let mut splits = vec![Split::Train; photos.len()];
        for of_class in units.values_mut() {
            of_class.sort_unstable_by_key(|unit| unit.rank);
            let total = of_class.iter().map(|unit| unit.members.len()).sum();
            let (val, test) = self.counts(of_class.len(), total);
            for (place, unit) in places(of_class, val, test).into_iter().zip(of_class.iter()) {
                unit.members.iter().for_each(|&member| splits[member] = place);
            }
        }
        Ok(splits)
    }

    /// What goes into one split as a whole.
    fn units<'p>(&self, photos: &'p [Drawn<'p>]) -> Result<Vec<Unit<'p>>, DataError> {
        let single = |(index, photo): (usize, &'p Drawn<'p>)| Unit {
            class: photo.class,
            rank: rank(self.seed, photo.class, photo.name),
            members: vec![index],
        };
        let mut units = Vec::new();
        let mut groups: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, photo) in photos.iter().enumerate() {
            let group = match self.groups {
                Some(groups) => groups.of(photo.path)?,
                None => photo.group.map(String::from),
            };
            match group {
                Some(group) => groups.entry(group).or_default().push(index),
                None => units.push(single((index, photo))),
            }
        }
        for (group, members) in groups {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            members.iter().for_each(|&member| *counts.entry(photos[member].class).or_default() += 1);
            let class = counts.iter().max_by_key(|(class, count)| (**count, std::cmp::Reverse(**class)));
            let class = class.map_or("", |(class, _)| class);
            units.push(Unit { class, rank: rank(self.seed, class, group.as_bytes()), members });
        }
        Ok(units)
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
fn places(units: &[Unit<'_>], val: usize, test: usize) -> Vec<Split> {
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
struct Unit<'a> {
    class: &'a str,
    rank: [u8; 32],
    members: Vec<usize>,
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
        let draw = Draw::new(0, VAL_SHARE, None);
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
