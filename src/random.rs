//! Random numbers: which are drawn from which stream of which generator, so that what is drawn for one thing does not
//! move with what is drawn for another.
//!
//! | drawn | generator | stream |
//! |---|---|---|
//! | initial head, adapters and prompts of a run | the seed | 0 |
//! | order of the training images, or draw by classes, in epoch n from 1 | the seed | n |
//! | partners and shares of MixUp in step n | the seed | 2³² + n |
//! | few-shot choice among the images of class n | `few-shot`, seed | n |
//! | crop of image n in an epoch | `augment`, seed, epoch | n |
//! | drawn flower n | the seed | n |
//! | folds of a logistic regression, its calibration, numbers of checks | the seed | 0 |
//!
//! Splits are drawn by hashes of names, dropout on the device by counters.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Where the streams of MixUp's steps begin, above those of all epochs.
pub(crate) const MIXUP: u64 = 1 << 32;

/// Stream number `number` of the generator that is seeded by a number: independent for each pair.
pub fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    with_stream(ChaCha8Rng::seed_from_u64(seed), number)
}

/// Stream number `stream` of the generator of `purpose` under `numbers` (the seed first): far from every other
/// purpose's, and from those that are seeded by a number alone.
pub(crate) fn of_purpose(purpose: &str, numbers: &[u64], stream: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new_with_prefix(purpose);
    numbers.iter().for_each(|number| hash.update(number.to_le_bytes()));
    with_stream(ChaCha8Rng::from_seed(hash.finalize().into()), stream)
}

/// The generator of the tensor `name` among random weights.
pub(crate) fn of_name(seed: u64, name: &str) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(Sha256::new_with_prefix(seed.to_le_bytes()).chain_update(name).finalize().into())
}

fn with_stream(mut generator: ChaCha8Rng, stream: u64) -> ChaCha8Rng {
    generator.set_stream(stream);
    generator
}
