//! A linear classifier on features, beside what another one says of the same photos.

use crate::backend::cpu::gemm::{Matrix, MatrixMut, Threads, Write, gemm};

/// logits = features·weightᵀ + bias + share·offset.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Linear {
    /// \[C,E\], row-major.
    pub weight: Vec<f64>,
    /// \[C\]
    pub bias: Vec<f64>,
    /// Factor of the offset.
    pub share: f64,
}

impl Linear {
    /// Logits \[N,C\] of `features` \[N,E\], with their `offset` \[N,C\].
    ///
    /// # Panics
    /// On slices whose lengths are not those.
    pub fn logits(&self, features: &[f64], offset: Option<&[f64]>) -> Vec<f64> {
        let classes = self.bias.len();
        let width = self.weight.len() / classes;
        let rows = || offset.map_or(0, |offset| offset.len() / classes);
        let n = features.len().checked_div(width).unwrap_or_else(rows);
        let mut logits = match offset {
            Some(offset) => offset.iter().map(|z| self.share * z).collect(),
            None => vec![0.0; n * classes],
        };
        for row in logits.chunks_exact_mut(classes) {
            row.iter_mut().zip(&self.bias).for_each(|(z, b)| *z += b);
        }
        let (features, weight) = (Matrix::new(features, n, width), Matrix::new(&self.weight, classes, width));
        let out = MatrixMut::new(&mut logits, n, classes);
        gemm(out, Write::Add, 1.0, features, weight.transposed(), Threads::All);
        logits
    }

    /// With logits that are `factor` times as large.
    pub fn times(mut self, factor: f64) -> Self {
        self.weight.iter_mut().chain(&mut self.bias).for_each(|w| *w *= factor);
        self.share *= factor;
        self
    }

    /// With logits that are the sum of both's.
    pub fn plus(mut self, other: &Self) -> Self {
        let all = self.weight.iter_mut().chain(&mut self.bias);
        all.zip(other.weight.iter().chain(&other.bias)).for_each(|(w, other)| *w += other);
        self.share += other.share;
        self
    }
}

/// The scalar product, by eight sums, which the compiler keeps in vectors.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}
