//! Gradients of several batches added up.

use super::real::{Real, vectors};
use super::*;

impl<T: Real> AccumulateOp for Cpu<T> {
    fn accumulate_checked(
        _device: Checked<'_, Self>,
        pairs: &mut [(&Tensor, &mut Tensor)],
        first: bool,
    ) -> Result<()> {
        for (gradient, sum) in pairs {
            let (gradient, sum) = (gradient.typed::<T>()?, sum.typed_mut::<T>()?);
            if first {
                sum.copy_from_slice(gradient);
            } else {
                add(sum, gradient);
            }
        }
        Ok(())
    }
}

vectors! {
    fn add[T: Real](sum: &mut [T], gradient: &[T]) {
        for (sum, &g) in sum.iter_mut().zip(gradient) {
            *sum += g;
        }
    }
}
