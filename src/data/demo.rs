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

use super::Split;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use kind::{
    Centre, Colour, FlowerKind, Form, Marking, Petals, Rings, all_kinds, demo_classes, pretraining_kinds,
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

/// One labelled picture of the demo set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoImage {
    /// RGB bytes, [`IMAGE_SIZE`, `IMAGE_SIZE`, 3].
    pub pixels: Vec<u8>,
    /// Index into [`demo_classes`].
    pub label: u32,
    /// Relative path as in an image folder: `train/five-petalled …/007.png`.
    pub name: String,
    pub split: Split,
}

/// The class names of the demo, in label order.
pub fn demo_class_names() -> Vec<String> {
    demo_classes().iter().map(FlowerKind::name).collect()
}

/// The demo set, drawn as it is iterated: all of train, then val, then test, classes in label order.
///
/// Each picture has its own random stream, so it does not depend on the ones drawn before it.
pub fn demo_dataset(seed: u64) -> impl ExactSizeIterator<Item = DemoImage> {
    let classes = demo_classes();
    let mut places = Vec::new();
    for split in Split::ALL {
        for label in 0..classes.len() {
            places.extend((0..per_class(split)).map(|index| (split, label, index)));
        }
    }
    places.into_iter().enumerate().map(move |(stream, (split, label, index))| DemoImage {
        pixels: draw(&classes[label], World::Field, &mut stream_rng(seed, stream as u64), IMAGE_SIZE),
        label: label as u32,
        name: format!("{}/{}/{index:03}.png", split, classes[label].name()),
        split,
    })
}

/// The random numbers of picture number `stream` under `seed`: independent for each pair.
pub fn stream_rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
