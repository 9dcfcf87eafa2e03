//! The end of the climb: what lies between the best head and the adapters, the choice, the fit to all photos, the test.

use super::heads::Numbers;
use super::{Climb, counting, scores};
use crate::backend::Backend;
use crate::data::{Cache, Split, SplitView};
use crate::stats::heads::Material;
use crate::stats::judged::Judged;
use crate::stats::linear::Linear;
use crate::tensor::{DType, Tensor};
use crate::train::Result;
use crate::train::batches::Inputs;
use crate::train::keep::Candidate;
use crate::train::metrics::Accumulator;
use crate::train::records::{Ladder, Rung, RungKind, RungScores};
use crate::train::run::finish::{Kept, fitted_temperature};
use crate::train::run::inputs::Training;
use crate::train::run::{Run, schedule};
use std::time::Instant;

/// Shares of what was trained in a blend.
pub(super) const BLENDS: [f64; 3] = [0.25, 0.5, 0.75];

/// Values of all that is trained, with what they make of the validation split.
struct Trial {
    values: Vec<Tensor>,
    sums: Accumulator,
    temperature: f64,
    /// Over the temperature \[N, C\].
    logits: Vec<f64>,
    labels: Vec<u32>,
}

/// What the climb came to.
pub(in crate::train::run) struct Summit {
    pub ladder: Ladder,
    /// Those of rungs with adapters that are yet to be tested, with their values and temperature; not the kept one.
    untested: Vec<(usize, Vec<Tensor>, f64)>,
    /// Heads: weights \[R·C, E\] and biases \[R, C\].
    heads: [Tensor; 2],
}

impl<B: Backend> Run<'_, '_, B> {
    /// Chooses among the rungs; none when the user asked to stop. `candidate` is the epoch of adapters that is kept, if
    /// there is one.
    pub(in crate::train::run) fn summit(
        &mut self,
        climb: &Climb,
        candidate: Option<Candidate>,
    ) -> Result<Option<(Kept, Summit)>> {
        let started = Instant::now();
        let Some(head) = self.trial(self.start.clone())? else { return Ok(None) };
        let mut ladder = Ladder { rungs: climb.rungs.clone(), kept: climb.best, reason: String::new() };
        let (mut kept, mut epoch, mut untested) = (head, 0, Vec::new());
        let mut share = 0.0;
        let mut why = climb.why_head();
        if let Some(candidate) = candidate {
            epoch = candidate.epoch;
            let Some(tuned) = self.trial(candidate.values)? else { return Ok(None) };
            let place = ladder.rungs.len();
            let seconds = climb.look_seconds + self.progress.seconds - self.seconds_before_lora;
            ladder.rungs.push(self.rung(RungKind::Lora, climb.describe_lora(epoch), &tuned, seconds));
            let Some((blend_share, blend)) = self.best_blend(&kept, &tuned)? else { return Ok(None) };
            let chosen = format!("{blend_share} of what was trained");
            let seconds = started.elapsed().as_secs_f64();
            ladder.rungs.push(self.rung(RungKind::Blend, chosen, &blend, seconds));
            let hurts = self.judged(&tuned).hurts(self.judged(&kept));
            why = climb.why_adapters(hurts);
            let mut lower = None;
            if !hurts {
                (kept, lower) = (tuned, Some(place));
                ladder.kept = place;
                share = 1.0;
            } else {
                untested.push((place, tuned.values, tuned.temperature));
            }
            if self.judged(&blend).is_taken_over(self.judged(&kept)) {
                if let Some(place) = lower {
                    untested.push((place, kept.values, kept.temperature));
                }
                why += "; a part of what was trained has a lower validation NLL than all of it and is no less accurate";
                (kept, share) = (blend, blend_share);
                ladder.kept = place + 1;
            } else {
                untested.push((place + 1, blend.values, blend.temperature));
            }
            if share == 0.0 {
                epoch = 0;
            }
        }
        if self.is_stopped {
            why += "; stopped before the end";
        }
        ladder.reason = format!("{} is kept: {why}.", upper(ladder.rungs[ladder.kept].kind.name()));
        let val = kept.sums.with_temperature(kept.temperature);
        let mut kept = Kept { epoch, values: kept.values, temperature: kept.temperature, val };
        let started = Instant::now();
        if self.settings.final_fit
            && !self.is_stopped
            && let Some(values) = self.final_fit(climb, &ladder, epoch, share)?
        {
            let replaced = std::mem::replace(&mut kept.values, values);
            if epoch > 0 {
                untested.push((ladder.kept, replaced, kept.temperature));
            }
            ladder.rungs.push(Rung {
                kind: RungKind::FinalFit,
                chosen: ladder.rungs[ladder.kept].kind.name().into(),
                val: None,
                test: None,
                seconds: started.elapsed().as_secs_f64(),
            });
            ladder.kept = ladder.rungs.len() - 1;
            ladder.reason += " Its choices were fitted once more to training and validation images together.";
        }
        let Some(heads) = climb.tensors.clone() else { return Ok(None) };
        Ok(Some((kept, Summit { ladder, untested, heads })))
    }

