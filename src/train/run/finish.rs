//! What is saved at the end of an epoch, and at that of a run.

use super::ladder::{Climb, Summit};
use super::{Run, balance, state};
use crate::backend::Backend;
use crate::data::Split;
use crate::files::Staged;
use crate::progress::Monitor;
use crate::settings::{Key, Sampler, flag};
use crate::stats::calibration::chance_error;
use crate::stats::temperature::{PRIOR, cautious_temperature, fit_temperature};
use crate::tensor::Tensor;
use crate::train::adapter::{self, HeadFile};
use crate::train::batches::{evaluate_split, require_numbers};
use crate::train::keep::Candidate;
use crate::train::metrics::{Accumulator, EvalMetrics};
use crate::train::provenance::Stamp;
use crate::train::records::{EpochRecord, Summary, Temperature, ZeroShot};
use crate::train::{Result, TrainError};
use crate::tune::Tower;

impl<B: Backend> Run<'_, '_, B> {
    /// Adds a split to `sums`; `None` when the user asked to stop.
    pub(super) fn evaluate(&mut self, split: Split, sums: Accumulator) -> Result<Option<Accumulator>> {
        let inputs = match (split, &self.inputs.test) {
            (Split::Test, Some(test)) => test,
            _ => &self.inputs.val,
        };
        let learner = &mut self.learner;
        let begun = self.at_summit.then(|| sums.clone());
        let found = evaluate_split(learner, inputs, self.batch, split.name(), sums, self.monitor)?;
        match (found, begun) {
            (None, Some(begun)) => {
                self.stop_climbing();
                self.evaluate(split, begun)
            }
            (found, _) => Ok(found),
        }
    }

    /// Adds a split to `sums` as [`Run::evaluate`] does, and ends the run when the user asks to stop.
    pub(super) fn evaluate_on(&mut self, split: Split, sums: Accumulator) -> Result<Accumulator> {
        self.evaluate(split, sums)?.ok_or_else(|| self.interrupted())
    }

    /// Writes the best epoch's files and the state, and says how the epoch went.
    pub(super) fn end_epoch(&mut self, EpochRecord { epoch, train, val }: &EpochRecord) -> Result<()> {
        let epoch = *epoch;
        let before = self.candidates.chosen().map(|kept| kept.epoch);
        let judged =
            EvalMetrics { loss: if self.ladder.is_some() { val.nll } else { val.loss }, ..val.clone() };
        if self.candidates.admit(&judged) {
            let values = self.learner.snapshot()?;
            self.candidates.add(Candidate { epoch, val: judged, values });
        }
        let candidates = std::mem::take(&mut self.candidates);
        let Some(kept) = candidates.chosen() else { return Ok(()) };
        self.monitor.line(&format!(
            "epoch {epoch:>3}/{}  loss {:.4} val {:.4}  top-1 {:5.1} % val {:5.1} % text {:5.1} %{}",
            self.epochs,
            train.loss,
            val.loss,
            100.0 * train.top1,
            100.0 * val.top1,
            100.0 * val.text_top1,
            if kept.epoch == epoch { " *" } else { "" },
        ));
        if before != Some(kept.epoch) {
            let now = self.learner.snapshot()?;
            self.learner.restore(&kept.values)?;
            self.save(kept.epoch, &kept.values, 1.0)?;
            self.learner.restore(&now)?;
        }
        self.progress.steps = self.learner.steps();
        self.progress.candidates = candidates.iter().map(|c| (c.epoch, c.val.clone())).collect();
        self.candidates = candidates;
        let ladder = self.ladder.take();
        let saved = self.save_state(ladder.as_ref());
        self.ladder = ladder;
        saved
    }

