//! What is handed to a device: in one piece, or row by row.

use super::{DType, Shape, Tensor, TensorError, View};
use rayon::prelude::*;
use std::slice;

/// A tensor on the host that is read once.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// All of it in one piece.
    View(View<'a>),
    /// Its rows in several.
    Rows(Rows<'a>),
}

/// A tensor whose rows lie apart, as the images of a batch do in the file that they are mapped from.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    shape: Shape,
    dtype: DType,
    rows: &'a [&'a [u8]],
}

impl<'a> Rows<'a> {
    /// Wraps `rows`; their number is the leading extent of `shape`, and each has the bytes of one row.
    pub fn new(shape: Shape, dtype: DType, rows: &'a [&'a [u8]]) -> Result<Self, TensorError> {
        let expected = shape.row_elements() * dtype.size();
        if let Some(row) = rows.iter().find(|row| row.len() != expected) {
            return Err(TensorError::Length { shape, dtype, expected, found: row.len() });
        }
        if rows.len() != shape.rows() {
            return Err(TensorError::shape("rows", shape, shape.with_rows(rows.len())));
        }
        Ok(Rows { shape, dtype, rows })
    }
}

impl<'a> From<View<'a>> for Source<'a> {
    fn from(view: View<'a>) -> Self {
        Source::View(view)
    }
}

impl<'a> From<Rows<'a>> for Source<'a> {
    fn from(rows: Rows<'a>) -> Self {
        Source::Rows(rows)
    }
}

impl<'a> Source<'a> {
    /// The extents, outermost first.
    pub fn shape(&self) -> Shape {
        match self {
            Source::View(view) => view.shape,
            Source::Rows(rows) => rows.shape,
        }
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        match self {
            Source::View(view) => view.dtype,
            Source::Rows(rows) => rows.dtype,
        }
    }

    /// The bytes: the pieces one after the other are the whole.
    pub fn pieces(&self) -> &[&'a [u8]] {
        match self {
            Source::View(view) => slice::from_ref(&view.bytes),
            Source::Rows(rows) => rows.rows,
        }
    }

    /// Writes the elements into `out`, which has the same shape, converting as [`View::to_tensor`] does.
    pub fn convert_into(&self, out: &mut Tensor) -> Result<(), TensorError> {
        let Rows { shape, dtype, rows } = match self {
            Source::View(view) => return view.convert_into(out),
            Source::Rows(rows) => *rows,
        };
        if out.shape != shape {
            return Err(TensorError::shape("copy", out.shape, shape));
        }
        let (row, to) = (shape.with_rows(1), out.dtype);
        let size = row.elements() * to.size();
        if size == 0 {
            return Ok(());
        }
        out.bytes_mut().par_chunks_exact_mut(size).zip(rows).try_for_each(|(out, bytes)| {
            match to == dtype {
                true => out.copy_from_slice(bytes),
                false => out.copy_from_slice(View::new(row, dtype, bytes)?.to_tensor(to)?.bytes()),
            }
            Ok(())
        })
    }

    /// An owned copy with the elements converted to `dtype`, as [`View::to_tensor`] makes it.
    pub fn to_tensor(&self, dtype: DType) -> Result<Tensor, TensorError> {
        let mut out = Tensor::zeros(self.shape(), dtype);
        self.convert_into(&mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_from_anywhere_become_the_tensor_that_they_are_the_rows_of() {
        let whole = Tensor::from_slice([5, 3], &(0..15).map(|v| v as f32 / 4.0).collect::<Vec<_>>()).unwrap();
        let view = whole.view();
        let order = [3, 0, 3, 4];
        let rows: Vec<&[u8]> = order.iter().map(|&row| view.rows(row, 1).unwrap().bytes()).collect();
        let source = Source::from(Rows::new([4, 3].into(), DType::F32, &rows).unwrap());
        let expected: Vec<f64> =
            order.iter().flat_map(|&row| (0..3).map(move |column| (3 * row + column) as f64 / 4.0)).collect();
        for dtype in [DType::F32, DType::F16, DType::F64] {
            let found = source.to_tensor(dtype).unwrap();
            assert_eq!(found.shape(), Shape::from([4, 3]));
            assert_eq!(found.view().to_tensor(DType::F64).unwrap().typed::<f64>().unwrap(), expected);
        }
        assert!(source.to_tensor(DType::U8).is_err());
        assert!(source.convert_into(&mut Tensor::zeros([3, 4], DType::F32)).is_err());
        assert_eq!(source.pieces().concat(), source.to_tensor(DType::F32).unwrap().bytes());
        assert_eq!(Source::from(view).pieces().concat(), whole.bytes());
    }

    #[test]
    fn rows_of_other_sizes_and_numbers_are_refused() {
        let rows: [&[u8]; 2] = [&[0; 12], &[0; 11]];
        assert!(matches!(Rows::new([2, 3].into(), DType::F32, &rows), Err(TensorError::Length { .. })));
        assert!(matches!(Rows::new([2, 3].into(), DType::F32, &rows[..1]), Err(TensorError::Shape { .. })));
        assert!(Rows::new([1, 3].into(), DType::F32, &rows[..1]).is_ok());
    }
}
