//! Matrix products through the `gemm` crate, behind matrices that know their bounds.

use super::real::Real;
use gemm::Parallelism;

/// A matrix somewhere inside a slice, with any strides.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A dense row-major matrix at the start of `data`.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A matrix whose rows begin `row_stride` elements apart.
    pub fn strided(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        check_bounds(data.len(), rows, columns, row_stride);
        Matrix { data, rows, columns, row_stride, column_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Matrix {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// A matrix to write to; its columns are adjacent.
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A dense row-major matrix at the start of `data`.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A matrix whose rows begin `row_stride` elements apart.
    pub fn strided(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        check_bounds(data.len(), rows, columns, row_stride);
        MatrixMut { data, rows, columns, row_stride }
    }
}

/// The raw product below trusts these bounds.
fn check_bounds(length: usize, rows: usize, columns: usize, row_stride: usize) {
    let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + columns };
    assert!(
        needed <= length && row_stride >= columns,
        "a {rows}x{columns} matrix of stride {row_stride} does not fit {length} elements"
    );
}

/// Whether a product replaces what is in its output or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Replace,
    Add,
}

/// Which threads a product runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All of the pool; the split never crosses the inner dimension, so results do not depend on timing.
    All,
    /// The calling one, for products that already run in parallel.
    One,
}

/// out = scale·a·b, or out += scale·a·b.
pub fn gemm<T: Real>(
    out: MatrixMut<'_, T>,
    write: Write,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: Threads,
) {
    assert!(
        a.rows == out.rows && b.columns == out.columns && a.columns == b.rows,
        "{}x{} by {}x{} into {}x{}",
        a.rows,
        a.columns,
        b.rows,
        b.columns,
        out.rows,
        out.columns
    );
    let parallelism = match threads {
        Threads::All => Parallelism::Rayon(0),
        Threads::One => Parallelism::None,
    };
    // SAFETY: all three matrices lie inside their slices (checked when they were made; transposing keeps
    // the set of elements), `out` borrows its memory exclusively, so it overlaps neither input, and the
    // dimensions agree (asserted above).
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            a.columns,
            out.data.as_mut_ptr(),
            1,
            out.row_stride as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_and_transposed_products_match_plain_loops() {
        let (m, k, n) = (7, 5, 11);
        let a: Vec<f64> = (0..m * 9).map(|i| (i as f64 * 0.7).sin()).collect();
        let b: Vec<f64> = (0..n * k).map(|i| (i as f64 * 0.3).cos()).collect();
        let mut out = vec![2.0; m * 13];
        gemm(
            MatrixMut::strided(&mut out[1..], m, n, 13),
            Write::Add,
            0.5,
            Matrix::strided(&a[2..], m, k, 9),
            Matrix::new(&b, n, k).transposed(),
            Threads::One,
        );
        for i in 0..m {
            for j in 0..n {
                let exact: f64 = (0..k).map(|l| a[2 + i * 9 + l] * b[j * k + l]).sum();
                assert!((out[1 + i * 13 + j] - (2.0 + 0.5 * exact)).abs() < 1e-12);
            }
            assert_eq!(out[i * 13], 2.0, "the columns beside the matrix stay");
        }
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_matrix_beyond_its_slice_is_refused() {
        Matrix::new(&[0.0f32; 5], 2, 3);
    }
}
