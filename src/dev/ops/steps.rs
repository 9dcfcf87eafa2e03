//! Whole training steps of a device against the CPU's in f32: every gradient, and the losses of a few steps.
//!
//! Not in f64: AdamW's first steps go by the sign of a gradient more than by its size, and so carry the
//! rounding of the weights to f32, some 1e-7, to some 1e-4 of the loss after five steps.

use super::*;
use crate::backend::{Activation, LossScaling};
use crate::dev::check::step::{TinySizes, TinyStep, adapter_techniques, techniques};
use crate::dev::check::{Row, relative_error, worse};
use crate::objective::MixOn;
use crate::optim::{Rate, Rates};
use crate::train::learner::Learner;
use crate::tune::Target;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        c.steps(0, 1)
    }
}

/// Steps of which the losses are compared. A device that captures only replays the fourth and those after it: images,
/// draws, crops and the masks of dropout are others in every step.
const STEPS: u64 = 5;

/// Steps that move nothing, of which the first moments are compared; the last is replayed.
const STILL_STEPS: u64 = 4;

/// Shorter than any gradient of the steps that it is for, which are some 2 long.
const CLIP: f64 = 0.25;

/// The loss scale of the check. Its models are so small that 65536 would overflow their gradients.
const SCALING: LossScaling = LossScaling { start: 1024.0, growth: 2.0, backoff: 0.5, interval: 2000 };

/// A technique, and the part whose gradient has a bound of its own in f32. Its terms cancel: the largest element is
/// 0.015 and that of its B is 0.21, where every other A of the technique has at least half as much as its B.
const CANCELLING: (&str, &str) = ("prompts replaced, LoRA", "layers.1.q_proj.lora_A");

/// Largest error of the gradient of one part, relative to its largest element: rounding adds up over the operations
/// of a step. What reaches the text tower is small: of the gradient of the class features only the part across them
/// is left. The error there is rounding too: eight times as large in bf16 as in f16, as their roundings are.
///
/// The bounds are at least 1.5 times the worst of a host twin that rounds as a device may, with two seeds or more of
/// each type and both forms of the linear layers. In f32 that is 5.4e-6, 2.2e-5 in the text tower and 1.5e-5 where
/// terms cancel; in bf16 8.5e-2, 1.4e-1 and 8.1e-2; in f16 8.7e-3, and 1.4e-2 in the text tower. Without a device's rounding
/// it is 2.9e-6, 4.0e-6 and 3.1e-6 in f32, and 5.4e-2, 1.4e-1 and 8.1e-2 in bf16.
fn gradient_bound(dtype: DType, technique: &str, part: &str) -> f64 {
    let [most, text, cancelling] = match dtype {
        DType::F16 => [1.3e-2, 2.5e-2, 1.3e-2],
        DType::BF16 => [1.3e-1, 2.1e-1, 1.3e-1],
        _ => [1e-5, 4e-5, 3e-5],
    };
    match part {
        _ if part.starts_with("text.") => text,
        _ if (technique, part) == CANCELLING => cancelling,
        _ => most,
    }
}

/// The bound for first moments. They are sums over the batches of several steps, in which gradients cancel more than
/// the rounding of each does: the worst, measured likewise, is 8.1e-6 in f32, 1.2e-2 in f16 and 5.1e-2 in bf16, on the
/// CPU 8.5e-2 and in its text tower 1.5e-1. What is looked for changes all of it: a length of gradients, a missing batch.
fn moment_bound(dtype: DType, _technique: &str, part: &str) -> f64 {
    match dtype {
        DType::BF16 if part.starts_with("text.") => 2.3e-1,
        DType::F16 => 2e-2,
        DType::BF16 => 1.2e-1,
        _ => 2e-5,
    }
}

/// Largest relative error of a loss. The worst, measured likewise, is 8.4e-6 in f32, 9.1e-4 in f16 and 6.0e-3 in bf16.
/// AdamW's first steps are as long for a gradient that is nearly 0 as for any other, and where that is rounded to the
/// other side of 0 the element goes the other way.
fn loss_bound(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2e-3,
        DType::BF16 => 1e-2,
        _ => 2e-5,
    }
}

/// The models and settings of which steps are compared, by name.
fn variants() -> Vec<(&'static str, TinyStep)> {
    let targets = vec![Target::Query, Target::Value, Target::Output];
    let odd = TinyStep { activation: Activation::Gelu, targets, ..TinyStep::new(TinySizes::ODD, 3) };
    // More tokens than a tile of attention has rows, and heads as wide as those of most models.
    let tokens = TinySizes { batch: 2, side: 72, width: 128, ..TinySizes::EVEN };
    let clipped = |sizes| TinyStep { clip: Some(CLIP), ..TinyStep::new(sizes, 2) };
    let crops = |sizes: TinySizes| TinyStep { crops_of: Some(sizes.side + 4), ..TinyStep::new(sizes, 2) };
    let mut all = vec![
        ("even sizes", TinyStep::new(TinySizes::EVEN, 3)),
        ("odd sizes", odd),
        ("82 tokens", TinyStep::new(tokens, 2)),
        ("clipped", clipped(TinySizes::EVEN)),
        ("three batches, clipped", TinyStep { accumulate: 3, ..clipped(TinySizes::ODD) }),
        ("crops", crops(TinySizes::ODD)),
        ("crops, pixels mixed", TinyStep { mix: Some(MixOn::Pixels), ..crops(TinySizes::EVEN) }),
    ];
    // Every technique once, in turn at even and at odd sizes; two layers are as many as any of them needs.
    let of = |sizes| [techniques(sizes, 2), adapter_techniques(sizes, 2)].concat();
    let (even, odd) = (of(TinySizes::EVEN), of(TinySizes::ODD));
    all.extend(even.into_iter().zip(odd).enumerate().map(|(index, ((name, even), (_, odd)))| {
        let mut tiny = if index % 2 == 0 { even } else { odd };
        // At these sizes some anchors have a loss and some have none.
        tiny.objective.margin = 0.05;
        (name, tiny)
    }));
    all
}

