//! Checks and benchmark of adamw.

use super::*;
use crate::backend::{AdamwStep, AdamwTensor, Control, LossScaling, Stat};
use crate::dev::check::{Row, relative_error, worse};

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
        // Gradients that are some 2,260 long are clipped to a tenth of it, and to more than there is.
        for clip in [None, Some(226.0), Some(4000.0)] {
            c.case(format!("clip {clip:?}"), |c| steps(c, None, clip, &[None; 3]))?;
        }
        for clip in [None, Some(226.0)] {
            c.case(format!("scaled, clip {clip:?}"), |c| steps(c, Some(SCALING), clip, &SCALED))?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["adamw"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.adamw("adamw", None, visit)?;
        b.adamw("adamw, clipped", Some(1.0), visit)
    }
}

/// Less than a pack, a pack and a rest, one chunk and several.
const SIZES: [usize; 4] = [1, 7, 4096, 10_000];

/// A scale that grows after two good steps.
const SCALING: LossScaling = LossScaling { start: 1024.0, growth: 2.0, backoff: 0.5, interval: 2 };

/// Value put into one gradient of each step with loss scaling: a good step, an overflow, three good steps of
/// which the second lets the scale grow, and one with a gradient that is not a number.
const SCALED: [Option<f64>; 6] = [None, Some(f64::INFINITY), None, None, None, Some(f64::NAN)];

struct Trained<B: Backend> {
    value: Pair<B>,
    gradient: Pair<B>,
    first: Pair<B>,
    second: Pair<B>,
    learning_rate: f64,
    weight_decay: f64,
    scale: f64,
}

#[derive(Default)]
struct Errors {
    values: f64,
    moments: f64,
    control: f64,
    stats: f64,
}

fn numbers<B: Backend>(c: &Checker<'_, B>, pair: &Pair<B>) -> Result<(Vec<f64>, Vec<f64>)> {
    Ok((c.found(pair)?, pair.host.typed::<f64>()?.to_vec()))
}

fn error_of<B: Backend>(c: &Checker<'_, B>, pair: &Pair<B>) -> Result<f64> {
    let (found, expected) = numbers(c, pair)?;
    Ok(relative_error(&found, &expected))
}

impl Errors {
    fn take_tensors<B: Backend>(&mut self, c: &Checker<'_, B>, trained: &[Trained<B>]) -> Result<()> {
        for tensor in trained {
            self.values = worse(self.values, error_of(c, &tensor.value)?);
            for moment in [&tensor.first, &tensor.second] {
                self.moments = worse(self.moments, error_of(c, moment)?);
            }
        }
        Ok(())
    }

    /// Counts and scales are exact; the sum of squares is measured by itself, and where it is not finite
    /// it must not be on both sides.
    fn take_vectors<B: Backend>(
        &mut self,
        c: &Checker<'_, B>,
        control: &Pair<B>,
        stats: &Pair<B>,
    ) -> Result<()> {
        let (found, expected) = numbers(c, control)?;
        self.control = worse(self.control, if found == expected { 0.0 } else { f64::INFINITY });
        let (mut found, mut expected) = numbers(c, stats)?;
        let squared = Stat::GradientSquared as usize;
        let (found_squared, expected_squared) = (found[squared], expected[squared]);
        (found[squared], expected[squared]) = (0.0, 0.0);
        let error = match (found_squared.is_finite(), expected_squared.is_finite()) {
            (true, true) => relative_error(&[found_squared], &[expected_squared]),
            (false, false) => 0.0,
            _ => f64::INFINITY,
        };
        self.stats = worse(self.stats, if found == expected { error } else { f64::INFINITY });
        Ok(())
    }
}

