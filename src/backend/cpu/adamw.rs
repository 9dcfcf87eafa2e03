//! AdamW over all trained tensors.

use super::Cpu;
use super::real::{Real, sum_of, vectorized};
use crate::backend::{AdamwStep, AdamwTensor, Result, Stat, expect_shape};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Elements that one task handles.
const BLOCK: usize = 16 * 1024;

pub fn adamw<T: Real>(
    tensors: &mut [AdamwTensor<'_, Cpu<T>>],
    step: AdamwStep,
    stats: &mut Tensor,
) -> Result<()> {
    let mut squares = T::ZERO;
    for tensor in tensors {
        squares += update(tensor, step)?;
    }
    stats.typed_mut::<T>()?[Stat::GradientSquared as usize] = squares;
    Ok(())
}

/// Updates one tensor; returns its gradient's sum of squares.
fn update<T: Real>(tensor: &mut AdamwTensor<'_, Cpu<T>>, step: AdamwStep) -> Result<T> {
    let shape = tensor.value.shape();
    expect_shape("adamw", "gradient", shape, tensor.gradient.shape())?;
    expect_shape("adamw", "first moment", shape, tensor.first_moment.shape())?;
    expect_shape("adamw", "second moment", shape, tensor.second_moment.shape())?;
    let gradient = tensor.gradient.typed::<T>()?;
    let t = step.step as f64;
    let keep = T::from_f64(1.0 - tensor.learning_rate * tensor.weight_decay);
    let step_size = T::from_f64(tensor.learning_rate / (1.0 - step.beta1.powf(t)));
    let root_correction = T::from_f64((1.0 - step.beta2.powf(t)).sqrt());
    let (beta1, beta2) = (T::from_f64(step.beta1), T::from_f64(step.beta2));
    let (rest1, rest2) = (T::from_f64(1.0 - step.beta1), T::from_f64(1.0 - step.beta2));
    let eps = T::from_f64(step.eps);
    tensor
        .value
        .typed_mut::<T>()?
        .par_chunks_mut(BLOCK)
        .zip(gradient.par_chunks(BLOCK))
        .zip(tensor.first_moment.typed_mut::<T>()?.par_chunks_mut(BLOCK))
        .zip(tensor.second_moment.typed_mut::<T>()?.par_chunks_mut(BLOCK))
        .for_each(|(((value, gradient), first), second)| {
            vectorized(|| {
                let moments = first.iter_mut().zip(second);
                for ((p, &g), (m, v)) in value.iter_mut().zip(gradient).zip(moments) {
                    *m = *m * beta1 + g * rest1;
                    *v = *v * beta2 + g * g * rest2;
                    let denominator = v.sqrt() / root_correction + eps;
                    *p = *p * keep - step_size * *m / denominator;
                }
            })
        });
    Ok(vectorized(|| sum_of(gradient, gradient, |a, b| a * b)))
}