    /// Tests every rung, `kept` being what the kept one reached; none when the user asked to stop.
    pub(in crate::train::run) fn test_ladder(
        &mut self,
        summit: Summit,
        kept: &Accumulator,
    ) -> Result<Option<Ladder>> {
        let Summit { mut ladder, untested, heads } = summit;
        if self.inputs.test.is_none() {
            return Ok(Some(ladder));
        }
        let place = ladder.kept;
        ladder.rungs[place].test = Some(scores_of(kept));
        for (place, values, temperature) in untested {
            self.learner.restore(&values)?;
            let sums = self.learner.accumulator().with_temperature(temperature);
            let Some(sums) = self.evaluate(Split::Test, sums)? else { return Ok(None) };
            ladder.rungs[place].test = Some(scores_of(&sums));
        }
        let tests = self.test_of_heads(&heads)?;
        for (rung, test) in ladder.rungs.iter_mut().zip(tests) {
            rung.test.get_or_insert(test);
        }
        Ok(Some(ladder))
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

    /// What values make of the validation split; none when the user asked to stop.
    fn trial(&mut self, values: Vec<Tensor>) -> Result<Option<Trial>> {
        self.learner.restore(&values)?;
        let sums = self.learner.accumulator().keep_logits();
        let Some(sums) = self.evaluate(Split::Val, sums)? else { return Ok(None) };
        let temperature = fitted_temperature(&sums, self.learner.classes());
        let (logits, labels) = sums.logits().unwrap_or_default();
        let logits = logits.iter().map(|z| z / temperature).collect();
        Ok(Some(Trial { values, temperature, logits, labels, sums }))
    }

    /// The blend with the lowest NLL, and its share of what was trained.
    fn best_blend(&mut self, head: &Trial, tuned: &Trial) -> Result<Option<(f64, Trial)>> {
        let names = self.learner.param_names();
        let mut best: Option<(f64, Trial)> = None;
        for share in BLENDS {
            let Some(trial) = self.trial(blend(&names, &head.values, &tuned.values, share)?)? else {
                return Ok(None);
            };
            let lower = |(_, best): &(f64, Trial)| self.judged(&trial).nll() < self.judged(best).nll();
            if best.as_ref().is_none_or(lower) {
                best = Some((share, trial));
            }
        }
        Ok(best)
    }

    fn judged<'t>(&self, trial: &'t Trial) -> Judged<'t> {
        let (classes, counting) = (self.learner.classes(), counting(self.settings));
        Judged { logits: &trial.logits, labels: &trial.labels, classes, counting }
    }

    fn rung(&self, kind: RungKind, chosen: String, trial: &Trial, seconds: f64) -> Rung {
        Rung { kind, chosen, val: Some(scores(self.judged(trial))), test: None, seconds }
    }

    /// The kept rung with its choices fitted to training and validation images together; none when the user asked to stop.
    fn final_fit(
        &mut self,
        climb: &Climb,
        ladder: &Ladder,
        epochs: u32,
        share: f64,
    ) -> Result<Option<Vec<Tensor>>> {
        let head = self.head_of_all(climb, if epochs == 0 { ladder.kept } else { climb.best })?;
        let mut start = self.start.clone();
        start.splice(..2, head);
        if epochs == 0 {
            return Ok(Some(start));
        }
        let cache = self.model.cache;
        let images = match (&self.inputs.training.augmentation, self.model.enlarged) {
            (Some(_), Some(enlarged)) => enlarged.train_and_val(),
            _ => cache.train_and_val(),
        };
        let chosen = self.training_and_val();
        let training = &mut self.inputs.training;
        *training = Training {
            inputs: Inputs::Images(images),
            chosen,
            staging: std::mem::replace(&mut training.staging, crate::train::batches::Staging::new(cache, 0)),
            augmentation: training.augmentation,
        };
        self.schedule = schedule(self.settings, self.inputs.training.chosen.len());
        self.schedule.total = self.schedule.total / u64::from(self.settings.epochs) * u64::from(self.epochs);
        self.learner.restart(&start)?;
        let metrics = self.metrics.take();
        self.task = "final fit, epoch".into();
        let mut is_whole = true;
        for epoch in 1..=epochs {
            is_whole = is_whole && self.train_epoch(epoch)?.is_some();
        }
        self.metrics = metrics;
        if !is_whole {
            self.stop_climbing();
            return Ok(None);
        }
        let tuned = self.learner.snapshot()?;
        Ok(Some(blend(&self.learner.param_names(), &start, &tuned, share)?))
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
