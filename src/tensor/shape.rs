//! Shapes.

/// The extents of a tensor, outermost first; up to five of them, none on the heap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; Shape::MAX_RANK],
    rank: usize,
}

impl Shape {
    pub const MAX_RANK: usize = 5;

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

    /// The same shape with another leading dimension.
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

impl TryFrom<&[usize]> for Shape {
    type Error = usize;

    /// The error is the rank that was too high.
    fn try_from(extents: &[usize]) -> Result<Shape, usize> {
        if extents.len() > Shape::MAX_RANK {
            return Err(extents.len());
        }
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
