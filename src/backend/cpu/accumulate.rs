//! Gradients of several batches added up.

use super::real::{Real, vectors};
use crate::backend::{Result, expect_shape};
use crate::tensor::Tensor;

pub fn accumulate<T: Real>(pairs: &mut [(&Tensor, &mut Tensor)], first: bool) -> Result<()> {
    for (gradient, sum) in pairs {
        expect_shape("accumulate", "sum", gradient.shape(), sum.shape())?;
        let (gradient, sum) = (gradient.typed::<T>()?, sum.typed_mut::<T>()?);
        if first {
            sum.copy_from_slice(gradient);
        } else {
            add(sum, gradient);
        }
    }
    Ok(())
}

vectors! {
    fn add[T: Real](sum: &mut [T], gradient: &[T]) {
        for (sum, &g) in sum.iter_mut().zip(gradient) {
            *sum += g;
        }
    }
}
