//! Layer norm of rows, with statistics in f32.

use crate::backend::cpu::packed::block::SIDE;
use crate::backend::cpu::packed::lanes::{Row, lanes};

/// Numbers in whole [`Row`]s, with zeros behind them.
fn padded(values: &[f32]) -> Vec<[f32; SIDE]> {
    let mut padded = vec![[0.0; SIDE]; values.len().div_ceil(SIDE)];
    padded.as_flattened_mut()[..values.len()].copy_from_slice(values);
    padded
}

/// Row `i` of a row of `values`, the last of which may be shorter.
#[inline(always)]
fn part<E>(values: &mut [E], i: usize) -> &mut [E] {
    let end = values.len().min((i + 1) * SIDE);
    &mut values[i * SIDE..end]
}

lanes! {
    /// Rows as wide as `weight`, normalised, and the mean and 1/σ of each.
    pub fn normalise[L, E](x: &[E], weight: &[f32], bias: &[f32], eps: f32, y: &mut [E], stats: &mut [f32]) {
        let (d, n) = (weight.len(), weight.len() as f32);
        let (there, weight, bias) = (padded(&vec![1.0; d]), padded(weight), padded(bias));
        let mut centred = there.clone();
        for row in 0..x.len() / d {
            let (x, y) = (&x[row * d..][..d], &mut y[row * d..][..d]);
            let mut sum = Row::<L>::splat(0.0);
            for i in 0..centred.len() {
                sum = sum + Row::widened_part(&x[i * SIDE..]);
            }
            let mean = sum.sum() / n;
            let (of_mean, mut squares) = (Row::<L>::splat(mean), Row::splat(0.0));
            for i in 0..centred.len() {
                let value = (Row::widened_part(&x[i * SIDE..]) - of_mean) * Row::load(&there[i]);
                value.store(&mut centred[i]);
                squares = squares + value * value;
            }
            let inverse = 1.0 / (squares.sum() / n + eps).sqrt();
            let of_inverse = Row::splat(inverse);
            for i in 0..centred.len() {
                let value = Row::<L>::load(&centred[i]) * of_inverse;
                (value * Row::load(&weight[i]) + Row::load(&bias[i])).round_to(part(y, i));
            }
            stats[2 * row..][..2].copy_from_slice(&[mean, inverse]);
        }
    }
}

lanes! {
    /// Adds to dx the gradient of rows as wide as `weight`. Behind a row's end its gradient is 0, and adds to no sum.
    pub fn normalise_backward[L, E](dy: &[E], x: &[E], weight: &[f32], stats: &[f32], dx: &mut [E]) {
        let (d, n) = (weight.len(), weight.len() as f32);
        let weight = padded(weight);
        let (mut normal, mut g) = (weight.clone(), weight.clone());
        for row in 0..x.len() / d {
            let (x, dy, dx) = (&x[row * d..][..d], &dy[row * d..][..d], &mut dx[row * d..][..d]);
            let (mean, inverse) = (Row::<L>::splat(stats[2 * row]), Row::<L>::splat(stats[2 * row + 1]));
            let (mut sum_g, mut sum_gx) = (Row::<L>::splat(0.0), Row::<L>::splat(0.0));
            for i in 0..g.len() {
                let of_g = Row::widened_part(&dy[i * SIDE..]) * Row::load(&weight[i]);
                let of_x = (Row::widened_part(&x[i * SIDE..]) - mean) * inverse;
                of_g.store(&mut g[i]);
                of_x.store(&mut normal[i]);
                (sum_g, sum_gx) = (sum_g + of_g, sum_gx + of_g * of_x);
            }
            let (mean_g, mean_gx) = (Row::splat(sum_g.sum() / n), Row::splat(sum_gx.sum() / n));
            for i in 0..g.len() {
                let of_x = Row::<L>::load(&g[i]) - mean_g - Row::load(&normal[i]) * mean_gx;
                let dx = part(dx, i);
                (Row::widened_part(dx) + of_x * inverse).round_to(dx);
            }
        }
    }
}
