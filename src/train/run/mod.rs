//! One training run, from the settings to the tested best epoch.
//!
//! [`SharedModel::train`] is the run as a whole; its parts are what a run is trained and evaluated on (`inputs`), what
//! it starts from (`initial`, or where it goes on, `resume`), an epoch (`epoch`), and what is saved at its end and at
//! that of the run (`finish`).

mod balance;
mod baseline;
mod epoch;
mod finish;
pub(super) mod initial;
mod inputs;
pub(super) mod ladder;
mod patience;
mod resume;
mod shared_model;
mod state;

pub use shared_model::SharedModel;

use super::keep::Candidates;
use super::learner::Learner;
use super::metrics::EvalMetrics;
use super::records::{Record, Summary};
use super::run_dir::{MetricsFile, RunDir};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::data::{DataError, Split};
use crate::optim::{EarlyStop, Rates, Schedule, ScheduleKind};
use crate::progress::Monitor;
use crate::settings::{ClassWeights, Key, Settings, flag};
use crate::stats::interval::wilson_of;
use crate::tensor::Tensor;
use balance::BalancedWeights;
use inputs::RunInputs;
use ladder::{Climb, Ended};
use patience::Patience;
use resume::Saved;
use state::Progress;
use std::time::Instant;

/// Everything one run works with.
struct Run<'r, 'a, B: Backend> {
    settings: &'r Settings,
    text_left_out: bool,
    model: &'r mut SharedModel<'a, B>,
    dir: &'r RunDir,
    monitor: &'r Patience<'r>,
    learner: Learner<B>,
    /// Images of a batch at the most.
    batch: usize,
    inputs: RunInputs<'a>,
    /// Where batches that are evaluated are put together.
    class_weights: Option<BalancedWeights>,
    /// Epochs that are trained.
    epochs: u32,
    /// Before the schedule's factor.
    rates: Rates,
    schedule: Schedule,
    early_stop: Option<EarlyStop>,
    /// Word before the number of an epoch, where its progress is shown.
    task: String,
    /// None while what is trained is not the run's result.
    metrics: Option<MetricsFile>,
    progress: Progress,
    candidates: Candidates,
    ladder: Option<Climb>,
    /// Values of all that is trained before the first step of a run that climbs a ladder.
    start: Vec<Tensor>,
    /// Seconds of training and validation before adapters were trained.
    seconds_before_lora: f64,
    /// Whether the user asked to stop.
    is_stopped: bool,
    /// Whether the ladder is climbed: what is left takes little, and is done though the user asks to stop.
    at_summit: bool,
}