/// One model with the same weights on both backends.
type Learners<B> = Both<Learner<B>, Learner<Cpu<f32>>>;

impl<B: Backend> Checker<'_, B> {
    /// Part `part` of `parts`, of about the same length.
    pub(super) fn steps(&mut self, part: usize, parts: usize) -> Result<()> {
        variants()
            .iter()
            .skip(part)
            .step_by(parts)
            .try_for_each(|(name, tiny)| self.case(*name, |c| c.step_variant(name, tiny)))
    }

    fn step_variant(&mut self, name: &str, tiny: &TinyStep) -> Result<()> {
        let image = Shape::from([tiny.sizes.side, tiny.sizes.side, 3]);
        let scaling = (self.real() == DType::F16).then_some(SCALING);
        let mut learners = Learners {
            device: tiny.learner_on(self.device.clone(), image, DType::U8, scaling)?,
            host: tiny.learner_on(Cpu::<f32>::new(), image, DType::U8, None)?,
        };
        let batch = tiny.training_batch(tiny.sizes.batch, 14)?;
        learners.device.gradients(batch.view())?;
        learners.host.gradients(batch.view())?;
        let expected: Vec<Tensor> = learners.host.params().iter().map(|p| p.gradient.clone()).collect();
        let loss_scale = scaling.map_or(1.0, |s| s.start);
        let found = learners.device.params().into_iter().map(|p| &p.gradient).collect();
        self.compare_parts(
            ("gradient", name),
            &learners.device.param_names(),
            found,
            &expected,
            loss_scale,
            gradient_bound,
        )?;
        // AdamW's steps hardly depend on how long gradients are, its first moments do.
        if tiny.accumulate > 1 || tiny.clip.is_some() {
            for step in 0..STILL_STEPS {
                Self::step(&mut learners, tiny, 50 + step, &Rates::STILL)?;
            }
            let expected: Vec<Tensor> =
                learners.host.params().iter().map(|p| p.first_moment.clone()).collect();
            let found = learners.device.params().into_iter().map(|p| &p.first_moment).collect();
            self.compare_parts(
                ("first moment", name),
                &learners.device.param_names(),
                found,
                &expected,
                1.0,
                moment_bound,
            )?;
        }
        let rate = |learning_rate| Rate { learning_rate, weight_decay: 1e-2 };
        let rates = Rates { head: rate(1e-2), lora: rate(1e-3), prompt: rate(1e-3) };
        let mut worst = 0.0f64;
        for step in 0..STEPS {
            worst = worse(worst, Self::step(&mut learners, tiny, 20 + step, &rates)?);
        }
        let (name, at) = (format!("losses of {STEPS} steps"), name.to_string());
        let bound = loss_bound(self.real());
        self.row(Row::new(name, at, worst, bound));
        Ok(())
    }

    /// A row for each part of what is trained: `found` against `scale` times what is `expected`, within a bound that is
    /// asked for by number type, technique and part.
    fn compare_parts(
        &mut self,
        (what, technique): (&str, &str),
        parts: &[String],
        found: Vec<&B::Tensor>,
        expected: &[Tensor],
        scale: f64,
        bound_of: fn(DType, &str, &str) -> f64,
    ) -> Result<()> {
        for ((part, found), expected) in parts.iter().zip(found).zip(expected) {
            let scaled: Vec<f64> = expected.typed::<f32>()?.iter().map(|&v| f64::from(v) * scale).collect();
            let found = self.device.download(found)?.view().to_tensor(DType::F64)?;
            let error = relative_error(found.typed::<f64>()?, &scaled);
            let bound = bound_of(self.real(), technique, part);
            self.row(Row::new(format!("step {what} of {part}"), technique, error, bound));
        }
        Ok(())
    }

    /// One step; the largest error of the losses of its batches.
    fn step(learners: &mut Learners<B>, tiny: &TinyStep, step: u64, rates: &Rates) -> Result<f64> {
        let mut worst = 0.0f64;
        for (batch, micro) in tiny.step_batches(step)? {
            learners.device.train(batch.view(), micro, rates, 1.0)?;
            learners.host.train(batch.view(), micro, rates, 1.0)?;
            let (found, expected) = (learners.device.stats()?.loss, learners.host.stats()?.loss);
            worst = worse(worst, ((found - expected) / expected).abs());
        }
        Ok(worst)
    }
}
