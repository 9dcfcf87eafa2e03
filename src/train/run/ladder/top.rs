//! The end of the climb: what lies between the best head and the adapters, the choice, the fit to all photos, the test.

use super::heads::Numbers;
use super::{Climb, counting, scores};
use crate::backend::Backend;
use crate::data::{Cache, DataError, Split, SplitView};
use crate::stats::heads::Material;
use crate::stats::judged::Judged;
use crate::stats::linear::Linear;
use crate::tensor::{DType, Tensor};
use crate::train::batches::Inputs;
use crate::train::keep::Candidate;
use crate::train::metrics::Accumulator;
use crate::train::records::{Ladder, Rung, RungKind, RungScores};
use crate::train::run::finish::{Kept, fitted_temperature};
use crate::train::run::inputs::Training;
use crate::train::run::{Run, schedule};
use crate::train::{Result, TrainError};
use std::time::Instant;

/// Shares of what was trained in a blend.
pub(super) const BLENDS: [f64; 3] = [0.25, 0.5, 0.75];

/// Values of all that is trained, with what they make of the validation split.
struct Trial {
    values: Vec<Tensor>,
    sums: Accumulator,
    /// What its files get.
    temperature: f64,
    /// The likeliest, at which rungs are compared: caution about one of two would be held against it.
    likeliest: f64,
    /// Logits divided by the likeliest temperature \[N, C\].
    logits: Vec<f64>,
    labels: Vec<u32>,
}

/// Result of a climb.
pub(in crate::train::run) struct Summit {
    pub ladder: Ladder,
    /// Rungs with adapters that are yet to be tested, by their places, with values and temperature; not the kept one.
    untested: Vec<(usize, Vec<Tensor>, f64)>,
    /// Heads: weights \[R·C, E\] and biases \[R, C\].
    heads: [Tensor; 2],
}

/// The rung that is kept as things stand.
struct Top {
    ladder: Ladder,
    trial: Trial,
    /// The epoch of its adapters; 0 for a head.
    epoch: u32,
    /// How much of what was trained is in it.
    share: f64,
    untested: Vec<(usize, Vec<Tensor>, f64)>,
    why: String,
}

impl Top {
    /// Keeps another rung in the place of the one so far, which is yet to be tested if it has adapters.
    fn keep(&mut self, rung: usize, trial: Trial, epoch: u32, share: f64) {
        let (before, replaced) = (self.ladder.kept, std::mem::replace(&mut self.trial, trial));
        if self.epoch > 0 {
            self.untested.push((before, replaced.values, replaced.temperature));
        }
        (self.ladder.kept, self.epoch, self.share) = (rung, epoch, share);
    }

    fn leave(&mut self, rung: usize, trial: Trial) {
        self.untested.push((rung, trial.values, trial.temperature));
    }
}

impl<B: Backend> Run<'_, '_, B> {
    /// Chooses among the rungs. `candidate` is the epoch of adapters that is kept, if there is one.
    pub(in crate::train::run) fn summit(
        &mut self,
        climb: &Climb,
        candidate: Option<Candidate>,
    ) -> Result<(Kept, Summit)> {
        let mut top = Top {
            ladder: Ladder { rungs: climb.rungs.clone(), kept: climb.best, reason: String::new() },
            trial: self.trial(self.start.clone(), false)?,
            epoch: 0,
            share: 0.0,
            untested: Vec::new(),
            why: climb.why_head(),
        };
        if let Some(candidate) = candidate {
            self.try_adapters(climb, candidate, &mut top)?;
        }
        let values = match self.settings.final_fit && !self.is_stopped {
            true => self.final_fit(climb, &top)?,
            false => None,
        };
        let Top { mut ladder, trial, epoch, mut untested, why, .. } = top;
        let kept = ladder.rungs[ladder.kept].kind.name();
        let stopped = if self.is_stopped { "; stopped before the end" } else { "" };
        ladder.reason = format!("{} is kept: {why}{stopped}.", upper(kept));
        let val = trial.sums.with_temperature(trial.temperature);
        let mut kept = Kept { epoch, values: trial.values, temperature: trial.temperature, val };
        if let Some((values, rung)) = values {
            let replaced = std::mem::replace(&mut kept.values, values);
            if epoch > 0 {
                untested.push((ladder.kept, replaced, kept.temperature));
            }
            ladder.kept = ladder.rungs.len();
            ladder.rungs.push(rung);
            ladder.reason += " Its choices were fitted once more to training and validation images together.";
        }
        let heads = climb.heads()?.clone();
        Ok((kept, Summit { ladder, untested, heads }))
    }

