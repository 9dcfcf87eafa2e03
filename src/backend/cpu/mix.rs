//! MixUp of the rows of a matrix.

use super::number::OnHost;
use super::real::Real;
use crate::backend::{BackendError, Mix, Result, expect_shape};
use crate::tensor::Tensor;

/// A mix of `batch` rows as slices, after its shapes and indices were checked.
pub(super) struct Mixed<'a, T> {
    pub partner: &'a [u32],
    pub inverse: &'a [u32],
    pub lambda: &'a [T],
}

impl<'a, T: Real> Mixed<'a, T> {
    pub fn new<B: OnHost>(op: &'static str, mix: &'a Mix<B>, batch: usize) -> Result<Self> {
        expect_shape(op, "partner", [batch], mix.partner.shape())?;
        expect_shape(op, "inverse", [batch], mix.inverse.shape())?;
        expect_shape(op, "lambda", [batch], mix.lambda.shape())?;
        let (partner, inverse) = (mix.partner.typed::<u32>()?, mix.inverse.typed::<u32>()?);
        let inverts = |(i, &k): (usize, &u32)| partner.get(k as usize) == Some(&(i as u32));
        if !inverse.iter().enumerate().all(inverts) {
            let problem = "inverse does not invert partner, or partner is no permutation".into();
            return Err(BackendError::Invalid { op, problem });
        }
        Ok(Mixed { partner, inverse, lambda: mix.lambda.typed::<T>()? })
    }

    /// The row that row `i` is mixed with, and the two weights.
    pub fn of(&self, i: usize) -> (usize, T, T) {
        (self.partner[i] as usize, self.lambda[i], T::ONE - self.lambda[i])
    }
}

pub fn mix_rows<T: Real, B: OnHost>(x: &Tensor, mix: &Mix<B>, y: &mut Tensor) -> Result<()> {
    const OP: &str = "mix_rows";
    let (batch, width) = (x.shape().rows(), x.shape().columns());
    expect_shape(OP, "y", x.shape(), y.shape())?;
    let mixed = Mixed::<T>::new(OP, mix, batch)?;
    let x = x.typed::<T>()?;
    for (i, y) in y.typed_mut::<T>()?.chunks_exact_mut(width).enumerate() {
        let (partner, own, other) = mixed.of(i);
        let rows = x[i * width..][..width].iter().zip(&x[partner * width..][..width]);
        y.iter_mut().zip(rows).for_each(|(y, (&a, &b))| *y = own * a + other * b);
    }
    Ok(())
}

pub fn mix_rows_backward<T: Real, B: OnHost>(dy: &Tensor, mix: &Mix<B>, dx: &mut Tensor) -> Result<()> {
    const OP: &str = "mix_rows_backward";
    let (batch, width) = (dy.shape().rows(), dy.shape().columns());
    expect_shape(OP, "dx", dy.shape(), dx.shape())?;
    let mixed = Mixed::<T>::new(OP, mix, batch)?;
    let dy = dy.typed::<T>()?;
    for (i, dx) in dx.typed_mut::<T>()?.chunks_exact_mut(width).enumerate() {
        let k = mixed.inverse[i] as usize;
        let (own, other) = (mixed.lambda[i], T::ONE - mixed.lambda[k]);
        let rows = dy[i * width..][..width].iter().zip(&dy[k * width..][..width]);
        dx.iter_mut().zip(rows).for_each(|(dx, (&a, &b))| *dx = own * a + other * b);
    }
    Ok(())
}
