//! Passes over the training images.

use super::Run;
use super::balance::{self, BalancedWeights};
use super::inputs::Training;
use crate::backend::Backend;
use crate::objective::{MixDraw, Objective};
use crate::optim::Rate;
use crate::progress::{Monitor, RunPart};
use crate::random;
use crate::settings::Key;
use crate::settings::{ClassifierKind, Sampler, Settings};
use crate::tensor::Tensor;
use crate::train::learner::{Batch, MicroBatch, PendingStats, StepStats};
use crate::train::metrics::EvalMetrics;
use crate::train::records::{EpochRecord, Record, StepRecord, TrainRecord};
use crate::train::{Result, TrainError};
use crate::tune::Place;
use rand::seq::SliceRandom;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Instant;

/// Steps that are handed to the device before the host waits for the results of the first.
const STEPS_AHEAD: usize = 64;

/// When overflows have pushed the loss scale below this, the model itself is at fault.
const SMALLEST_LOSS_SCALE: f64 = 1.0 / 1024.0;

/// A micro-batch on the device.
struct InFlight<B: Backend> {
    /// The step that it belongs to.
    step: u64,
    epoch: u32,
    images: usize,
    micro: MicroBatch,
    /// The schedule's.
    factor: f64,
    stats: PendingStats<B>,
}

/// A step, from its micro-batches.
struct Step {
    step: u64,
    epoch: u32,
    images: usize,
    factor: f64,
    stats: StepStats,
}

impl Step {
    /// Before its first batch.
    fn new<B: Backend>(batch: &InFlight<B>) -> Self {
        let stats = StepStats::default();
        Step { step: batch.step, epoch: batch.epoch, images: 0, factor: batch.factor, stats }
    }

    /// Adds a micro-batch: the losses are means over the images, what the optimizer says is that of the last.
    fn add<B: Backend>(&mut self, batch: &InFlight<B>, stats: &StepStats) {
        self.images += batch.images;
        let sums = &mut self.stats;
        sums.add(stats, batch.micro.share);
        (sums.grad_norm, sums.loss_scale) = (stats.grad_norm, stats.loss_scale);
        sums.skipped = stats.skipped;
    }
}

/// Sums over the steps of one epoch or several.
#[derive(Default)]
struct EpochSums {
    images: usize,
    /// Images in steps whose loss was a number: an overflow in f16 may leave a step without one.
    counted: usize,
    /// Losses times the images of their step, and counts.
    sums: StepStats,
    /// The step whose batches are arriving.
    step: Option<Step>,
}

impl EpochSums {
    fn add(&mut self, stats: &StepStats, images: usize) {
        self.images += images;
        if stats.loss.is_finite() {
            self.counted += images;
            self.sums.add(stats, images as f64);
        }
        self.sums.correct += stats.correct;
        self.sums.text_correct += stats.text_correct;
    }

    /// Means of the losses, sums of the counts.
    fn mean(&self) -> StepStats {
        let mut mean = StepStats { correct: self.sums.correct, ..StepStats::default() };
        mean.text_correct = self.sums.text_correct;
        mean.add(&self.sums, 1.0 / self.counted.max(1) as f64);
        mean
    }
}

