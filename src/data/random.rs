//! Random streams by purpose, so that what is drawn for one thing does not move with what is drawn for
//! another.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The generator of `purpose` under `numbers` (the seed first): far from every other purpose's, and from
/// those that are seeded by a number alone.
pub(super) fn generator(purpose: &str, numbers: &[u64]) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(purpose);
    for number in numbers {
        hash.update(number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// The stream `number` of a generator that nothing has been drawn from.
pub(super) fn stream(generator: &ChaCha8Rng, number: u64) -> ChaCha8Rng {
    let mut rng = generator.clone();
    rng.set_stream(number);
    rng
}