    /// Writes what resuming needs.
    pub(super) fn save_state(&mut self, ladder: Option<&Climb>) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            self.progress.metrics_bytes = metrics.sync()?;
        }
        let path = self.dir.state();
        state::save(&path, &self.learner, &self.progress, &self.candidates, ladder)?;
        self.monitor.debug(&format!("saved {} after epoch {}", path.display(), self.progress.epoch));
        Ok(())
    }

    /// Writes adapter/, prompts.safetensors and head.safetensors with the `values` of an epoch, which are the
    /// learner's. They belong together: all are on the disk before the first gets its name, and each says which
    /// the others are.
    fn save(&mut self, epoch: u32, values: &[Tensor], temperature: f64) -> Result<()> {
        let stamp = Stamp::new(epoch, values, &self.model.weights);
        let stamp = Some(&stamp);
        // Without a head of its own the run keeps the class features in the form of one.
        self.learner.refresh()?;
        let backend = self.learner.backend();
        let head = HeadFile::of(backend, self.learner.head(), self.model.cache.class_names())?;
        let head = adapter::stage_head(&self.dir.head(), &HeadFile { temperature, ..head }, stamp)?;
        let prompts = self.learner.prompts().zip(self.settings.prompt_spec());
        let prompts = prompts
            .map(|(p, spec)| adapter::stage_prompts(&self.dir.prompts(), backend, p, &spec, stamp))
            .transpose()?;
        if let Some(spec) = self.settings.lora() {
            let mut tensors = adapter::tensors(backend, Tower::Vision, self.learner.lora())?;
            tensors.append(&mut adapter::tensors(backend, Tower::Text, self.learner.text_lora())?);
            let staged = adapter::stage(&self.dir.adapter(), &tensors, &spec, &self.model.name, stamp)?;
            staged.into_iter().try_for_each(Staged::persist)?;
        }
        prompts.map_or(Ok(()), Staged::persist)?;
        Ok(head.persist()?)
    }

    /// Stops at the user's wish: a ladder is left with the best rung so far, a run without one where it stands.
    pub(super) fn finish_early(mut self) -> Result<Summary> {
        if self.ladder.is_none() {
            return Err(self.interrupted());
        }
        self.stop_climbing();
        self.finish(false)
    }

    /// Finishes with what there is, though the user asked to stop; a second request ends the process.
    pub(super) fn stop_climbing(&mut self) {
        let dir = self.dir.path().display();
        self.monitor.warn(&format!(
            "stopped; the best so far is tested and kept, and engine train {} {} {dir} goes on",
            flag::RESUME,
            flag::OUTPUT
        ));
        self.is_stopped = true;
        self.monitor.finish_in_spite();
    }

    /// The epoch that is kept, or what the ladder came to.
    fn kept(&mut self) -> Result<(Kept, Option<Summit>)> {
        let candidate = std::mem::take(&mut self.candidates).into_chosen();
        if let Some(climb) = self.ladder.take() {
            self.at_summit = true;
            let (kept, summit) = self.summit(&climb, candidate)?;
            return Ok((kept, Some(summit)));
        }
        let Some(Candidate { epoch, values, .. }) = candidate else {
            return Err(TrainError::InterruptedEarly);
        };
        self.learner.restore(&values)?;
        let sums = self.learner.accumulator().keep_logits();
        let sums = self.evaluate_on(Split::Val, sums)?;
        let temperature = fitted_temperature(&sums, self.learner.classes(), true);
        Ok((Kept { epoch, values, temperature, val: sums.with_temperature(temperature) }, None))
    }

    /// Tests what is kept; writes its evaluation and the summary.
    pub(super) fn finish(mut self, stopped_early: bool) -> Result<Summary> {
        let (Kept { epoch, values, temperature, val }, summit) = self.kept()?;
        self.learner.restore(&values)?;
        let (dir, cache) = (self.dir, self.model.cache);
        // The other files again too, in case an earlier attempt was cut off between two of them.
        self.save(epoch, &values, temperature)?;
        let split = if self.inputs.test.is_some() { Split::Test } else { Split::Val };
        let sums = match &self.inputs.test {
            Some(_) => {
                let sums = self.learner.accumulator().with_temperature(temperature);
                self.evaluate_on(Split::Test, sums)?
            }
            // For what is known of each image.
            None => val.clone(),
        };
        let plain = self.progress.zero_shot.clone();
        let images = cache.split(split);
        require_numbers(&sums, cache.split(split))?;
        let path = |index| images.path(index).unwrap_or_default().display().to_string();
        let names = cache.class_names();
        let evaluation = sums.evaluation(split.name(), names, path, plain.classes);
        let evened = self.class_weights.is_some() || self.settings.sampler != Sampler::Once;
        let helps = match evened {
            true => String::new(),
            false => format!(", or {} balanced where there are fewer than of others", Key::class_weights),
        };
        if let Some(warning) = balance::never_predicted(split.name(), &evaluation.classes, names, &helps) {
            self.monitor.warn(&warning);
        }
        let ladder = match summit {
            Some(summit) => Some(self.test_ladder(summit, &sums)?),
            None => None,
        };
        dir.write_evaluation(&evaluation)?;
        let summary = Summary {
            recipe: self.settings.recipe,
            classes: self.learner.classes(),
            trained_parameters: self.learner.trained_elements(),
            epochs: self.progress.epoch,
            best_epoch: epoch,
            stopped_early,
            val: val.finish(),
            test: self.inputs.test.is_some().then(|| sums.finish()),
            zero_shot: ZeroShot::of(split, &plain.metrics),
            zero_shot_val: Some(ZeroShot::of(Split::Val, &plain.val)),
            baseline: plain.baseline,
            temperature: Some(Temperature {
                value: temperature,
                before: sums.untempered(),
                after: sums.probabilities(),
                chance: Some(chance_error(&sums.confidences(), 1000, self.settings.seed).into()),
            }),
            seconds: self.progress.seconds,
            images_per_s: self.progress.step_images as f64 / self.progress.step_seconds.max(1e-9),
            ladder,
            text_left_out: self.text_left_out,
            photos: Some(cache.photos().to_owned()),
            device: self.learner.backend().describe(),
            vision: Some(self.model.tower.config().into()),
        };
        dir.write_summary(&summary)?;
        Ok(summary)
    }
}

/// Trained values that a run ends with.
pub(super) struct Kept {
    /// Counted from 1; 0 where it is as it was before the first.
    pub epoch: u32,
    pub values: Vec<Tensor>,
    pub temperature: f64,
    /// On the validation split, at that temperature.
    pub val: Accumulator,
}

/// Fits the temperature that the logits of a validation split are divided by so that their probabilities are those that
/// other images show, whether it also chose the epoch that they are of or not; 1 where there are no logits.
pub(super) fn fitted_temperature(val: &Accumulator, classes: usize, chose_epoch: bool) -> f64 {
    let Some((logits, labels)) = val.logits() else { return 1.0 };
    let temperature = match chose_epoch {
        true => cautious_temperature(logits, classes, &labels),
        false => fit_temperature(logits, classes, &labels, Some(PRIOR)),
    };
    // As its file holds it, so that what is tested is what others read.
    f64::from(temperature as f32)
}