    /// Adds the rungs of the adapters, and keeps one of them unless they hurt.
    fn try_adapters(&mut self, climb: &Climb, candidate: Candidate, top: &mut Top) -> Result<()> {
        let (started, epoch, rung) = (Instant::now(), candidate.epoch, top.ladder.rungs.len());
        let tuned = self.trial(candidate.values, true)?;
        let seconds = climb.look_seconds + self.progress.seconds - self.seconds_before_lora;
        top.ladder.rungs.push(self.rung(RungKind::Lora, climb.describe_lora(epoch), &tuned, seconds));
        let (share, blend) = self.best_blend(&top.trial, &tuned)?;
        let (chosen, seconds) = (format!("{share} of what was trained"), started.elapsed().as_secs_f64());
        top.ladder.rungs.push(self.rung(RungKind::Blend, chosen, &blend, seconds));
        let hurts = self.judged(&tuned).hurts(self.judged(&top.trial));
        top.why = climb.why_adapters(hurts);
        match hurts {
            true => top.leave(rung, tuned),
            false => top.keep(rung, tuned, epoch, 1.0),
        }
        if self.judged(&blend).is_taken_over(self.judged(&top.trial)) {
            top.why += "; a part of what was trained has a lower validation NLL and is no less accurate";
            top.keep(rung + 1, blend, epoch, share);
        } else {
            top.leave(rung + 1, blend);
        }
        Ok(())
    }

    /// Tests every rung, `kept` being what the kept one reached.
    pub(in crate::train::run) fn test_ladder(
        &mut self,
        summit: Summit,
        kept: &Accumulator,
    ) -> Result<Ladder> {
        let Summit { mut ladder, untested, heads } = summit;
        if self.inputs.test.is_none() {
            return Ok(ladder);
        }
        let place = ladder.kept;
        ladder.rungs[place].test = Some(scores_of(kept));
        for (place, values, temperature) in untested {
            self.learner.restore(&values)?;
            let sums = self.learner.accumulator().with_temperature(temperature);
            let sums = self.evaluate_on(Split::Test, sums)?;
            ladder.rungs[place].test = Some(scores_of(&sums));
        }
        let tests = self.test_of_heads(&heads)?;
        for (rung, test) in ladder.rungs.iter_mut().zip(tests) {
            rung.test.get_or_insert(test);
        }
        Ok(ladder)
    }

    fn test_of_heads(&mut self, [weights, biases]: &[Tensor; 2]) -> Result<Vec<RungScores>> {
        let numbers = self.model.numbers(&mut self.learner, Split::Test, self.batch, self.monitor)?;
        let classes = biases.shape().columns();
        let (weights, biases) = (weights.view().to_tensor(DType::F64)?, biases.view().to_tensor(DType::F64)?);
        let width = weights.shape().columns();
        let heads = weights
            .typed::<f64>()?
            .chunks_exact(classes * width)
            .zip(biases.typed::<f64>()?.chunks_exact(classes));
        let counting = counting(self.settings);
        Ok(heads
            .map(|(weight, bias)| {
                let head = Linear { weight: weight.to_vec(), bias: bias.to_vec(), share: 0.0 };
                let logits = head.logits(&numbers.features, None);
                scores(Judged { logits: &logits, labels: &numbers.labels, classes, counting })
            })
            .collect())
    }

