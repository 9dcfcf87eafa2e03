//! Scaling rows to unit length.

use super::number::Number;
use super::real::{Real, sum_of};
use super::*;

impl<T: Real> L2NormOp for Cpu<T> {
    fn l2_norm_checked(
        device: Checked<'_, Self>,
        x: &Tensor,
        f: &mut Tensor,
        norms: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, l2_norm<>(x, f, norms))
    }

    fn l2_norm_backward_checked(
        device: Checked<'_, Self>,
        df: &Tensor,
        f: &Tensor,
        norms: &Tensor,
        dx: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, l2_norm_backward<>(df, f, norms, dx))
    }
}

fn l2_norm<T: Number>(x: &Tensor, f: &mut Tensor, norms: &mut Tensor) -> Result<()> {
    let d = x.shape().columns();
    let norms = norms.typed_mut::<T::Real>()?;
    let rows = f.typed_mut::<T::Real>()?.chunks_exact_mut(d).zip(x.typed::<T>()?.chunks_exact(d));
    for ((f, x), norm) in rows.zip(norms) {
        *norm = length(x);
        for (f, &x) in f.iter_mut().zip(x) {
            *f = x.widen() / *norm;
        }
    }
    Ok(())
}

fn l2_norm_backward<T: Number>(df: &Tensor, f: &Tensor, norms: &Tensor, dx: &mut Tensor) -> Result<()> {
    let d = f.shape().columns();
    let (df, f, norms) = (df.typed::<T::Real>()?, f.typed::<T::Real>()?, norms.typed::<T::Real>()?);
    let rows = dx.typed_mut::<T>()?.chunks_exact_mut(d).zip(df.chunks_exact(d)).zip(f.chunks_exact(d));
    for (((dx, df), f), &norm) in rows.zip(norms) {
        row_backward(df, f, norm, dx);
    }
    Ok(())
}

/// By which a row is divided.
pub fn length<T: Number>(row: &[T]) -> T::Real {
    let length = sum_of(row, row, |a, b| a.widen() * b.widen()).sqrt();
    // The smallest divisor is PyTorch's in `F.normalize`.
    let least = T::Real::from_f64(1e-12);
    if length > least { length } else { least }
}

/// From the gradient of a row of length one, f, to that of what was divided by `norm`.
pub fn row_backward<T: Number>(df: &[T::Real], f: &[T::Real], norm: T::Real, dx: &mut [T]) {
    let along = sum_of(f, df, |a, b| a * b);
    for ((dx, &df), &f) in dx.iter_mut().zip(df).zip(f) {
        *dx = T::narrow((df - f * along) / norm);
    }
}
