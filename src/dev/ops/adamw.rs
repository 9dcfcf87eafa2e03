//! Checks and benchmark of adamw.

use super::*;
use crate::backend::{AdamwStep, AdamwTensor, Control, LossScaling, Stat};
use crate::dev::check::{Row, relative_error, worse};

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // Gradients that are some 2,260 long are clipped to a tenth of it, and to more than there is.
        for clip in [None, Some(226.0), Some(4000.0)] {
            c.case(format!("clip {clip:?}"), |c| c.adamw_steps(None, clip, &[None; 3]))?;
        }
        for clip in [None, Some(226.0)] {
            c.case(format!("scaled, clip {clip:?}"), |c| c.adamw_steps(Some(SCALING), clip, &SCALED))?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["adamw"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        for (name, clip) in [("adamw", None), ("adamw, clipped", Some(1.0))] {
            let shapes = b.trained_shapes();
            let elements: usize = shapes.iter().map(Shape::elements).sum();
            let four = |shape: &Shape| -> backend::Result<[B::Tensor; 4]> {
                Ok([
                    b.parameter(*shape, 0.02)?,
                    b.parameter(*shape, 1e-3)?,
                    b.parameter(*shape, 0.0)?,
                    b.parameter(*shape, 0.0)?,
                ])
            };
            let mut all = shapes.iter().map(four).collect::<backend::Result<Vec<_>>>()?;
            let parameter = b.backend.parameter_dtype();
            let control = Tensor::from_slice([Control::COUNT], &Control::start(None))?;
            let mut control = b.backend.upload(control.view(), parameter)?;
            let factor = b.backend.upload(Tensor::from_slice([1], &[1.0f32])?.view(), parameter)?;
            let mut stats = b.parameter([Stat::COUNT], 0.0)?;
            let at = format!("{elements} elements in {} tensors", all.len());
            let run = Box::new(|| {
                let tensors = all.iter_mut().map(|[value, gradient, first_moment, second_moment]| {
                    let (learning_rate, weight_decay, scale) = (1e-4, 1e-2, 1.0);
                    AdamwTensor {
                        value,
                        gradient,
                        first_moment,
                        second_moment,
                        learning_rate,
                        weight_decay,
                        scale,
                    }
                });
                let (beta1, beta2, eps, control) = (0.9, 0.999, 1e-8, &mut control);
                let step = AdamwStep { beta1, beta2, eps, scaling: None, clip, factor: &factor, control };
                b.backend.adamw(&mut tensors.collect::<Vec<_>>(), step, &mut stats)
            });
            visit(Ready { name, at, run })?;
        }
        Ok(())
    }
}

/// Less than a pack, a pack and a rest, one chunk and several.
const SIZES: [usize; 4] = [1, 7, 4096, 10_000];

/// A scale that grows after two good steps.
const SCALING: LossScaling = LossScaling { start: 1024.0, growth: 2.0, backoff: 0.5, interval: 2 };

/// Value put into one gradient of each step with loss scaling: a good step, an overflow, three good steps of
/// which the second lets the scale grow, and one with a gradient that is not a number.
const SCALED: [Option<f64>; 6] = [None, Some(f64::INFINITY), None, None, None, Some(f64::NAN)];

/// A trained tensor, of which each part is a pair.
struct Trained<P> {
    value: P,
    gradient: P,
    first: P,
    second: P,
    learning_rate: f64,
    weight_decay: f64,
    scale: f64,
}

