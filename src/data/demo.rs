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

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use kind::{
    Centre, Colour, FlowerKind, Form, Marking, Petals, Rings, all_kinds, demo_classes, pretraining_kinds,
};
pub use scene::{World, draw};

/// Side of a demo picture in pixels: what the bundled model takes.
pub const IMAGE_SIZE: usize = 64;

/// Which part of the demo set a picture belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DemoSplit {
    Train,
    Val,
    Test,
}

impl DemoSplit {
    /// Every split, in the order the data set lists them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// The folder name: `train`, `val` or `test`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }

    /// Pictures of each class.
    pub fn per_class(self) -> usize {
        match self {
            Self::Train => 16,
            Self::Val => 10,
            Self::Test => 30,
        }
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
    pub split: DemoSplit,
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
    for split in DemoSplit::ALL {
        for label in 0..classes.len() {
            places.extend((0..split.per_class()).map(|index| (split, label, index)));
        }
    }
    places.into_iter().enumerate().map(move |(stream, (split, label, index))| DemoImage {
        pixels: draw(&classes[label], World::Field, &mut stream_rng(seed, stream as u64), IMAGE_SIZE),
        label: label as u32,
        name: format!("{}/{}/{index:03}.png", split.as_str(), classes[label].name()),
        split,
    })
}

/// The random numbers of picture number `stream` under `seed`: independent for each pair.
pub fn stream_rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
