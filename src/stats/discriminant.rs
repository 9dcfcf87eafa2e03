//! Gaussian discriminant analysis in closed form (Wang et al. 2024, "A Hard-to-Beat Baseline for Training-free CLIP-based
//! Adaptation"): a Gaussian for each class, all with one covariance.
//!
//! With means μ_c, their mean μ̄, and S = Σ (x − μ_c)(x − μ_c)ᵀ/(R − C) over the R rows, shrunk towards a multiple of
//! the identity,
//!
//! P = ((1 − γ)S + γ tr(S)/E·I)⁻¹,  γ = E/(N − 1 + E) for N photos (Kubokawa and Srivastava 2008),
//! W_c = P(μ_c − μ̄),  b_c = −½(μ_c − μ̄)ᵀW_c − μ̄ᵀW_c,
//!
//! for classes that are all equally likely. With one photo a class there is nothing around the means, and S is taken about
//! the mean of all.

use super::linear::{Linear, dot};
use super::photos::Photos;
use crate::backend::cpu::gemm::{Matrix, MatrixMut, Threads, Write, gemm};

/// Fits `photos`, which are checked, of width 1 or more. The share of the offset is 0. Where `width` is that of coordinates
/// in a subspace, `of` is that of the features, E above; else the same.
pub(crate) fn discriminant(photos: Photos<'_>, width: usize, of: usize, classes: usize) -> Linear {
    let rows = photos.labels.len();
    let mut counts = vec![0.0; classes];
    let mut means = vec![0.0; classes * width];
    for (row, &label) in photos.features.chunks_exact(width).zip(photos.labels) {
        let label = label as usize;
        counts[label] += 1.0;
        means[label * width..(label + 1) * width].iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
    }
    for (mean, count) in means.chunks_exact_mut(width).zip(&counts) {
        mean.iter_mut().for_each(|mean| *mean /= f64::max(*count, 1.0));
    }
    let mut middle = vec![0.0; width];
    for mean in means.chunks_exact(width) {
        middle.iter_mut().zip(mean).for_each(|(middle, mean)| *middle += mean / classes as f64);
    }
    let about_means = rows / photos.views > classes;
    let mut centred = photos.features.to_vec();
    for (row, &label) in centred.chunks_exact_mut(width).zip(photos.labels) {
        let mean = &means[label as usize * width..][..width];
        let centre = if about_means { mean } else { &middle };
        row.iter_mut().zip(centre).for_each(|(x, centre)| *x -= centre);
    }
    let freedom = rows - if about_means { classes } else { 1.min(rows) };
    let mut covariance = vec![0.0; width * width];
    let design = Matrix::new(&centred, rows, width);
    let out = MatrixMut::new(&mut covariance, width, width);
    gemm(out, Write::Replace, 1.0 / freedom.max(1) as f64, design.transposed(), design, Threads::All);
    let gamma = of as f64 / ((rows / photos.views) as f64 - 1.0 + of as f64);
    let trace: f64 = (0..width).map(|i| covariance[i * width + i]).sum();
    // Where all photos are one, any multiple of the identity will do.
    let level = if trace > 0.0 { trace / of as f64 } else { 1.0 };
    covariance.iter_mut().for_each(|s| *s *= 1.0 - gamma);
    (0..width).for_each(|i| covariance[i * width + i] += gamma * level);
    let mut weight: Vec<f64> =
        means.chunks_exact(width).flat_map(|mean| mean.iter().zip(&middle).map(|(m, n)| m - n)).collect();
    let from_middle = weight.clone();
    solve(&mut covariance, width, &mut weight);
    let rows = weight.chunks_exact(width).zip(from_middle.chunks_exact(width));
    let bias = rows.map(|(w, m)| {
        w.iter().zip(m.iter().zip(&middle)).map(|(w, (m, middle))| -w * (0.5 * m + middle)).sum()
    });
    Linear { bias: bias.collect(), weight, share: 0.0 }
}

