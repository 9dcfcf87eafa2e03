//! Shapes.

use thiserror::Error;

/// The extents of a tensor, outermost first; up to five of them, none on the heap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; Shape::MAX_RANK],
    rank: usize,
}

impl Shape {
    /// The most extents that a shape has room for.
    pub const MAX_RANK: usize = 5;

    /// The extents, outermost first; none for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// Extent of the leading dimension; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.dims().first().copied().unwrap_or(1)
    }

    /// Elements below the leading dimension.
    pub fn row_elements(&self) -> usize {
        self.dims().iter().skip(1).product()
    }

    /// Extent of the innermost dimension; 1 for a scalar.
    pub fn columns(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// Rows and columns when all dimensions but the last are taken together.
    pub fn matrix(&self) -> (usize, usize) {
        let columns = self.columns();
        (self.elements() / columns.max(1), columns)
    }

    /// Replaces the leading dimension by `rows`; a scalar stays one.
    pub fn with_rows(mut self, rows: usize) -> Shape {
        if self.rank > 0 {
            self.dims[0] = rows;
        }
        self
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(extents: [usize; N]) -> Shape {
        const { assert!(N <= Shape::MAX_RANK) };
        let mut dims = [0; Shape::MAX_RANK];
        dims[..N].copy_from_slice(&extents);
        Shape { dims, rank: N }
    }
}

/// Extents that make no [`Shape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// More than [`Shape::MAX_RANK`] extents; it says how many.
    #[error("{0} dimensions, more than the {max} that are supported", max = Shape::MAX_RANK)]
    Rank(usize),
    /// Even with extents of 0 taken as 1, so that the elements of a row can be counted too.
    #[error("more elements than can be counted")]
    Overflow,
}

impl TryFrom<&[usize]> for Shape {
    type Error = ShapeError;

    fn try_from(extents: &[usize]) -> Result<Shape, ShapeError> {
        if extents.len() > Shape::MAX_RANK {
            return Err(ShapeError::Rank(extents.len()));
        }
        // Eight bytes an element is the most that any type takes.
        let bytes = extents.iter().try_fold(8usize, |product, &n| product.checked_mul(n.max(1)));
        bytes.ok_or(ShapeError::Overflow)?;
        let mut dims = [0; Shape::MAX_RANK];
        dims[..extents.len()].copy_from_slice(extents);
        Ok(Shape { dims, rank: extents.len() })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.dims()).finish()
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_from_files_are_counted_before_they_are_a_shape() {
        assert_eq!(Shape::try_from([2, 0, 3].as_slice()), Ok(Shape::from([2, 0, 3])));
        assert_eq!(Shape::try_from([1; 6].as_slice()), Err(ShapeError::Rank(6)));
        for extents in [[1 << 32, 1 << 32], [0, usize::MAX], [1 << 30, 1 << 31]] {
            assert_eq!(Shape::try_from(extents.as_slice()), Err(ShapeError::Overflow), "{extents:?}");
        }
        assert!(Shape::try_from([1 << 30, 1 << 30].as_slice()).is_ok());
    }
}
