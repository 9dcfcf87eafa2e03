//! Central differences.

use crate::random;
use rand::seq::index;
use rand_distr::{Distribution, StandardNormal};

/// Half the distance between the two points of a difference: in f64 the error of the difference itself
/// (h²·f‴/6, and rounding/h) is then near 1e-10 of the values.
const STEP: f64 = 1e-5;

/// Elements of a tensor that are probed at the most.
const PROBES: usize = 48;

/// Compares `gradient` with central differences of `value` around `x`, at up to 48 elements; returns the
/// largest error over the gradient's largest element.
pub fn against<E>(
    x: &[f64],
    gradient: &[f64],
    seed: u64,
    mut value: impl FnMut(&[f64]) -> Result<f64, E>,
) -> Result<f64, E> {
    let largest = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
    let mut rng = random::stream(seed, 0);
    let mut moved = x.to_vec();
    let mut worst = 0.0f64;
    for index in index::sample(&mut rng, x.len(), x.len().min(PROBES)) {
        moved[index] = x[index] + STEP;
        let above = value(&moved)?;
        moved[index] = x[index] - STEP;
        let below = value(&moved)?;
        moved[index] = x[index];
        let error = ((above - below) / (2.0 * STEP) - gradient[index]).abs();
        // A gradient that is not a number must not pass for a small error.
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    // All zero is a gradient too, but then every difference must be.
    Ok(if largest > 0.0 { worst / largest } else { worst })
}

/// `count` numbers from a normal distribution.
pub fn normal(count: usize, seed: u64) -> Vec<f64> {
    let mut rng = random::stream(seed, 0);
    (0..count).map(|_| StandardNormal.sample(&mut rng)).collect()
}