impl<B: Backend> SharedModel<'_, B> {
    /// Trains and tests. `resume` continues the run that `dir` holds.
    pub fn train(
        &mut self,
        settings: &Settings,
        dir: &RunDir,
        resume: bool,
        monitor: &dyn Monitor,
    ) -> Result<Summary> {
        settings.validate()?;
        self.check(settings)?;
        let (cache, chosen) = (self.cache, self.chosen(settings, monitor)?);
        if !resume {
            self.say_what_images_there_are(settings, &chosen, monitor);
        }
        let mut asked = settings.clone();
        asked.settle_epochs(chosen.len(), cache.class_names().len());
        let batch = asked.largest_batch(|split| cache.split(split).len());
        let mut settings = asked.clone();
        let mut ladder = if resume { state::ladder(&dir.state()) } else { None };
        settings.leave_out_crops(ladder.as_ref());
        let mut learner = self.learner(&settings, batch, resume)?;
        let mut start = if settings.climbs() { learner.snapshot()? } else { Vec::new() };
        let saved = match resume {
            true => Some(self.saved(&mut learner, &settings, dir, monitor)?),
            false => None,
        };
        if saved.is_none() {
            dir.begin(&asked, monitor)?;
        }
        let plain = saved.as_ref().map(|saved| saved.progress.zero_shot.clone());
        let last = saved.as_ref().map_or(0, |saved| saved.progress.epoch);
        let stopped = |error| match error {
            TrainError::Data(DataError::Interrupted) => interrupted(last, dir),
            error => error,
        };
        if settings.climbs() && ladder.is_none() {
            let climb = self.climb(&settings, &mut learner, &chosen, batch, monitor).map_err(stopped)?;
            if settings.leave_out_crops(Some(&climb)) {
                drop(learner);
                learner = self.learner(&settings, batch, resume)?;
            }
            ladder = Some(climb);
        }
        if let Some(climb) = &ladder {
            start.splice(..2, climb.best_head()?);
        }
        let inputs = self.inputs(&settings, &mut learner, chosen, (batch, plain), monitor);
        let (plain, inputs) = inputs.map_err(stopped)?;
        let text_left_out = self.leaves_out_text(&settings, &plain.val, saved.is_none(), monitor);
        if text_left_out {
            settings.text_weight = 0.0;
            learner.set_objective(settings.objective());
        }
        let schedule = schedule(&settings, inputs.training.chosen.len());
        let mut early_stop = settings.early_stop_spec().map(EarlyStop::new);
        let mut stopped = false;
        let Saved { progress, candidates } = match saved {
            Some(saved) => {
                for &loss in &saved.progress.val_losses {
                    stopped = early_stop.as_mut().is_some_and(|stop| stop.update(loss));
                }
                // Nothing is removed before it is known that the run can go on.
                saved.go_on(&asked, &schedule, stopped, dir, monitor)?
            }
            None => {
                let seconds = inputs.seconds + ladder.as_ref().map_or(0.0, Climb::seconds);
                self.start(plain, seconds, settings.keep_by)
            }
        };
        let run = Run {
            text_left_out,
            dir,
            monitor: &Patience::new(monitor),
            learner,
            batch,
            class_weights: (settings.class_weights == ClassWeights::Balanced)
                .then(|| BalancedWeights::new(&inputs.training.counts(cache.class_names().len()))),
            inputs,
            epochs: settings.epochs,
            rates: settings.rates(),
            schedule,
            early_stop,
            task: "epoch".into(),
            metrics: Some(MetricsFile::open(dir, progress.metrics_bytes, settings.tensorboard)?),
            seconds_before_lora: ladder.as_ref().map_or(0.0, Climb::seconds),
            progress,
            candidates,
            ladder,
            start,
            is_stopped: false,
            at_summit: false,
            settings: &settings,
            model: self,
        };
        run.train(stopped)
    }

    /// Says where plain CLIP cannot read the class names, and whether the text alignment is left out for it.
    fn leaves_out_text(
        &self,
        settings: &Settings,
        plain: &EvalMetrics,
        says: bool,
        monitor: &dyn Monitor,
    ) -> bool {
        let classes = self.cache.class_names().len();
        if settings.text_weight == 0.0 || settings.vision_is_frozen() || is_above_chance(plain, classes) {
            return false;
        }
        let left_out = settings.may_leave_out_text();
        if says {
            let what = match left_out {
                true => format!("the text alignment is left out ({} always keeps it)", Key::text_alignment),
                false => "the text alignment holds the images to them".into(),
            };
            monitor.warn(&format!(
                "plain CLIP's class names are no better than chance on the validation split ({:.1} %): {what}; other \
                 names or {} may help",
                100.0 * plain.text_top1,
                Key::templates
            ));
        }
        left_out
    }
}

impl<B: Backend> Run<'_, '_, B> {
    /// Trains what is left of the run; `stopped` where the epochs before have stopped early.
    fn train(mut self, stopped: bool) -> Result<Summary> {
        if let Some(mut climb) = self.ladder.take() {
            let ended = self.begin_lora(&mut climb)?;
            let leaves_out = climb.epochs == Some(0);
            self.ladder = Some(climb);
            if ended == Ended::Stopped {
                return self.finish_early();
            }
            if leaves_out {
                return self.finish(false);
            }
        }
        self.epochs(stopped)
    }

