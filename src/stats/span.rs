//! The subspace that features lie in. A classifier fitted to them has its weights there too, so that it can be fitted in
//! coordinates of the subspace: for 100 photos, or behind a tower that is narrower than its features, that is a part of
//! the work.

use super::linear::dot;
use crate::backend::cpu::gemm::{Matrix, MatrixMut, Threads, Write, gemm};

/// A row is in the subspace when what is left of it is a smaller part than this: features come from f32.
const NOISE: f64 = 1e-6;

/// So many rows in a row that are in it say that few are not.
const IN_VAIN: usize = 16;

/// A subspace of less than half as many dimensions as the features have.
pub(crate) struct Span {
    /// Orthonormal rows \[r,E\].
    basis: Vec<f64>,
    /// E
    width: usize,
}

impl Span {
    /// That of the rows \[N,E\]; none where it has half as many dimensions as these or more, or no dimension at all.
    pub fn of(rows: &[f64], width: usize) -> Option<Self> {
        let count = rows.len().checked_div(width)?;
        let mut span = Span { basis: Vec::new(), width };
        // From all over: neighbours are often views of one photo, or photos of one class.
        let stride = (count / width).max(1);
        let mut in_vain = 0;
        for row in rows.chunks_exact(width).step_by(stride) {
            let dimensions = span.dimensions();
            span.extend_by(row)?;
            in_vain = if span.dimensions() > dimensions { 0 } else { in_vain + 1 };
            if in_vain == IN_VAIN {
                break;
            }
        }
        // The others all together, which is faster.
        let projected = span.expand(&span.coordinates(rows), count);
        for (row, seen) in rows.chunks_exact(width).zip(projected.chunks_exact(width)) {
            let left = row.iter().zip(seen).map(|(x, seen)| (x - seen) * (x - seen)).sum::<f64>();
            if left > NOISE * NOISE * dot(row, row) {
                span.extend_by(row)?;
            }
        }
        (span.dimensions() > 0).then_some(span)
    }

    /// r
    pub fn dimensions(&self) -> usize {
        self.basis.len() / self.width
    }

    /// Coordinates \[N,r\] of rows \[N,E\], without what is outside.
    pub fn coordinates(&self, rows: &[f64]) -> Vec<f64> {
        let (count, dimensions) = (rows.len() / self.width, self.dimensions());
        let mut out = vec![0.0; count * dimensions];
        let basis = Matrix::new(&self.basis, dimensions, self.width).transposed();
        let rows = Matrix::new(rows, count, self.width);
        gemm(MatrixMut::new(&mut out, count, dimensions), Write::Replace, 1.0, rows, basis, Threads::All);
        out
    }

    /// The rows \[N,E\] with these coordinates \[N,r\].
    pub fn expand(&self, coordinates: &[f64], count: usize) -> Vec<f64> {
        let dimensions = self.dimensions();
        let mut out = vec![0.0; count * self.width];
        let basis = Matrix::new(&self.basis, dimensions, self.width);
        let coordinates = Matrix::new(coordinates, count, dimensions);
        gemm(
            MatrixMut::new(&mut out, count, self.width),
            Write::Replace,
            1.0,
            coordinates,
            basis,
            Threads::All,
        );
        out
    }

    /// Adds the direction in which a row leaves the subspace, if it does; none once there are too many.
    fn extend_by(&mut self, row: &[f64]) -> Option<()> {
        let mut rest = row.to_vec();
        // Twice is enough (Kahan; Parlett 1980) for a direction that is orthogonal to the bit.
        for _ in 0..2 {
            for direction in self.basis.chunks_exact(self.width) {
                let along = dot(&rest, direction);
                rest.iter_mut().zip(direction).for_each(|(x, d)| *x -= along * d);
            }
        }
        let left = dot(&rest, &rest).sqrt();
        if left > NOISE * dot(row, row).sqrt() {
            self.basis.extend(rest.iter().map(|x| x / left));
        }
        (2 * self.dimensions() < self.width).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::logistic::tests::case;
    use approx::assert_relative_eq;

    /// Rows \[60,width\] in a subspace of 7 dimensions, apart from the rounding of f32.
    fn rows(width: usize) -> Vec<f64> {
        let (inside, _) = case(7);
        let into = |i: usize, j: usize| ((3 * i * j + 5 * i + j) % 11) as f64 - 4.0;
        let row = |x: &[f64], j: usize| x.iter().enumerate().map(|(i, x)| x * into(i, j)).sum::<f64>() as f32;
        inside.chunks(7).flat_map(|x| (0..width).map(move |j| f64::from(row(x, j)))).collect()
    }

    #[test]
    fn the_basis_is_orthonormal_and_the_rows_come_back() {
        let rows = rows(40);
        let span = Span::of(&rows, 40).unwrap();
        assert_eq!(span.dimensions(), 7);
        for (i, a) in span.basis.chunks(40).enumerate() {
            for (j, b) in span.basis.chunks(40).enumerate() {
                assert_relative_eq!(dot(a, b), if i == j { 1.0 } else { 0.0 }, epsilon = 1e-14);
            }
        }
        let back = span.expand(&span.coordinates(&rows), 60);
        let largest = rows.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        rows.iter().zip(&back).for_each(|(x, y)| assert_relative_eq!(x, y, epsilon = 1e-6 * largest));
    }

    #[test]
    fn a_direction_of_the_last_row_alone_is_found() {
        let mut rows = rows(40);
        rows[59 * 40 + 3] += 1.0;
        let span = Span::of(&rows, 40).unwrap();
        assert_eq!(span.dimensions(), 8);
        let back = span.expand(&span.coordinates(&rows[59 * 40..]), 1);
        assert_relative_eq!(back[3], rows[59 * 40 + 3], max_relative = 1e-6);
    }

    #[test]
    fn where_it_would_not_pay_there_is_none() {
        assert!(Span::of(&rows(15), 15).is_some());
        assert!(Span::of(&rows(14), 14).is_none(), "7 of 14");
        assert!(Span::of(&case(7).0, 7).is_none());
        assert!(Span::of(&[], 0).is_none());
        assert!(Span::of(&[0.0; 12], 4).is_none());
    }
}