impl<B: Backend> Checker<'_, B> {
    fn adamw_steps(
        &mut self,
        scaling: Option<LossScaling>,
        clip: Option<f64>,
        gradients: &[Option<f64>],
    ) -> Result<()> {
        let parameter = self.device.parameter_dtype();
        let mut tensors = Vec::new();
        for (seed, size) in (0..).zip(SIZES) {
            tensors.push(self.trained(size, seed)?);
        }
        let start = Control::start(scaling).map(f64::from);
        let mut control = self.pair(&Tensor::from_slice([Control::COUNT], &start)?, parameter)?;
        // What other operations put there must stay.
        let before = [0.5, 0.25, 3.0, 2.0, -1.0, -1.0, -1.0, 0.125, 0.75, 1.5, 1.25];
        let mut stats = self.pair(&Tensor::from_slice([Stat::COUNT], &before)?, parameter)?;
        let factor = self.pair(&Tensor::from_slice([1], &[0.75])?, parameter)?;
        let (mut values, mut moments, mut controls, mut counts) = (0.0, 0.0, 0.0, 0.0);
        for (step, bad) in (0..).zip(gradients) {
            let scale = control.host.typed::<f64>()?[Control::LossScale as usize];
            let last = tensors.len() - 1;
            for (i, tensor) in tensors.iter_mut().enumerate() {
                let seed = 100 * (step + 1) + i as u64;
                let bad = if i == last { *bad } else { None };
                tensor.gradient = self.adamw_gradient(SIZES[i], seed, scale, bad)?;
            }
            self.adamw_step(&mut tensors, (scaling, clip), &factor, &mut control, &mut stats)?;
            for Trained { value, first, second, .. } in &tensors {
                values = worse(values, self.error_of(value)?);
                moments = worse(worse(moments, self.error_of(first)?), self.error_of(second)?);
            }
            // Counts and scales are exact.
            let same = self.found(&control)? == control.host.typed::<f64>()?;
            controls = worse(controls, if same { 0.0 } else { f64::INFINITY });
            counts = worse(counts, self.error_of_stats(&stats)?);
        }
        let mut at =
            String::from(if scaling.is_some() { "with loss scaling" } else { "without loss scaling" });
        if let Some(clip) = clip {
            at += &format!(", clipped to {clip}");
        }
        for (name, error, bound) in [
            ("adamw values", values, bound(parameter)),
            ("adamw moments", moments, bound(parameter)),
            ("adamw control", controls, 0.0),
            ("adamw stats", counts, bound(parameter)),
        ] {
            self.row(Row::new(name, at.clone(), error, bound));
        }
        Ok(())
    }

    fn trained(&self, size: usize, seed: u64) -> Result<Trained<Pair<B>>> {
        let parameter = self.device.parameter_dtype();
        let zeros = || self.pair(&Tensor::zeros([size], DType::F64), parameter);
        Ok(Trained {
            value: self.random([size], parameter, 1.0, seed)?,
            gradient: zeros()?,
            first: zeros()?,
            second: zeros()?,
            learning_rate: 1e-2 / (1.0 + seed as f64),
            weight_decay: 1e-1 * seed as f64,
            // As of a head that sees its features √E times as long, in every second tensor.
            scale: if seed % 2 == 1 { 22.6 } else { 1.0 },
        })
    }

    /// The gradient of one step, `scale` times too large; `bad` is put into its middle.
    fn adamw_gradient(&self, size: usize, seed: u64, scale: f64, bad: Option<f64>) -> Result<Pair<B>> {
        let parameter = self.device.parameter_dtype();
        let mut values = self.random([size], parameter, scale, seed)?.host;
        if let Some(bad) = bad {
            values.typed_mut::<f64>()?[size / 2] = bad;
        }
        self.pair(&values, parameter)
    }

    fn adamw_step(
        &self,
        tensors: &mut [Trained<Pair<B>>],
        (scaling, clip): (Option<LossScaling>, Option<f64>),
        factor: &Pair<B>,
        control: &mut Pair<B>,
        stats: &mut Pair<B>,
    ) -> Result<()> {
        let (beta1, beta2, eps) = (0.9, 0.999, 1e-8);
        let (mut device, mut host) = (Vec::new(), Vec::new());
        for Trained { value, gradient, first, second, learning_rate, weight_decay, scale } in tensors {
            let (learning_rate, weight_decay, scale) = (*learning_rate, *weight_decay, *scale);
            let both = both!(AdamwTensor {
                value: &mut value,
                gradient: &gradient,
                first_moment: &mut first,
                second_moment: &mut second,
                learning_rate,
                weight_decay,
                scale,
            });
            device.push(both.device);
            host.push(both.host);
        }
        let (device, host) = (&mut device[..], &mut host[..]);
        let tensors = Both { device, host };
        let step =
            both!(AdamwStep { beta1, beta2, eps, scaling, clip, factor: &factor, control: &mut control });
        both!(self.adamw(*tensors, *step, &mut stats));
        Ok(())
    }

    fn error_of(&self, pair: &Pair<B>) -> Result<f64> {
        Ok(relative_error(&self.found(pair)?, pair.host.typed::<f64>()?))
    }

    /// The sum of squares is measured by itself, and where it is not finite it must not be on both sides; all else is
    /// exact.
    fn error_of_stats(&self, stats: &Pair<B>) -> Result<f64> {
        let (mut found, mut expected) = (self.found(stats)?, stats.host.typed::<f64>()?.to_vec());
        let [found_squared, expected_squared] = [&mut found, &mut expected]
            .map(|values| std::mem::replace(&mut values[Stat::GradientSquared as usize], 0.0));
        let error = match (found_squared.is_finite(), expected_squared.is_finite()) {
            (true, true) => relative_error(&[found_squared], &[expected_squared]),
            (false, false) => 0.0,
            _ => f64::INFINITY,
        };
        Ok(if found == expected { error } else { f64::INFINITY })
    }
}