    /// Trains the epochs that are left; `stopped` where those before have stopped early.
    fn epochs(mut self, mut stopped: bool) -> Result<Summary> {
        if stopped {
            self.monitor.line(&format!(
                "stopped early after epoch {}; {} trains on with a larger {}, or off",
                self.progress.epoch,
                flag::RESUME,
                Key::early_stop
            ));
        }
        while self.progress.epoch < self.epochs && !stopped {
            let (before, started) = (self.progress.epoch, Instant::now());
            let epoch = self.epochs.min(before.saturating_add(self.settings.validate_every()));
            let Some(train) = self.train_epochs(before + 1..=epoch)? else { return self.finish_early() };
            let sums = self.learner.accumulator();
            let Some(sums) = self.evaluate(Split::Val, sums)? else { return self.finish_early() };
            let val = sums.finish();
            if !val.loss.is_finite() {
                return Err(self.not_finite(self.learner.steps(), epoch, val.loss));
            }
            self.progress.seconds += started.elapsed().as_secs_f64();
            stopped = self.early_stop.as_mut().is_some_and(|stop| stop.update(val.loss));
            self.progress.val_losses.push(val.loss);
            self.progress.epoch = epoch;
            let record = epoch::record(
                epoch,
                &train,
                self.inputs.training.chosen.len() * (epoch - before) as usize,
                val,
                self.learner.objective(),
            );
            self.write(&Record::Epoch(record.clone()))?;
            self.end_epoch(&record)?;
        }
        if !stopped && still_falls(&self.progress.val_losses) {
            self.monitor.warn(&self.advice_to_go_on());
        }
        self.finish(stopped)
    }

    /// Advises what to do about a validation loss that still falls after the last epoch.
    fn advice_to_go_on(&self) -> String {
        let last = self.progress.epoch;
        let more = 2 * last;
        let remedy = match self.settings.schedule {
            ScheduleKind::Constant => {
                let (dir, flag_of_epochs) = (self.dir.path().display(), Key::epochs);
                format!(
                    "go on with engine train {} {} {dir} {flag_of_epochs} {more}",
                    flag::RESUME,
                    flag::OUTPUT
                )
            }
            ScheduleKind::Cosine => format!("train anew with {} {more}", Key::epochs),
        };
        format!("the validation loss was still falling after epoch {last}, the last: {remedy}")
    }

    /// Writes a line of metrics.jsonl, unless what is trained is not the run's result.
    fn write(&mut self, record: &Record) -> Result<()> {
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        let line = metrics.append(record)?;
        self.monitor.record(&line);
        Ok(())
    }

    fn interrupted(&self) -> TrainError {
        interrupted(self.progress.epoch, self.dir)
    }

    fn not_finite(&self, step: u64, epoch: u32, loss: f64) -> TrainError {
        TrainError::NotFinite { step, epoch, loss, flags: self.settings.step_flags() }
    }
}

/// The learning rates of a run on so many images.
fn schedule(settings: &Settings, images: usize) -> Schedule {
    let batches = images.div_ceil(settings.batch_size);
    Schedule {
        kind: settings.schedule,
        warmup: settings.warmup,
        total: batches.div_ceil(settings.accumulate) as u64 * u64::from(settings.epochs),
    }
}

/// The user stopped a run whose last finished epoch is `epoch`, 0 for none.
fn interrupted(epoch: u32, dir: &RunDir) -> TrainError {
    match epoch {
        0 => TrainError::InterruptedEarly,
        epoch => TrainError::Interrupted { epoch, path: dir.path().to_path_buf() },
    }
}

/// Whether plain CLIP's accuracy cannot be that of guessing: its 95 % interval lies above a class's share.
fn is_above_chance(plain: &EvalMetrics, classes: usize) -> bool {
    wilson_of(plain.text_top1, plain.images).0 > 1.0 / classes as f64
}

/// Epochs over which a loss that still falls is told from one that has settled.
const LAST_EPOCHS: usize = 3;

/// Whether the last loss is the lowest, and lower by more than a hundredth than the one some epochs before.
fn still_falls(losses: &[f64]) -> bool {
    let [.., last] = losses else { return false };
    let Some(&before) = losses.len().checked_sub(1 + LAST_EPOCHS).and_then(|i| losses.get(i)) else {
        return false;
    };
    losses.iter().all(|loss| last <= loss) && *last < 0.99 * before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_still_falls_where_the_last_is_the_lowest_by_more_than_a_hundredth() {
        assert!(still_falls(&[2.0, 1.5, 1.2, 1.0]));
        assert!(still_falls(&[9.0, 1.02, 1.1, 1.05, 1.0]));
        // It has settled; it rose at the end; too few epochs to tell.
        assert!(!still_falls(&[2.0, 1.005, 1.003, 1.001, 1.0]));
        assert!(!still_falls(&[2.0, 1.5, 1.0, 1.1]));
        assert!(!still_falls(&[2.0, 1.5, 1.0]) && !still_falls(&[]));
    }
}