    /// Evaluates values of all that is trained on the validation split, and fits their temperature there, which is
    /// cautious where these images chose the epoch too.
    fn trial(&mut self, values: Vec<Tensor>, epoch_chosen: bool) -> Result<Trial> {
        self.learner.restore(&values)?;
        let sums = self.learner.accumulator().keep_logits();
        let sums = self.evaluate_on(Split::Val, sums)?;
        let fitted = |chose_epoch| fitted_temperature(&sums, self.learner.classes(), chose_epoch);
        let (temperature, likeliest) = (fitted(epoch_chosen), fitted(false));
        let (logits, labels) = sums.logits().unwrap_or_default();
        let logits = logits.iter().map(|z| z / likeliest).collect();
        Ok(Trial { values, temperature, likeliest, logits, labels, sums })
    }

    /// The blend with the lowest NLL, and its share of what was trained.
    fn best_blend(&mut self, head: &Trial, tuned: &Trial) -> Result<(f64, Trial)> {
        let names = self.learner.param_names();
        let mut trials = Vec::new();
        for share in BLENDS {
            trials.push((share, self.trial(blend(&names, &head.values, &tuned.values, share)?, true)?));
        }
        let nll = |(_, trial): &(f64, Trial)| self.judged(trial).nll();
        let best = trials.into_iter().min_by(|a, b| nll(a).total_cmp(&nll(b)));
        best.ok_or(TrainError::InterruptedEarly)
    }

