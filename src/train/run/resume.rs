//! Where an interrupted run goes on, and whether it may.

use super::SharedModel;
use super::state::{self, PlainResult, Progress};
use crate::backend::Backend;
use crate::data::Cache;
use crate::optim::Schedule;
use crate::progress::Monitor;
use crate::settings::Settings;
use crate::settings::{Key, flag};
use crate::train::error::elsewhere;
use crate::train::keep::{Candidates, KeepBy};
use crate::train::learner::Learner;
use crate::train::provenance::check_weights;
use crate::train::run_dir::{MetricsFile, RunDir};
use crate::train::{Result, TrainError};
use std::path::Path;

/// The state that a run was left in.
pub(super) struct Saved {
    pub progress: Progress,
    pub candidates: Candidates,
}

impl Saved {
    /// Makes the directory ready for a run that goes on, unless it has `stopped` early: removes the results that
    /// further epochs outdate.
    pub(crate) fn go_on(
        self,
        settings: &Settings,
        schedule: &Schedule,
        stopped: bool,
        dir: &RunDir,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let progress = &self.progress;
        let to_train = !stopped && progress.epoch < settings.epochs;
        if to_train {
            warn_of_jump(dir.read_settings()?.epochs, progress, schedule, settings.epochs, monitor);
        }
        dir.resume(settings, to_train, monitor)?;
        Ok(self)
    }
}

impl<B: Backend> SharedModel<'_, B> {
    /// The state of a run before its first epoch; `seconds` were spent on features that stand for images.
    pub(super) fn start(&self, zero_shot: PlainResult, seconds: f64, by: KeepBy) -> Saved {
        let progress = Progress {
            class_names: self.cache.class_names().to_vec(),
            data: self.cache.fingerprint().to_string(),
            photos: Some(self.cache.photos().to_string()),
            weights: Some(self.weights.clone()),
            epoch: 0,
            steps: 0,
            val_losses: Vec::new(),
            candidates: Vec::new(),
            zero_shot,
            metrics_bytes: 0,
            seconds,
            step_seconds: 0.0,
            step_images: 0,
        };
        Saved { progress, candidates: Candidates::new(by, Vec::new()) }
    }

    /// The state that the run in `dir`, which is locked, was left in; its tensors are read into `learner`.
    pub(super) fn saved(
        &self,
        learner: &mut Learner<B>,
        settings: &Settings,
        dir: &RunDir,
        monitor: &dyn Monitor,
    ) -> Result<Saved> {
        dir.lock(monitor)?;
        let path = dir.state();
        if !path.is_file() {
            let problem = "no saved state: the run ended before its first epoch did".into();
            let remedy = format!("start the run again with {}", flag::OVERWRITE);
            return Err(TrainError::Resume { path, problem, remedy });
        }
        let (mut progress, candidates) = state::load(&path, learner, settings.keep_by)?;
        check_photos(&progress, self.cache, &path, monitor)?;
        progress.weights.as_ref().map_or(Ok(()), |known| check_weights(&path, known, &self.weights))?;
        if settings.epochs < progress.epoch {
            let (asked, done) = (settings.epochs, progress.epoch);
            let text = format!(
                "{}: {asked}, and the run has trained {done} already; give {done} or more",
                Key::epochs
            );
            return Err(TrainError::Setting(text));
        }
        MetricsFile::check(dir, progress.metrics_bytes)?;
        monitor.line(&format!("going on after epoch {} and step {}", progress.epoch, progress.steps));
        // The photos' files may be others than those that the run began with, and what was not recorded is known now.
        progress.data = self.cache.fingerprint().to_string();
        progress.photos = Some(self.cache.photos().to_string());
        progress.weights = Some(self.weights.clone());
        Ok(Saved { progress, candidates })
    }
}

/// Refuses other images than those that the run began with.
fn check_photos(progress: &Progress, cache: &Cache, path: &Path, monitor: &dyn Monitor) -> Result<()> {
    let same_classes = progress.class_names == cache.class_names();
    if same_classes && progress.data == cache.fingerprint() {
        return Ok(());
    }
    let photos = progress.photos.as_deref().filter(|photos| !photos.is_empty());
    if same_classes && photos == Some(cache.photos()) {
        monitor.line(
            "the photos are files of another place or time than when the run began, with the same content",
        );
        return Ok(());
    }
    let problem = "the photos or classes are not those that the run began with".into();
    let remedy = format!("put them back as they were, or {}", elsewhere());
    Err(TrainError::Resume { path: path.to_path_buf(), problem, remedy })
}

/// Warns of learning rates that jump because the run gets another length in its middle.
fn warn_of_jump(planned: u32, progress: &Progress, schedule: &Schedule, epochs: u32, monitor: &dyn Monitor) {
    let steps_per_epoch = schedule.total / u64::from(epochs);
    let before = Schedule { total: steps_per_epoch * u64::from(planned), ..*schedule };
    let [was, is] = [&before, schedule].map(|schedule| 100.0 * schedule.factor(progress.steps));
    if was != is {
        monitor.warn(&format!(
            "{}: {epochs} instead of {planned} stretches the schedule, so the learning rates jump from {was:.0} % to \
             {is:.0} % of their values",
            Key::epochs
        ));
    }
}
