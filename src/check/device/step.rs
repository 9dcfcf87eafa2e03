//! Whole training steps of a device against the CPU's in f32: every gradient, and the losses of a few steps.
//!
//! Not in f64: AdamW's first steps go by the sign of a gradient more than by its size, and so carry the
//! rounding of the weights to f32, some 1e-7, to some 1e-4 of the loss after five steps.

use super::{Checker, Pair, Result};
use crate::backend::cpu::Cpu;
use crate::backend::{Activation, Backend, LossScaling};
use crate::check::Row;
use crate::check::step::{TinySizes, TinyStep, adapter_techniques, techniques};
use crate::objective::MixOn;
use crate::optim::{Rate, Rates};
use crate::tensor::{DType, Shape, Tensor};
use crate::tune::Target;

/// Steps of which the losses are compared. A device that records replays the third and those after it: images,
/// draws and crops are others in every step.
const STEPS: u64 = 5;

/// The loss scale of the check. Its models are so small that 65536 would overflow their gradients.
const SCALING: LossScaling = LossScaling { start: 1024.0, growth: 2.0, backoff: 0.5, interval: 2000 };

/// Largest error of a gradient, relative to its largest element, and of a loss: rounding adds up over the
/// operations of a step.
fn bounds(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F16 => (1e-2, 2e-3),
        DType::BF16 => (6e-2, 1e-2),
        _ => (1e-5, 2e-6),
    }
}

/// A technique, and the part whose gradient has a bound of its own in bf16. Its terms cancel: the largest
/// element is 0.015 and that of its B is 0.21, where every other A of the technique has at least half as much
/// as its B. The error of 0.0012 is less than that of the B, 0.0031, but 8 % of so small a gradient; in f32 too
/// it is the worst of all.
const CANCELLING: (&str, &str) = ("prompts replaced, LoRA", "layers.1.q_proj.lora_A");
const CANCELLING_BOUND: f64 = 1.2e-1;

/// The bound for the gradient of one part. What reaches the text tower is small: of the gradient of the class
/// features only the part across them is left. The error there is rounding too: eight times as large in bf16 as
/// in f16, as their roundings are, and in f32 within the bound of all.
fn gradient_bound(dtype: DType, technique: &str, part: &str) -> f64 {
    match dtype {
        DType::F16 if part.starts_with("text.") => return 2.5e-2,
        DType::BF16 if part.starts_with("text.") => return 2e-1,
        _ => {}
    }
    if dtype == DType::BF16 && (technique, part) == CANCELLING { CANCELLING_BOUND } else { bounds(dtype).0 }
}

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    variant(c, "even sizes", &TinyStep::new(TinySizes::EVEN, 3))?;
    let targets = vec![Target::Query, Target::Value, Target::Output];
    let odd = TinyStep { activation: Activation::Gelu, targets, ..TinyStep::new(TinySizes::ODD, 3) };
    variant(c, "odd sizes", &odd)?;
    // Every technique once, in turn at even and at odd sizes; two layers are as many as any of them needs.
    let of = |sizes| [techniques(sizes, 2), adapter_techniques(sizes, 2)].concat();
    let (even, odd) = (of(TinySizes::EVEN), of(TinySizes::ODD));
    for (index, ((name, even), (_, odd))) in even.iter().zip(&odd).enumerate() {
        let mut tiny = if index % 2 == 0 { even.clone() } else { odd.clone() };
        // At these sizes some anchors have a loss and some have none.
        tiny.objective.margin = 0.05;
        variant(c, name, &tiny)?;
    }
    let crops = |sizes: TinySizes| TinyStep { crops_of: Some(sizes.side + 4), ..TinyStep::new(sizes, 2) };
    variant(c, "crops", &crops(TinySizes::ODD))?;
    variant(c, "crops, pixels mixed", &TinyStep { mix: Some(MixOn::Pixels), ..crops(TinySizes::EVEN) })?;
    Ok(())
}

fn variant<B: Backend>(c: &mut Checker<'_, B>, name: &str, tiny: &TinyStep) -> Result<()> {
    let image = Shape::from([tiny.sizes.side, tiny.sizes.side, 3]);
    let scaling = (c.real() == DType::F16).then_some(SCALING);
    let mut device = tiny.learner_on(c.device.clone(), image, DType::U8, scaling)?;
    let mut cpu = tiny.learner_on(Cpu::<f32>::new(), image, DType::U8, None)?;
    let batch = tiny.training_batch(tiny.sizes.batch, 14)?;
    device.gradients(batch.view())?;
    cpu.gradients(batch.view())?;
    let loss_scale = scaling.map_or(1.0, |s| s.start);
    let expected = cpu.params().into_iter().map(|p| p.gradient.clone()).collect::<Vec<_>>();
    for ((param, expected), part) in device.params().into_iter().zip(expected).zip(device.param_names()) {
        let scaled: Vec<f64> = expected.typed::<f32>()?.iter().map(|&g| f64::from(g) * loss_scale).collect();
        let host = Tensor::from_slice(expected.shape(), &scaled)?;
        let found = c.device.download(&param.gradient)?;
        let pair: Pair<B> = Pair { device: c.device.upload(found.view(), found.dtype())?, host };
        let bound = gradient_bound(c.real(), name, &part);
        c.compare_within(&format!("step gradient of {part}"), name, &pair, bound)?;
    }
    let rate = |learning_rate| Rate { learning_rate, weight_decay: 1e-2 };
    let rates = Rates { head: rate(1e-2), lora: rate(1e-3), prompt: rate(1e-3) };
    let mut worst = 0.0f64;
    for step in 0..STEPS {
        let batch = tiny.training_batch(tiny.sizes.batch, 20 + step)?;
        device.train_step(batch.view(), &rates, 1.0)?;
        cpu.train_step(batch.view(), &rates, 1.0)?;
        let (found, expected) = (device.stats()?.loss, cpu.stats()?.loss);
        let error = ((found - expected) / expected).abs();
        worst = if error.is_nan() { error } else { worst.max(error) };
    }
    let (name, at) = (format!("losses of {STEPS} steps"), name.to_string());
    let bound = bounds(c.real()).1;
    c.rows.push(Row { name, at, error: worst, bound, peer: None });
    Ok(())
}
