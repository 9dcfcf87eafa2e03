//! AdamW over all trained tensors.

use super::number::OnHost;
use super::real::{Real, sum_of, vectors};
use super::*;
use rayon::prelude::*;

/// Elements that one task handles.
const BLOCK: usize = 16 * 1024;

impl<T: Real> AdamwOp for Cpu<T> {
    fn adamw_checked(
        _device: Checked<'_, Self>,
        tensors: &mut [AdamwTensor<'_, Self>],
        step: AdamwStep<'_, Self>,
        stats: &mut Tensor,
    ) -> Result<()> {
        let factor = step.factor.typed::<T>()?[0].to_f64();
        let control = step.control.typed_mut::<T>()?;
        let scale = step.scaling.map_or(1.0, |_| control[Control::LossScale as usize].to_f64());
        let mut squares = T::ZERO;
        for tensor in tensors.iter() {
            squares += squared::<T, Self>(tensor, T::from_f64(1.0 / scale))?;
        }
        let skip = step.scaling.is_some() && !squares.to_f64().is_finite();
        let stats = stats.typed_mut::<T>()?;
        stats[Stat::GradientSquared as usize] = squares;
        stats[Stat::LossScale as usize] = T::from_f64(scale);
        stats[Stat::Skipped as usize] = if skip { T::ONE } else { T::ZERO };
        if !skip {
            let taken = control[Control::Steps as usize].to_f64() + 1.0;
            control[Control::Steps as usize] = T::from_f64(taken);
            let clip = step.clip.map_or(1.0, |clip| clip_factor(clip, squares.to_f64()));
            let constants = Constants { taken, factor, scale, clip, ..Constants::of(&step) };
            for tensor in tensors {
                update::<T, Self>(tensor, constants)?;
            }
        }
        if let Some(scaling) = step.scaling {
            rescale(scaling, skip, step.control.typed_mut::<T>()?);
        }
        Ok(())
    }
}

/// The loss scale, 1 where there is none.
pub fn loss_scale<T: Real>(control: Option<&Tensor>) -> Result<f64> {
    let scale = |control: &Tensor| Ok(control.typed::<T>()?[Control::LossScale as usize].to_f64());
    control.map_or(Ok(1.0), scale)
}

/// Factor, at most 1, on gradients with this sum of squares, so that they are no longer than `clip`.
fn clip_factor(clip: f64, squares: f64) -> f64 {
    let factor = clip / (squares.sqrt() + 1e-6);
    // Not a number stays one.
    if factor > 1.0 { 1.0 } else { factor }
}

/// The loss scale of the next step.
fn rescale<T: Real>(scaling: LossScaling, skipped: bool, control: &mut [T]) {
    let scale = control[Control::LossScale as usize].to_f64();
    let good = control[Control::GoodSteps as usize].to_f64() + 1.0;
    let (scale, good) = match skipped {
        true => (scale * scaling.backoff, 0.0),
        false if good >= f64::from(scaling.interval) => (scale * scaling.growth, 0.0),
        false => (scale, good),
    };
    control[Control::LossScale as usize] = T::from_f64(scale);
    control[Control::GoodSteps as usize] = T::from_f64(good);
}

#[derive(Clone, Copy)]
struct Constants {
    beta1: f64,
    beta2: f64,
    eps: f64,
    /// Steps taken, this one included.
    taken: f64,
    factor: f64,
    scale: f64,
    clip: f64,
}

impl Constants {
    fn of<B: OnHost>(step: &AdamwStep<'_, B>) -> Self {
        let (beta1, beta2, eps) = (step.beta1, step.beta2, step.eps);
        Constants { beta1, beta2, eps, taken: 1.0, factor: 1.0, scale: 1.0, clip: 1.0 }
    }
}

/// The sum of squares of a tensor's gradient, without the loss scale.
fn squared<T: Real, B: OnHost>(tensor: &AdamwTensor<'_, B>, unscale: T) -> Result<T> {
    let gradient = tensor.gradient.typed::<T>()?;
    let unscale = unscale * T::from_f64(tensor.scale);
    Ok(sum_of_squares(gradient, unscale))
}

vectors! {
    fn sum_of_squares[T: Real](values: &[T], factor: T) -> T {
        sum_of(values, values, |a, b| (a * factor) * (b * factor))
    }
}

fn update<T: Real, B: OnHost>(tensor: &mut AdamwTensor<'_, B>, c: Constants) -> Result<()> {
    let gradient = tensor.gradient.typed::<T>()?;
    let rate = tensor.learning_rate * c.factor;
    let update = Update {
        keep: T::from_f64(1.0 - rate * tensor.weight_decay),
        step_size: T::from_f64(tensor.scale * rate / (1.0 - c.beta1.powf(c.taken))),
        root_correction: T::from_f64((1.0 - c.beta2.powf(c.taken)).sqrt()),
        beta1: T::from_f64(c.beta1),
        beta2: T::from_f64(c.beta2),
        rest1: T::from_f64(1.0 - c.beta1),
        rest2: T::from_f64(1.0 - c.beta2),
        eps: T::from_f64(c.eps),
        unscale: T::from_f64(c.clip / c.scale * tensor.scale),
    };
    tensor
        .value
        .typed_mut::<T>()?
        .par_chunks_mut(BLOCK)
        .zip(gradient.par_chunks(BLOCK))
        .zip(tensor.first_moment.typed_mut::<T>()?.par_chunks_mut(BLOCK))
        .zip(tensor.second_moment.typed_mut::<T>()?.par_chunks_mut(BLOCK))
        .for_each(|(((value, gradient), first), second)| step(update, value, gradient, first, second));
    Ok(())
}

/// The numbers of a step that are the same for all elements of a tensor.
#[derive(Clone, Copy)]
struct Update<T> {
    keep: T,
    step_size: T,
    root_correction: T,
    beta1: T,
    beta2: T,
    rest1: T,
    rest2: T,
    eps: T,
    unscale: T,
}

vectors! {
    fn step[T: Real](c: Update<T>, value: &mut [T], gradient: &[T], first: &mut [T], second: &mut [T]) {
        let moments = first.iter_mut().zip(second);
        for ((p, &g), (m, v)) in value.iter_mut().zip(gradient).zip(moments) {
            let g = g * c.unscale;
            *m = *m * c.beta1 + g * c.rest1;
            *v = *v * c.beta2 + g * g * c.rest2;
            let denominator = v.sqrt() / c.root_correction + c.eps;
            *p = *p * c.keep - c.step_size * *m / denominator;
        }
    }
}