/// Puts A⁻¹b in the place of every row b of `rows`, for a positive definite `a` \[n,n\], which its Cholesky factor
/// replaces.
fn solve(a: &mut [f64], n: usize, rows: &mut [f64]) {
    for j in 0..n {
        let (above, below) = a.split_at_mut((j + 1) * n);
        let pivot_row = &mut above[j * n..];
        let pivot = (pivot_row[j] - dot(&pivot_row[..j], &pivot_row[..j])).sqrt();
        pivot_row[j] = pivot;
        for row in below.chunks_exact_mut(n) {
            row[j] = (row[j] - dot(&row[..j], &pivot_row[..j])) / pivot;
        }
    }
    for x in rows.chunks_exact_mut(n) {
        for i in 0..n {
            x[i] = (x[i] - dot(&a[i * n..i * n + i], &x[..i])) / a[i * n + i];
        }
        for i in (0..n).rev() {
            x[i] /= a[i * n + i];
            let (before, at) = (i, x[i]);
            x[..before].iter_mut().zip(&a[i * n..i * n + i]).for_each(|(x, l)| *x -= l * at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::logistic::tests::{case, softmax};
    use approx::assert_relative_eq;

    /// By numpy, and by scikit-learn's `LinearDiscriminantAnalysis`: tools/statistics_reference.py.
    #[test]
    fn probabilities_agree_with_numpy_and_scikit_learn() {
        let (features, labels) = case(7);
        let head = discriminant(Photos::new(&features, &labels), 7, 7, 5);
        let found = softmax(&head.logits(&features[..7], None));
        let expected = [0.26289799, 0.41816391, 0.00056581, 0.24724413, 0.07112816];
        found.iter().zip(expected).for_each(|(p, q)| assert_relative_eq!(*p, q, epsilon = 1e-8));
    }

    #[test]
    fn with_a_photo_a_class_the_spread_is_about_the_middle() {
        let (features, labels) = case(7);
        let first = (0..5).map(|class| labels.iter().position(|label| *label == class).unwrap());
        let rows: Vec<f64> = first.flat_map(|i| features[7 * i..7 * (i + 1)].to_vec()).collect();
        let head = discriminant(Photos::new(&rows, &[0, 1, 2, 3, 4]), 7, 7, 5);
        let found = softmax(&head.logits(&features[..7], None));
        let expected = [0.96789437, 0.00217393, 0.0092668, 0.00229313, 0.01837178];
        found.iter().zip(expected).for_each(|(p, q)| assert_relative_eq!(*p, q, epsilon = 1e-8));
    }

    #[test]
    fn degenerate_photos_make_finite_heads() {
        // All alike; one photo in all; fewer directions than the width.
        let flat: Vec<f64> = (0..8 * 6).map(|k| if k % 6 < 2 { ((k / 6) % 3) as f64 } else { 1.0 }).collect();
        let cases: [(&[f64], &[u32], usize, usize); 3] = [
            (&[3.0; 8], &[0, 1, 1, 0], 2, 2),
            (&[1.0, 2.0], &[0], 2, 1),
            (&flat, &[0, 1, 2, 0, 1, 2, 0, 1], 6, 3),
        ];
        for (features, labels, width, classes) in cases {
            let head = discriminant(Photos::new(features, labels), width, width, classes);
            assert_eq!((head.weight.len(), head.bias.len()), (classes * width, classes));
            assert!(head.weight.iter().chain(&head.bias).all(|w| w.is_finite()), "{head:?}");
        }
    }

    #[test]
    fn a_system_is_solved_whatever_its_size() {
        for n in [1, 2, 17, 40] {
            let half: Vec<f64> = (0..n * n).map(|k| ((7 * k + k / n) % 13) as f64 / 13.0).collect();
            let mut a = vec![0.0; n * n];
            for (i, row) in half.chunks(n).enumerate() {
                for (j, other) in half.chunks(n).enumerate() {
                    a[i * n + j] = dot(row, other) + if i == j { 0.5 } else { 0.0 };
                }
            }
            let expected: Vec<f64> = (0..n).map(|i| (i % 5) as f64 - 1.5).collect();
            let mut b: Vec<f64> = a.chunks(n).map(|row| dot(row, &expected)).collect();
            solve(&mut a, n, &mut b);
            b.iter().zip(&expected).for_each(|(x, y)| assert_relative_eq!(*x, *y, epsilon = 1e-9));
        }
    }
}