    fn judged<'t>(&self, trial: &'t Trial) -> Judged<'t> {
        let (classes, counting) = (self.learner.classes(), counting(self.settings));
        Judged { logits: &trial.logits, labels: &trial.labels, classes, counting }
    }

    fn rung(&self, kind: RungKind, chosen: String, trial: &Trial, seconds: f64) -> Rung {
        let factor = trial.likeliest / trial.temperature;
        let logits: Vec<f64> = trial.logits.iter().map(|z| z * factor).collect();
        let val = scores(Judged { logits: &logits, ..self.judged(trial) });
        Rung { kind, chosen, val: Some(val), test: None, seconds }
    }

    /// The kept rung with its choices fitted to training and validation images together; none when the user asked to stop.
    fn final_fit(&mut self, climb: &Climb, top: &Top) -> Result<Option<(Vec<Tensor>, Rung)>> {
        let (started, kept) = (Instant::now(), top.ladder.kept);
        let head = match self.head_of_all(climb, if top.epoch == 0 { kept } else { climb.best }) {
            Err(TrainError::Data(DataError::Interrupted)) => {
                self.stop_climbing();
                return Ok(None);
            }
            head => head?,
        };
        let mut values = self.start.clone();
        values.splice(..2, head);
        if top.epoch > 0 {
            let Some(tuned) = self.train_on_all(&values, top.epoch)? else { return Ok(None) };
            values = blend(&self.learner.param_names(), &values, &tuned, top.share)?;
        }
        let rung = Rung {
            kind: RungKind::FinalFit,
            chosen: top.ladder.rungs[kept].kind.name().into(),
            val: None,
            test: None,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok(Some((values, rung)))
    }

    /// Trains on training and validation images from `start` on; none when the user asked to stop.
    fn train_on_all(&mut self, start: &[Tensor], epochs: u32) -> Result<Option<Vec<Tensor>>> {
        let cache = self.model.cache;
        let images = match (&self.inputs.training.augmentation, self.model.enlarged) {
            (Some(_), Some(enlarged)) => enlarged.train_and_val(),
            _ => cache.train_and_val(),
        };
        let chosen = self.training_and_val();
        let training = &mut self.inputs.training;
        *training = Training { inputs: Inputs::Images(images), chosen, augmentation: training.augmentation };
        self.schedule = schedule(self.settings, self.inputs.training.chosen.len());
        self.schedule.total = self.schedule.total / u64::from(self.settings.epochs) * u64::from(self.epochs);
        self.learner.restart(start)?;
        let metrics = self.metrics.take();
        self.task = "final fit, epoch".into();
        let trained = self.train_epochs(1..=epochs)?;
        self.metrics = metrics;
        if trained.is_none() {
            self.stop_climbing();
            return Ok(None);
        }
        Ok(Some(self.learner.snapshot()?))
    }

    /// The training images that take part and those of the validation split, by their places in both together.
    fn training_and_val(&self) -> Vec<usize> {
        let [train, val] = [Split::Train, Split::Val].map(|split| self.model.cache.split(split).len());
        self.inputs.training.chosen.iter().copied().chain(train..train + val).collect()
    }

    /// The head of a rung, fitted to training and validation images: weight \[C, E\] and bias \[C\].
    fn head_of_all(&mut self, climb: &Climb, rung: usize) -> Result<[Tensor; 2]> {
        let (batch, monitor) = (self.batch, self.monitor);
        let [train, val] = [Split::Train, Split::Val]
            .map(|split| self.model.numbers(&mut self.learner, split, batch, monitor));
        let numbers = train?.of(&self.inputs.training.chosen).with(val?);
        let (chosen, learner) = (self.training_and_val(), &mut self.learner);
        let images = (Cache::train_and_val as fn(&Cache) -> SplitView<'_>, chosen.as_slice());
        let views = self.model.views(self.settings, &numbers, images, learner, batch, monitor)?;
        let plain = numbers.photos();
        let material = Material {
            plain,
            views: views.as_ref().map(Numbers::photos),
            validation: plain,
            width: self.learner.tower().features(),
            classes: self.learner.classes(),
            counting: counting(self.settings),
            seed: self.settings.seed,
        };
        let head = climb.hows[rung].fit(material)?;
        let (weight, bias) = self.model.folded(std::iter::once(&head))?;
        Ok([weight, bias.reshape([self.learner.classes()])?])
    }
}

impl Climb {
    fn describe_lora(&self, epoch: u32) -> String {
        let rate = self.rate.map_or(String::new(), |rate| format!("learning rate {rate}, "));
        let crops = if self.crops { ", with crops" } else { "" };
        format!("{rate}epoch {epoch} of {}{crops}", self.epochs.unwrap_or_default())
    }

    fn why_head(&self) -> String {
        let images = match self.rungs[self.best].val {
            Some(val) if val.images < self.held_out => {
                format!("{} images, of validation and held out of training", self.held_out)
            }
            _ => "validation".into(),
        };
        let left_out = if self.epochs == Some(0) { "; adapters were left out for their time" } else { "" };
        format!(
            "the lowest NLL of the heads on {images}, and no less accurate beyond one standard error{left_out}"
        )
    }

    fn why_adapters(&self, hurts: bool) -> String {
        match hurts {
            true => format!("{}; on validation adapters are worse beyond noise", self.why_head()),
            false => format!(
                "on validation, adapters from the best head ({}) are not worse beyond noise, and are kept for the photos to come",
                self.rungs[self.best].kind.name()
            ),
        }
    }
}

/// `share` of the way from a start, at which adapters are 0, to what was trained from it: as much of the adapters' effect,
/// and of the head's way.
fn blend(names: &[String], start: &[Tensor], tuned: &[Tensor], share: f64) -> Result<Vec<Tensor>> {
    names
        .iter()
        .zip(start.iter().zip(tuned))
        .map(|(name, (start, tuned))| {
            // B is 0 at the start, so that a share of it is that share of B·A.
            if share == 1.0 || name.ends_with("lora_A") {
                return Ok(tuned.clone());
            }
            let (from, to) = (start.view().to_tensor(DType::F64)?, tuned.view().to_tensor(DType::F64)?);
            let pairs = from.typed::<f64>()?.iter().zip(to.typed::<f64>()?);
            let values: Vec<f64> = pairs.map(|(a, b)| a + share * (b - a)).collect();
            Ok(Tensor::from_slice(tuned.shape(), &values)?.view().to_tensor(tuned.dtype())?)
        })
        .collect()
}

fn scores_of(sums: &Accumulator) -> RungScores {
    let metrics = sums.finish();
    RungScores { images: metrics.images, top1: metrics.top1, nll: metrics.nll }
}

/// With its first letter large.
fn upper(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