impl<B: Backend> Run<'_, '_, B> {
    /// Trains on every image once an epoch; `None` when the user asked to stop. Steps are handed to the device ahead of
    /// their results, which are written down as they arrive.
    pub(super) fn train_epochs(&mut self, epochs: RangeInclusive<u32>) -> Result<Option<StepStats>> {
        let (first, last, of, every) =
            (*epochs.start(), *epochs.end(), self.epochs, self.settings.validate_every());
        let images = self.inputs.training.chosen.len() as u64;
        let mut sums = EpochSums::default();
        let mut waiting = VecDeque::new();
        let mut clock = Instant::now();
        let (after, at_most) = (self.inputs.val.labels().len() as u64, self.early_stop.is_some());
        self.monitor.part(RunPart { index: (first - 1) / every, of: of.div_ceil(every), after, at_most });
        self.monitor.begin(&format!("{} {last}/{of}", self.task), images * u64::from(last + 1 - first));
        for epoch in epochs {
            let order = self.order(epoch);
            for (index, indices) in order.chunks(self.settings.batch_size).enumerate() {
                if self.monitor.stopped() {
                    self.monitor.finish();
                    return Ok(None);
                }
                let (micro, step) = (self.micro_batch(order.len(), index), self.learner.steps() + 1);
                self.weigh_classes(&order, index);
                let number = (epoch as usize - 1) * order.len().div_ceil(self.settings.batch_size) + index;
                let factor = self.schedule.factor(self.learner.steps());
                self.start_batch(epoch, number as u32, indices, micro, factor)?;
                let (images, stats) = (indices.len(), self.learner.fetch_stats()?);
                waiting.push_back(InFlight { step, epoch, images, micro, factor, stats });
                let wait = waiting.len() > STEPS_AHEAD;
                self.write_steps(&mut waiting, wait, &mut sums, &mut clock)?;
            }
        }
        while !waiting.is_empty() {
            self.write_steps(&mut waiting, true, &mut sums, &mut clock)?;
        }
        self.monitor.finish();
        Ok(Some(sums.mean()))
    }

    /// Batch `index` of an epoch of so many images as one of its step's.
    fn micro_batch(&self, images: usize, index: usize) -> MicroBatch {
        let (batch, together) = (self.settings.batch_size, self.settings.accumulate);
        let first = index / together * together;
        let of_step = images.min((first + together) * batch) - first * batch;
        let place = Place::of(index - first, of_step.div_ceil(batch));
        MicroBatch { place, share: (images - index * batch).min(batch) as f64 / of_step as f64 }
    }

    /// Sets what the classes count in the step that begins with batch `index` of an epoch, if one does.
    fn weigh_classes(&mut self, order: &[usize], index: usize) {
        let (batch, together) = (self.settings.batch_size, self.settings.accumulate);
        let Some(weights) = self.class_weights.as_mut().filter(|_| index.is_multiple_of(together)) else {
            return;
        };
        let labels = self.inputs.training.inputs.labels();
        let images = &order[index * batch..order.len().min((index + together) * batch)];
        weights.begin_step(images.iter().map(|&image| labels[image]));
    }

    /// Hands the batch of the images `indices`, which is the run's `number`th, to the device.
    fn start_batch(
        &mut self,
        epoch: u32,
        number: u32,
        indices: &[usize],
        micro: MicroBatch,
        factor: f64,
    ) -> Result<()> {
        let Training { inputs, augmentation, .. } = &self.inputs.training;
        let settings = self.settings;
        let host = inputs.batch(indices)?;
        let mix = match settings.has_mixup() {
            true => Some(mix_draw(settings, indices.len(), u64::from(number))?),
            false => None,
        };
        let crops = augmentation
            .as_ref()
            .map(|(augmentation, side)| augmentation.crops(settings.seed, epoch, indices, *side, *side))
            .transpose()?;
        let batch = Batch {
            input: host.input()?,
            labels: &host.labels,
            mix: mix.as_ref(),
            crops: crops.as_ref().map(Tensor::view),
            number,
            class_weights: self.class_weights.as_ref().map(BalancedWeights::of_step),
        };
        Ok(self.learner.train(batch, micro, &self.rates, factor)?)
    }

