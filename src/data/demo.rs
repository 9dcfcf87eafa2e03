//! The demo's own flowers: drawn, not photographed, so that a run needs no file and no network.
//!
//! A [`FlowerKind`] is a combination of attributes (petal colour, shape, count, marking, rings, centre) and
//! names itself in those words. The bundled model (`assets/demo-clip`) was pre-trained on pictures of
//! [`pretraining_kinds`] in one [`World`]; [`demo_dataset`] draws the combinations it never saw, in another.
//! Everything is a pure function of a seed. The bytes may differ by a level between platforms whose
//! mathematical functions round differently; on one platform they are always the same.

mod canvas;
mod flower;
mod kind;
mod scene;

use super::{MemoryImage, Split};
use crate::random;
use rayon::prelude::*;

pub use kind::{
    Centre, Colour, FlowerForm, FlowerKind, Marking, Petals, Rings, all_kinds, demo_classes,
    pretraining_kinds,
};
pub use scene::{World, draw};

/// Side of a demo picture in pixels: what the bundled model takes.
pub const IMAGE_SIZE: usize = 64;

/// Pictures of each class in a split.
pub fn per_class(split: Split) -> usize {
    match split {
        Split::Train => 16,
        Split::Val => 10,
        Split::Test => 30,
    }
}

/// The class names of the demo, in label order.
pub fn demo_class_names() -> Vec<String> {
    demo_classes().iter().map(FlowerKind::name).collect()
}

/// One picture of the demo set, not yet drawn.
struct Place {
    split: Split,
    label: usize,
    /// Among the pictures of its class and split.
    index: usize,
}

/// Every picture: all of train, then val, then test, classes in label order.
fn places(classes: usize) -> Vec<Place> {
    let mut places = Vec::new();
    for split in Split::ALL {
        for label in 0..classes {
            places.extend((0..per_class(split)).map(|index| Place { split, label, index }));
        }
    }
    places
}

/// The demo set, drawn as it is iterated, on all cores: all of train, then val, then test, classes in label order. The
/// names are relative paths as in an image folder: `train/five-petalled …/007.png`.
///
/// Each picture has its own random stream, so it does not depend on the ones drawn before it.
pub fn demo_dataset(seed: u64) -> impl IndexedParallelIterator<Item = MemoryImage> {
    demo_pictures(seed, IMAGE_SIZE, |_| true)
}

/// The pictures of one split of [`demo_dataset`], with `side` pixels a side: the same flowers on another
/// grid, to cut crops from.
pub(crate) fn demo_splits_at(
    seed: u64,
    splits: &[Split],
    side: usize,
) -> impl IndexedParallelIterator<Item = MemoryImage> {
    demo_pictures(seed, side, |split| splits.contains(&split))
}

fn demo_pictures(
    seed: u64,
    side: usize,
    wanted: impl Fn(Split) -> bool,
) -> impl IndexedParallelIterator<Item = MemoryImage> {
    let classes = demo_classes();
    let streams = places(classes.len()).into_iter().zip(0u64..);
    let wanted: Vec<_> = streams.filter(|(place, _)| wanted(place.split)).collect();
    wanted.into_par_iter().map(move |(Place { split, label, index }, stream)| MemoryImage {
        pixels: draw(&classes[label], World::Field, &mut random::stream(seed, stream), side),
        label: label as u32,
        name: format!("{}/{}/{index:03}.png", split, classes[label].name()),
        split,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Cache, Preprocess};

    fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum::<f64>() / a.len() as f64
    }

    /// How much neighbours in a row differ: noise adds to it, blur takes from it.
    fn roughness(pixels: &[u8]) -> f64 {
        let rows = pixels.chunks_exact(IMAGE_SIZE * 3);
        rows.map(|row| mean_difference(&row[3..], &row[..row.len() - 3])).sum::<f64>() / IMAGE_SIZE as f64
    }

    /// The means over squares of 2 × 2 pixels.
    fn halve(pixels: &[u8]) -> Vec<u8> {
        let at = |row: usize, column: usize, channel: usize| {
            u16::from(pixels[(row * 2 * IMAGE_SIZE + column) * 3 + channel])
        };
        let mut small = Vec::new();
        for index in 0..IMAGE_SIZE * IMAGE_SIZE * 3 {
            let (pixel, channel) = (index / 3, index % 3);
            let (row, column) = (pixel / IMAGE_SIZE * 2, pixel % IMAGE_SIZE * 2);
            let sum: u16 =
                [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(y, x)| at(row + y, column + x, channel)).iter().sum();
            small.push(((sum + 2) / 4) as u8);
        }
        small
    }

    #[test]
    fn a_finer_grid_shows_the_same_flowers() {
        const COUNT: usize = 6;
        let train: Vec<MemoryImage> = demo_dataset(9).take(COUNT).collect();
        let (mut finer_roughness, mut own_roughness) = (0.0, 0.0);
        let finer: Vec<MemoryImage> =
            demo_splits_at(9, &[Split::Train], 2 * IMAGE_SIZE).take(COUNT).collect();
        for (i, (finer, image)) in finer.iter().zip(&train).enumerate() {
            assert_eq!((finer.label, &finer.name, finer.split), (image.label, &image.name, image.split));
            let small = halve(&finer.pixels);
            let own = mean_difference(&small, &image.pixels);
            let other = mean_difference(&small, &train[(i + 1) % COUNT].pixels);
            assert!(own < other / 3.0, "{}: {own} from its own picture, {other} from the next", finer.name);
            finer_roughness += roughness(&small);
            own_roughness += roughness(&image.pixels);
        }
        let ratio = finer_roughness / own_roughness;
        // Without the noise scaled it would be 0.77, without the blur 1.02.
        assert!((0.9..1.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn larger_pictures_make_a_cache_of_their_own_size() {
        let preprocess = Preprocess::clip(IMAGE_SIZE).enlarged(73).unwrap();
        let images: Vec<_> = demo_splits_at(1, &[Split::Train], 73).take(3).collect();
        let picture = images[2].clone();
        let cache = Cache::from_images(demo_class_names(), &preprocess, images).unwrap();
        let train = cache.split(Split::Train);
        assert_eq!((cache.len(), train.len(), cache.image_shape().dims()), (3, 3, &[73, 73, 3][..]));
        assert_eq!(train.path(2).unwrap().to_str(), Some(picture.name.as_str()));
        assert_eq!((train.labels()[2], train.rgb(2).unwrap()), (picture.label, picture.pixels));
    }

    #[test]
    fn a_split_alone_has_the_pictures_of_the_whole_set() {
        let classes = demo_classes();
        let mut first = 0;
        for split in Split::ALL {
            let splits = [split];
            let pictures = demo_splits_at(4, &splits, IMAGE_SIZE);
            let count = per_class(split) * classes.len();
            assert_eq!(pictures.len(), count);
            let picture = &pictures.skip(1).take(1).collect::<Vec<_>>()[0];
            assert_eq!(picture.name, format!("{split}/{}/001.png", classes[0].name()));
            let mut rng = random::stream(4, first + 1);
            assert_eq!(picture.pixels, draw(&classes[0], World::Field, &mut rng, IMAGE_SIZE));
            assert_eq!((picture.label, picture.split), (0, split));
            first += count as u64;
        }
        assert_eq!(first, demo_dataset(4).len() as u64);
    }
}
