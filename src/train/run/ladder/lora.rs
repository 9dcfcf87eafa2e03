//! Adapters, trained from the best head: what it will take, and the learning rate.

use super::{Climb, Look};
use crate::backend::Backend;
use crate::data::Split;
use crate::progress::Monitor;
use crate::settings::Key;
use crate::tensor::{DType, Tensor};
use crate::train::run::Run;
use crate::train::{Result, TrainError};
use std::time::Instant;

/// Learning rates that are looked at, for adapters that start at 0. The documents' 1e-4 hardly moves in 20 epochs of few
/// photos; 1e-2 breaks what the head was fitted to.
pub(super) const RATES: [f64; 3] = [2e-4, 8e-4, 3.2e-3];

/// Epochs of a look.
pub(super) const LOOK_EPOCHS: u32 = 3;

/// Fewer epochs than this are not worth it.
const FEWEST_EPOCHS: u32 = 3;

/// Cost of an image in a training step, relative to that of its features; in validation with adapters it is 1.
const TRAINED: f64 = 3.0;

/// How a part of the climb ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::train::run) enum Ended {
    Done,
    /// The user asked to stop.
    Stopped,
}

impl Climb {
    /// All heads: weights \[R·C, E\] and biases \[R, C\].
    pub(super) fn heads(&self) -> Result<&[Tensor; 2]> {
        self.tensors.as_ref().ok_or_else(|| TrainError::Setting("the heads of the ladder are missing".into()))
    }

    /// The head that adapters start from: weight \[C, E\] and bias \[C\].
    pub(in crate::train::run) fn best_head(&self) -> Result<[Tensor; 2]> {
        let [weights, biases] = self.heads()?;
        let classes = biases.shape().columns();
        let weight = weights.view().rows(self.best * classes, classes)?.to_tensor(DType::F32)?;
        let bias = biases.view().rows(self.best, 1)?.to_tensor(DType::F32)?.reshape([classes])?;
        Ok([weight, bias])
    }
}

impl<B: Backend> Run<'_, '_, B> {
    /// Prepares the training of adapters from the best head: settles how long it takes and at what rate. Leaves the
    /// learner before its first step.
    pub(in crate::train::run) fn begin_lora(&mut self, climb: &mut Climb) -> Result<Ended> {
        if climb.epochs.is_none() {
            climb.epochs = Some(self.settled_epochs(climb));
            self.learner.restart(&self.start)?;
            self.save_state(Some(climb))?;
        }
        let epochs = match (climb.epochs, self.settings.minutes) {
            (Some(0), _) => return Ok(Ended::Done),
            (Some(epochs), Some(_)) => epochs,
            // They may be others than when the run began.
            _ => self.settings.epochs,
        };
        self.schedule.total = self.schedule.total / u64::from(self.epochs) * u64::from(epochs);
        (self.epochs, climb.epochs) = (epochs, Some(epochs));
        while climb.rate.is_none() {
            let Some(&rate) = RATES.get(climb.looks.len()) else {
                let best = climb.looks.iter().min_by(|a, b| a.nll.total_cmp(&b.nll));
                climb.rate = best.map(|look| look.rate);
                continue;
            };
            let started = Instant::now();
            let Some(nll) = self.look(rate, climb.looks.len())? else { return Ok(Ended::Stopped) };
            self.monitor.line(&format!(
                "{} {rate}: val NLL {nll:.4} after {} epochs",
                Key::lr_lora,
                self.look_epochs()
            ));
            climb.look_seconds += started.elapsed().as_secs_f64();
            climb.looks.push(Look { rate, nll });
            self.learner.restart(&self.start)?;
            self.save_state(Some(climb))?;
        }
        self.rates.lora.learning_rate = climb.rate.unwrap_or_default();
        Ok(Ended::Done)
    }

    /// Epochs that there is time for, which is said.
    fn settled_epochs(&self, climb: &Climb) -> u32 {
        let images = self.inputs.training.chosen.len() as f64;
        let val = self.inputs.val.labels().len() as f64;
        let of_epoch = climb.seconds_of_image * (TRAINED * images + val);
        let looks = if climb.rate.is_some() { 0 } else { RATES.len() as u32 * self.look_epochs() };
        let all = of_epoch * f64::from(self.settings.epochs + looks);
        let epochs = match self.settings.minutes {
            Some(minutes) if all > 60.0 * minutes => {
                (60.0 * minutes / of_epoch.max(1e-9) - f64::from(looks)).max(0.0) as u32
            }
            _ => self.settings.epochs,
        };
        let epochs = if epochs < FEWEST_EPOCHS.min(self.settings.epochs) { 0 } else { epochs };
        let (forecast, flag) = (duration(all), Key::minutes);
        self.monitor.line(&match (epochs, self.settings.minutes) {
            (0, _) => format!("LoRA would take some {forecast}: left out by {flag}"),
            (epochs, Some(_)) if epochs < self.settings.epochs => {
                let shorter = duration(of_epoch * f64::from(epochs + looks));
                format!("LoRA would take some {forecast}: {epochs} epochs, some {shorter}, by {flag}")
            }
            _ => format!("LoRA will take some {forecast}; {flag} bounds it"),
        });
        epochs
    }

    fn look_epochs(&self) -> u32 {
        LOOK_EPOCHS.min(self.settings.epochs)
    }

    /// The validation NLL behind a short training at `rate`; none when the user asked to stop.
    fn look(&mut self, rate: f64, index: usize) -> Result<Option<f64>> {
        let (metrics, progress) = (self.metrics.take(), self.progress.clone());
        self.rates.lora.learning_rate = rate;
        self.task = format!("look {} of {}, epoch", index + 1, RATES.len());
        let found = self.look_at_rate();
        self.task = "epoch".into();
        (self.metrics, self.progress) = (metrics, progress);
        match found {
            Err(TrainError::NotFinite { .. }) => Ok(Some(f64::INFINITY)),
            found => found,
        }
    }

    fn look_at_rate(&mut self) -> Result<Option<f64>> {
        if self.train_epochs(1..=self.look_epochs())?.is_none() {
            return Ok(None);
        }
        let sums = self.learner.accumulator();
        let Some(sums) = self.evaluate(Split::Val, sums)? else { return Ok(None) };
        let nll = sums.finish().nll;
        Ok(Some(if nll.is_nan() { f64::INFINITY } else { nll }))
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
