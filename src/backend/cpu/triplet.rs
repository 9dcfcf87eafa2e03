//! Batch-hard triplet loss on features.

use super::adamw::loss_scale;
use super::real::{Real, sum_of};
use super::*;
use rayon::prelude::*;

/// No distance is below the root of this; where one would be, its gradient is 0.
const SMALLEST_SQUARE: f64 = 1e-12;

/// In `pairs`, an anchor without a loss.
const NONE: u32 = u32::MAX;

impl<T: Real> TripletOp for Cpu<T> {
    fn triplet_checked(
        _device: Checked<'_, Self>,
        f: &Tensor,
        labels: &Tensor,
        margin: f64,
        pairs: &mut Tensor,
        distances: &mut Tensor,
        stats: &mut Tensor,
    ) -> Result<()> {
        let (batch, width) = (f.shape().rows(), f.shape().columns());
        let (f, labels, margin) = (f.typed::<T>()?, labels.typed::<u32>()?, T::from_f64(margin));
        let outputs =
            pairs.typed_mut::<u32>()?.par_chunks_mut(2).zip(distances.typed_mut::<T>()?.par_chunks_mut(2));
        let losses: Vec<T> = outputs
            .enumerate()
            .map(|(anchor, (pair, distance))| {
                (pair[0], pair[1]) = (NONE, NONE);
                (distance[0], distance[1]) = (T::ZERO, T::ZERO);
                let Some([positive, negative]) = hardest(f, labels, anchor, width) else { return T::ZERO };
                (distance[0], distance[1]) = (positive.distance, negative.distance);
                let loss = positive.distance - negative.distance + margin;
                // NaN is not below zero, and goes on into the mean.
                if loss <= T::ZERO {
                    return T::ZERO;
                }
                (pair[0], pair[1]) = (positive.index as u32, negative.index as u32);
                loss
            })
            .collect();
        let mut sum = T::ZERO;
        losses.iter().for_each(|&loss| sum += loss);
        let stats = stats.typed_mut::<T>()?;
        stats[Stat::LossTriplet as usize] = sum / T::from_f64(batch as f64);
        let active = pairs.typed::<u32>()?.iter().step_by(2).filter(|&&positive| positive != NONE).count();
        stats[Stat::TripletsActive as usize] = T::from_f64(active as f64 / batch as f64);
        let (mut count, mut sums) = (0, [T::ZERO; 2]);
        for pair in distances.typed::<T>()?.chunks_exact(2).filter(|pair| pair[0] != T::ZERO) {
            count += 1;
            sums[0] += pair[0];
            sums[1] += pair[1];
        }
        let count = T::from_f64(count.max(1) as f64);
        stats[Stat::DistancePositive as usize] = sums[0] / count;
        stats[Stat::DistanceNegative as usize] = sums[1] / count;
        Ok(())
    }

    fn triplet_backward_checked(
        _device: Checked<'_, Self>,
        f: &Tensor,
        pairs: &Tensor,
        distances: &Tensor,
        weight: f64,
        control: Option<&Tensor>,
        df: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "triplet_backward";
        let (batch, width) = (f.shape().rows(), f.shape().columns());
        let (f, pairs, distances) = (f.typed::<T>()?, pairs.typed::<u32>()?, distances.typed::<T>()?);
        if let Some(other) = pairs.iter().find(|&&other| other != NONE && other as usize >= batch) {
            return Err(BackendError::Invalid {
                op: OP,
                problem: format!("image {other} in a batch of {batch}"),
            });
        }
        let loss_scale = loss_scale::<T>(control)?;
        let each = weight * loss_scale / batch as f64;
        let smallest = T::from_f64(SMALLEST_SQUARE).sqrt();
        let df = df.typed_mut::<T>()?;
        for (anchor, (pair, distance)) in pairs.chunks_exact(2).zip(distances.chunks_exact(2)).enumerate() {
            for ((&other, &distance), sign) in pair.iter().zip(distance).zip([each, -each]) {
                if other == NONE || distance <= smallest {
                    continue;
                }
                // ±d(anchor, other): the gradient points from the one to the other.
                let (other, factor) = (other as usize, T::from_f64(sign) / distance);
                for column in 0..width {
                    let along = factor * (f[anchor * width + column] - f[other * width + column]);
                    df[anchor * width + column] += along;
                    df[other * width + column] += -along;
                }
            }
        }
        Ok(())
    }
}

/// Another image, as an anchor sees it.
#[derive(Clone, Copy)]
struct Other<T> {
    index: usize,
    distance: T,
}

/// Whether a is larger than b, where NaN is the largest of all: so it is found in the loss.
fn exceeds<T: Real>(a: T, b: T) -> bool {
    let is_nan = |v: T| v.partial_cmp(&v).is_none();
    a > b || (is_nan(a) && !is_nan(b))
}

/// The farthest positive and the nearest negative of an anchor, if it has both.
fn hardest<T: Real>(f: &[T], labels: &[u32], anchor: usize, width: usize) -> Option<[Other<T>; 2]> {
    let own = &f[anchor * width..][..width];
    let (mut farthest, mut nearest) = (None::<Other<T>>, None::<Other<T>>);
    for (index, row) in f.chunks_exact(width).enumerate() {
        if index == anchor {
            continue;
        }
        let square = sum_of(own, row, |a, b| (a - b) * (a - b));
        let smallest = T::from_f64(SMALLEST_SQUARE);
        // Written so that NaN stays NaN.
        let distance = if square < smallest { smallest } else { square }.sqrt();
        let other = Some(Other { index, distance });
        if labels[index] == labels[anchor] {
            if farthest.is_none_or(|best| exceeds(distance, best.distance)) {
                farthest = other;
            }
        } else if nearest.is_none_or(|best| exceeds(-distance, -best.distance)) {
            nearest = other;
        }
    }
    Some([farthest?, nearest?])
}