fn trained<B: Backend>(c: &Checker<'_, B>, size: usize, seed: u64) -> Result<Trained<B>> {
    let parameter = c.device.parameter_dtype();
    let zeros = || c.pair(&Tensor::zeros([size], DType::F64), parameter);
    Ok(Trained {
        value: c.random([size], parameter, 1.0, seed)?,
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
fn gradient<B: Backend>(
    c: &Checker<'_, B>,
    size: usize,
    seed: u64,
    scale: f64,
    bad: Option<f64>,
) -> Result<Pair<B>> {
    let parameter = c.device.parameter_dtype();
    let mut values = c.random([size], parameter, scale, seed)?.host;
    if let Some(bad) = bad {
        values.typed_mut::<f64>()?[size / 2] = bad;
    }
    c.pair(&values, parameter)
}

fn steps<B: Backend>(
    c: &mut Checker<'_, B>,
    scaling: Option<LossScaling>,
    clip: Option<f64>,
    gradients: &[Option<f64>],
) -> Result<()> {
    let parameter = c.device.parameter_dtype();
    let mut tensors = Vec::new();
    for (seed, size) in (0..).zip(SIZES) {
        tensors.push(trained(c, size, seed)?);
    }
    let start = Control::start(scaling).map(f64::from);
    let mut control = c.pair(&Tensor::from_slice([Control::COUNT], &start)?, parameter)?;
    // What other operations put there must stay.
    let before = [0.5, 0.25, 3.0, 2.0, -1.0, -1.0, -1.0, 0.125, 0.75, 1.5, 1.25];
    let mut stats = c.pair(&Tensor::from_slice([Stat::COUNT], &before)?, parameter)?;
    let factor = c.pair(&Tensor::from_slice([1], &[0.75])?, parameter)?;
    let mut errors = Errors::default();
    for (step, bad) in (0..).zip(gradients) {
        let scale = control.host.typed::<f64>()?[Control::LossScale as usize];
        let last = tensors.len() - 1;
        for (i, tensor) in tensors.iter_mut().enumerate() {
            let seed = 100 * (step + 1) + i as u64;
            let bad = if i == last { *bad } else { None };
            tensor.gradient = gradient(c, SIZES[i], seed, scale, bad)?;
        }
        one_step(c, &mut tensors, (scaling, clip), &factor, &mut control, &mut stats)?;
        errors.take_tensors(c, &tensors)?;
        errors.take_vectors(c, &control, &stats)?;
    }
    let mut at = String::from(if scaling.is_some() { "with loss scaling" } else { "without loss scaling" });
    if let Some(clip) = clip {
        at += &format!(", clipped to {clip}");
    }
    let Errors { values, moments, control, stats } = errors;
    for (name, error, bound) in [
        ("adamw values", values, bound(parameter)),
        ("adamw moments", moments, bound(parameter)),
        ("adamw control", control, 0.0),
        ("adamw stats", stats, bound(parameter)),
    ] {
        c.row(Row::new(name, at.clone(), error, bound));
    }
    Ok(())
}

fn one_step<B: Backend>(
    c: &Checker<'_, B>,
    tensors: &mut [Trained<B>],
    (scaling, clip): (Option<LossScaling>, Option<f64>),
    factor: &Pair<B>,
    control: &mut Pair<B>,
    stats: &mut Pair<B>,
) -> Result<()> {
    let (beta1, beta2, eps) = (0.9, 0.999, 1e-8);
    let (mut device, mut host) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let Trained { value, gradient, first, second, learning_rate, weight_decay, scale } = tensor;
        device.push(AdamwTensor {
            value: &mut value.device,
            gradient: &gradient.device,
            first_moment: &mut first.device,
            second_moment: &mut second.device,
            learning_rate: *learning_rate,
            weight_decay: *weight_decay,
            scale: *scale,
        });
        host.push(AdamwTensor {
            value: &mut value.host,
            gradient: &gradient.host,
            first_moment: &mut first.host,
            second_moment: &mut second.host,
            learning_rate: *learning_rate,
            weight_decay: *weight_decay,
            scale: *scale,
        });
    }
    let Both { device: device_control, host: host_control } = control;
    let step =
        AdamwStep { beta1, beta2, eps, scaling, clip, factor: &factor.device, control: device_control };
    c.device.adamw(&mut device, step, &mut stats.device)?;
    let step = AdamwStep { beta1, beta2, eps, scaling, clip, factor: &factor.host, control: host_control };
    Ok(c.cpu.adamw(&mut host, step, &mut stats.host)?)
}

impl<B: Backend> Bench<'_, B> {
    /// Shapes of the trained tensors of a tower of twelve blocks: the head, and A and B of q, k, v and of out.
    pub(super) fn trained_shapes(&self) -> Vec<Shape> {
        const BLOCKS: usize = 12;
        let (d, r) = (self.sizes.width, self.sizes.rank);
        let mut shapes = vec![Shape::from([self.sizes.classes, self.sizes.features])];
        for _ in 0..BLOCKS {
            shapes.extend([[3 * r, d], [3 * d, r], [r, d], [d, r]].map(Shape::from));
        }
        shapes
    }

    fn adamw(&self, name: &'static str, clip: Option<f64>, visit: &mut Visit<'_>) -> backend::Result<()> {
        let shapes = self.trained_shapes();
        let elements: usize = shapes.iter().map(Shape::elements).sum();
        let four = |shape: &Shape| -> backend::Result<[B::Tensor; 4]> {
            Ok([
                self.parameter(*shape, 0.02)?,
                self.parameter(*shape, 1e-3)?,
                self.parameter(*shape, 0.0)?,
                self.parameter(*shape, 0.0)?,
            ])
        };
        let mut all = shapes.iter().map(four).collect::<backend::Result<Vec<_>>>()?;
        let parameter = self.backend.parameter_dtype();
        let control = Tensor::from_slice([Control::COUNT], &Control::start(None))?;
        let mut control = self.backend.upload(control.view(), parameter)?;
        let factor = self.backend.upload(Tensor::from_slice([1], &[1.0f32])?.view(), parameter)?;
        let mut stats = self.parameter([Stat::COUNT], 0.0)?;
        let at = format!("{elements} elements in {} tensors", all.len());
        let run = Box::new(|| {
            let mut tensors: Vec<AdamwTensor<'_, B>> = all
                .iter_mut()
                .map(|[value, gradient, first_moment, second_moment]| AdamwTensor {
                    value,
                    gradient,
                    first_moment,
                    second_moment,
                    learning_rate: 1e-4,
                    weight_decay: 1e-2,
                    scale: 1.0,
                })
                .collect();
            let control = &mut control;
            let step = AdamwStep {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                scaling: None,
                clip,
                factor: &factor,
                control,
            };
            self.backend.adamw(&mut tensors, step, &mut stats)
        });
        visit(Ready { name, at, run })
    }
}