    /// Writes down the steps whose numbers have arrived, oldest first; `wait` for the first of them.
    fn write_steps(
        &mut self,
        waiting: &mut VecDeque<InFlight<B>>,
        mut wait: bool,
        sums: &mut EpochSums,
        clock: &mut Instant,
    ) -> Result<()> {
        while let Some(oldest) = waiting.front_mut() {
            let Some(stats) = oldest.stats.arrived(self.learner.backend(), wait)? else { break };
            let Some(batch) = waiting.pop_front() else { break };
            wait = false;
            sums.add(&stats, batch.images);
            let step = sums.step.get_or_insert_with(|| Step::new(&batch));
            step.add(&batch, &stats);
            if batch.micro.place.completes() {
                let seconds = clock.elapsed().as_secs_f64();
                *clock = Instant::now();
                if let Some(step) = sums.step.take() {
                    self.write_step(&step, seconds)?;
                }
            }
            self.monitor.advance(batch.images as u64);
            let mean = sums.mean();
            self.monitor.state(&format!(
                "loss {:.3}  {:.1} %  {:.0}/s",
                mean.loss,
                100.0 * mean.correct / sums.images.max(1) as f64,
                self.progress.step_images as f64 / self.progress.step_seconds.max(1e-9),
            ));
        }
        Ok(())
    }

    /// One line of metrics; `seconds` since the step before was done.
    fn write_step(&mut self, step: &Step, seconds: f64) -> Result<()> {
        let (epoch, stats) = (step.epoch, &step.stats);
        let finite = stats.loss.is_finite() && stats.grad_norm.is_finite();
        let scaled_down = stats.skipped && stats.loss_scale >= SMALLEST_LOSS_SCALE;
        if !finite && !scaled_down {
            self.monitor.finish();
            return Err(self.not_finite(step.step, epoch, stats.loss));
        }
        self.progress.step_seconds += seconds;
        self.progress.step_images += step.images;
        self.monitor.debug(&format!(
            "step {} of epoch {epoch}: loss {:.6}, gradient {:.6}, loss scale {}{}, {seconds:.4} s",
            step.step,
            stats.loss,
            stats.grad_norm,
            stats.loss_scale,
            if stats.skipped { ", skipped" } else { "" },
        ));
        let (settings, rates) = (self.settings, self.rates);
        let lr = |trained: bool, rate: Rate| trained.then_some(rate.learning_rate * step.factor);
        self.write(&Record::Step(StepRecord {
            step: step.step,
            epoch,
            loss: stats.loss,
            parts: stats.parts.of(&self.learner.objective()),
            grad_norm: stats.grad_norm,
            loss_scale: stats.loss_scale,
            skipped: stats.skipped,
            images_per_s: step.images as f64 / seconds,
            lr: lr(settings.classifier == ClassifierKind::Head, rates.head),
            lr_lora: lr(settings.lora().is_some(), rates.lora),
            lr_prompt: lr(settings.prompt_spec().is_some(), rates.prompt),
        }))
    }

    /// The training images of this epoch in their order, which depends on the seed and the epoch alone.
    fn order(&self, epoch: u32) -> Vec<usize> {
        let mut rng = random::stream(self.settings.seed, u64::from(epoch));
        let chosen = &self.inputs.training.chosen;
        if self.settings.sampler == Sampler::Balanced {
            let classes = self.learner.classes();
            return balance::draw(self.inputs.training.inputs.labels(), chosen, classes, &mut rng);
        }
        let mut order = chosen.clone();
        if self.settings.shuffle {
            order.shuffle(&mut rng);
        }
        order
    }
}

/// Makes the record of the epochs since the last validation, in which `images` training images were seen.
pub(super) fn record(
    epoch: u32,
    train: &StepStats,
    images: usize,
    val: EvalMetrics,
    objective: Objective,
) -> EpochRecord {
    let fraction = |count: f64| count / images as f64;
    let train = TrainRecord {
        loss: train.loss,
        parts: train.parts.of(&objective),
        top1: fraction(train.correct),
        text_top1: fraction(train.text_correct),
    };
    EpochRecord { epoch, train, val }
}

/// How the images of a step are mixed.
fn mix_draw(settings: &Settings, batch: usize, step: u64) -> Result<MixDraw> {
    MixDraw::new(settings.mixup, batch, settings.seed, step).map_err(|e| {
        TrainError::Setting(format!(
            "{}: {} is no α of a Beta distribution ({e})",
            Key::mixup,
            settings.mixup
        ))
    })
}
