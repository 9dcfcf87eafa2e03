//! MixUp of the rows of a matrix.

use super::number::OnHost;
use super::real::Real;
use super::*;

/// A mix of `batch` rows as slices, after its indices were checked.
pub(super) struct Mixed<'a, T> {
    pub partner: &'a [u32],
    pub inverse: &'a [u32],
    pub lambda: &'a [T],
}

impl<'a, T: Real> Mixed<'a, T> {
    pub fn new<B: OnHost>(op: &'static str, mix: &'a Mix<B>) -> Result<Self> {
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

impl<T: Real> MixRowsOp for Cpu<T> {
    fn mix_rows_checked(
        _device: Checked<'_, Self>,
        x: &Tensor,
        mix: &Mix<Self>,
        y: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "mix_rows";
        let width = x.shape().columns();
        let mixed = Mixed::<T>::new(OP, mix)?;
        let x = x.typed::<T>()?;
        for (i, y) in y.typed_mut::<T>()?.chunks_exact_mut(width).enumerate() {
            let (partner, own, other) = mixed.of(i);
            let rows = x[i * width..][..width].iter().zip(&x[partner * width..][..width]);
            y.iter_mut().zip(rows).for_each(|(y, (&a, &b))| *y = own * a + other * b);
        }
        Ok(())
    }

    fn mix_rows_backward_checked(
        _device: Checked<'_, Self>,
        dy: &Tensor,
        mix: &Mix<Self>,
        dx: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "mix_rows_backward";
        let width = dy.shape().columns();
        let mixed = Mixed::<T>::new(OP, mix)?;
        let dy = dy.typed::<T>()?;
        for (i, dx) in dx.typed_mut::<T>()?.chunks_exact_mut(width).enumerate() {
            let k = mixed.inverse[i] as usize;
            let (own, other) = (mixed.lambda[i], T::ONE - mixed.lambda[k]);
            let rows = dy[i * width..][..width].iter().zip(&dy[k * width..][..width]);
            dx.iter_mut().zip(rows).for_each(|(dx, (&a, &b))| *dx = own * a + other * b);
        }
        Ok(())
    }
}
