//! One training run, from the settings to the tested best epoch.

use super::adapter;
use super::evaluate::{Inputs, Staging, evaluate_split};
use super::files::Staged;
use super::learner::{Batch, Learner, LearnerSpec, PendingStats, Share, StepStats, loss_scaling};
use super::memory;
use super::metrics::{Accumulator, EvalMetrics};
use super::model::BaseModel;
use super::parts::{Towers, trained_parts};
use super::run_dir::{MetricsFile, RunDir};
use super::session::Session;
use super::settings::{Augment, Settings};
use super::stamp::{Stamp, WeightsId, check_weights};
use super::state::{self, Best, PlainResult, Progress};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::config::VisionConfig;
use crate::clip::text::PART;
use crate::clip::vision::Purpose;
use crate::data::augment::Augmentation;
use crate::data::shots::few_shot;
use crate::data::{Cache, DataError, Split};
use crate::objective::MixDraw;
use crate::optim::{Adamw, EarlyStop, Rates, Schedule};
use crate::progress::Monitor;
use crate::tensor::{DType, Shape, Tensor};
use crate::tune::{Place, Tower, Trained};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

/// What a finished run says of itself; the content of summary.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The recipe that the settings started from; any of them may differ from it.
    pub recipe: super::settings::Recipe,
    /// Number of classes C.
    pub classes: usize,
    /// Elements of all trained tensors.
    pub trained_parameters: usize,
    /// Epochs that ran.
    pub epochs: u32,
    /// The epoch that was kept, counted from 1: that of the highest validation top-1, and of the lowest loss
    /// among equals.
    pub best_epoch: u32,
    /// True where early stopping ended the run.
    pub stopped_early: bool,
    /// The kept epoch on the validation split.
    pub val: EvalMetrics,
    /// The kept epoch on the test split; none where there is no such split.
    pub test: Option<EvalMetrics>,
    /// Plain CLIP on the test split, or on the validation split where there is no test split: its text
    /// logits are the result, its head is untrained.
    pub zero_shot: ZeroShot,
    /// Plain CLIP on the validation split; none in a summary from before it was recorded.
    #[serde(default)]
    pub zero_shot_val: Option<ZeroShot>,
    /// A logistic regression on plain CLIP's features, on the split of the result; none where it was not fitted.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// What the head's logits are divided by before probabilities are taken; none where they are taken as they are.
    #[serde(default)]
    pub temperature: Option<Temperature>,
    /// Wall-clock time of training and validation.
    pub seconds: f64,
    /// Images per second of the training steps alone.
    pub images_per_s: f64,
    /// What the run ended on, see [`Backend::describe`].
    pub device: String,
    /// None in a summary from before it was recorded.
    #[serde(default)]
    pub vision: Option<VisionSizes>,
}

/// What tells one CLIP vision tower from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisionSizes {
    /// Blocks.
    pub layers: usize,
    /// Elements of a token.
    pub width: usize,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Side of the square input, in pixels.
    pub image_size: usize,
}

impl From<&VisionConfig> for VisionSizes {
    fn from(config: &VisionConfig) -> Self {
        VisionSizes {
            layers: config.tower.layers,
            width: config.tower.width,
            patch_size: config.patch_size,
            image_size: config.image_size,
        }
    }
}

/// Plain CLIP's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ZeroShot {
    /// "test", or "val" where there is no test split.
    pub split: String,
    /// Images of the split.
    pub images: usize,
    /// Mean cross entropy of the text logits.
    pub loss: f64,
    /// Fraction of images whose class is the first choice.
    pub top1: f64,
    /// Fraction of images whose class is among the first five.
    pub top5: f64,
}

/// The results of a logistic regression on plain CLIP's image features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// "test", or "val" where there is no test split.
    pub split: String,
    /// Images of the split.
    pub images: usize,
    /// Fraction of images whose class is the first choice.
    pub top1: f64,
    /// See [`EvalMetrics::macro_f1`].
    pub macro_f1: f64,
    /// Mean −log probability of the right class.
    pub nll: f64,
    /// See [`EvalMetrics::ece`].
    pub ece: f64,
    /// Wall-clock time of fitting it, with the choice of `c`.
    pub seconds: f64,
    /// Inverse strength of its L2 penalty, as in scikit-learn.
    pub c: f64,
}

/// The temperature of the head's probabilities, and what it does to them on the split of the result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Temperature {
    /// T > 0: probabilities are softmax(logits / T).
    pub value: f64,
    /// At T = 1.
    pub before: Probabilities,
    /// At T = `value`.
    pub after: Probabilities,
}

/// How good probabilities are; smaller is better in each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Probabilities {
    /// See [`EvalMetrics::nll`].
    pub nll: f64,
    /// See [`EvalMetrics::brier`].
    pub brier: f64,
    /// See [`EvalMetrics::ece`].
    pub ece: f64,
}

/// Everything one run works with.
struct Run<'a, B: Backend> {
    settings: &'a Settings,
    cache: &'a Cache,
    dir: &'a RunDir,
    model_name: &'a BaseModel,
    weights: &'a WeightsId,
    vision: VisionSizes,
    monitor: &'a dyn Monitor,
    learner: Learner<B>,
    /// Images of a batch at the most.
    batch: usize,
    training: Training<'a>,
    /// What validation and test are evaluated on.
    val: Inputs<'a>,
    test: Option<Inputs<'a>>,
    staging: Staging,
    schedule: Schedule,
    early_stop: Option<EarlyStop>,
    metrics: MetricsFile,
    /// Seconds of training and validation, and of training steps alone with their images.
    seconds: f64,
    step_seconds: f64,
    step_images: usize,
}

/// Which images a run evaluates.
enum Evaluated {
    Validation,
    /// Those of the final result: the test split, or where there is none the validation split.
    Result,
}

/// What is trained on.
struct Training<'a> {
    inputs: Inputs<'a>,
    /// The images that take part.
    chosen: Vec<usize>,
    staging: Staging,
    /// How they are augmented, and their side before.
    augmentation: Option<(Augmentation, usize)>,
}

impl<'a, B: Backend> Session<'a, B> {
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
        let (cache, chosen) = (self.cache, self.chosen(settings)?);
        // No batch is larger than the largest split.
        let largest = Split::ALL.map(|split| cache.split(split).len()).into_iter().max().unwrap_or(1);
        let batch = settings.batch_size.min(largest);
        let mut learner = self.learner(settings, batch, resume)?;
        let (progress, best) = if resume {
            dir.lock(monitor)?;
            let (progress, best) = resumed(&mut learner, settings, cache, &self.weights, dir, monitor)?;
            monitor.line(&format!("going on after epoch {} and step {}", progress.epoch, progress.steps));
            (Some(progress), Some(best))
        } else {
            dir.begin(settings, monitor)?;
            (None, None)
        };
        let inputs = self.all_inputs(settings, &mut learner, chosen, batch, progress.as_ref(), monitor);
        let (zero_shot, RunInputs { training, val, test, seconds }) =
            inputs.map_err(|error| match error {
                TrainError::Data(DataError::Interrupted) => interrupted(progress.as_ref(), dir),
                error => error,
            })?;
        let batches = training.chosen.len().div_ceil(settings.batch_size);
        let steps_per_epoch = batches.div_ceil(settings.accumulate) as u64;
        let schedule = Schedule {
            kind: settings.schedule,
            warmup: settings.warmup,
            total: steps_per_epoch * u64::from(settings.epochs),
        };
        if let Some(progress) = &progress {
            let to_train = !progress.stopped && progress.epoch < settings.epochs;
            if to_train {
                warn_of_jump(dir.read_settings()?.epochs, progress, &schedule, settings.epochs, monitor);
            }
            // Nothing is removed before it is known that the run can go on.
            dir.resume(settings, to_train, monitor)?;
        }
        let mut early_stop = settings.early_stop_spec().map(EarlyStop::new);
        if let (Some(stop), Some(progress)) = (&mut early_stop, &progress) {
            (stop.reference, stop.stale) = (progress.early_stop_reference, progress.early_stop_stale);
        }
        let run = Run {
            settings,
            cache,
            dir,
            model_name: &self.model_name,
            weights: &self.weights,
            vision: self.tower.config().into(),
            monitor,
            learner,
            batch,
            training,
            staging: val.staging(cache, batch),
            val,
            test,
            schedule,
            early_stop,
            metrics: {
                let bytes = progress.as_ref().map_or(0, |p| p.metrics_bytes);
                MetricsFile::open(dir, bytes, settings.tensorboard)?
            },
            seconds: progress.as_ref().map_or(seconds, |p| p.seconds),
            step_seconds: progress.as_ref().map_or(0.0, |p| p.step_seconds),
            step_images: progress.as_ref().map_or(0, |p| p.step_images),
        };
        run.epochs(zero_shot, progress, best)
    }

    /// Refuses images that cannot be learned from, and settings of another session.
    fn check(&self, settings: &Settings) -> Result<()> {
        self.check_templates(&settings.templates)?;
        for split in [Split::Train, Split::Val] {
            if self.cache.split(split).is_empty() {
                let data = settings.data.clone().unwrap_or_default();
                return Err(TrainError::file(&data, format!("the {split} split has no images; add some")));
            }
        }
        Ok(self.cache.split(Split::Train).require_every_class()?)
    }

    /// The training images that take part.
    fn chosen(&self, settings: &Settings) -> Result<Vec<usize>> {
        let images = self.cache.split(Split::Train);
        Ok(match settings.shots {
            Some(shots) => few_shot(images.labels(), self.cache.class_names(), shots, settings.seed)?,
            None => (0..images.len()).collect(),
        })
    }

    /// Larger images to take crops of, where the run augments its images.
    fn augmented(&self, settings: &Settings) -> Result<Option<&'a Cache>> {
        match (settings.augment, self.enlarged) {
            (Augment::Off, _) => Ok(None),
            (Augment::CropFlip, Some(images)) => Ok(Some(images)),
            (Augment::CropFlip, None) => {
                let text = "--augment: larger training images are needed and were not prepared";
                Err(TrainError::Setting(text.into()))
            }
        }
    }

    /// A learner at the start of a run; that of a run to resume gets its values later.
    fn learner(&self, settings: &Settings, batch: usize, resume: bool) -> Result<Learner<B>> {
        let (backend, tower, names) = (&self.backend, &self.tower, self.cache.class_names());
        let from = settings.init_from.as_deref().filter(|_| !resume);
        let text_tower = self.text_training.as_ref().map(|text| &*text.tower);
        let towers = Towers { vision: tower, text: text_tower, config: &self.config };
        let trained = trained_parts(backend, towers, settings, from, names, &self.text)?;
        let (image, image_dtype) = (self.cache.image_shape(), self.cache.dtype());
        let crops_of = self.augmented(settings)?.map(|images| images.preprocess().image_size());
        let spec = learner_spec(backend, settings, &trained, batch, image, image_dtype, crops_of);
        memory::check_batch(backend, tower, self.text_training.as_ref(), &trained, &spec)?;
        let trains_text = !trained.text_lora.is_empty();
        let learner = Learner::new(backend.clone(), tower.clone(), trained, &self.text, &spec)?;
        Ok(match &self.text_training {
            Some(text) if trains_text => learner.with_text_tower(text.tower.clone(), &text.prompts, PART)?,
            _ => learner,
        })
    }

    /// Plain CLIP's results, and what the run is trained and evaluated on.
    fn all_inputs(
        &mut self,
        settings: &Settings,
        learner: &mut Learner<B>,
        chosen: Vec<usize>,
        batch: usize,
        progress: Option<&Progress>,
        monitor: &dyn Monitor,
    ) -> Result<(PlainResult, RunInputs<'a>)> {
        let cache = self.cache;
        let zero_shot = match progress {
            Some(progress) => progress.zero_shot.clone(),
            None => self.zero_shot(learner, batch, monitor)?,
        };
        let mut seconds = 0.0;
        let mut inputs = |session: &mut Self, split: Split, on_features: bool| -> Result<Inputs<'a>> {
            if !on_features {
                return Ok(Inputs::Images(cache.split(split)));
            }
            let features = session.features(learner, split, batch, monitor)?;
            // Training and validation count as they do for runs on images.
            seconds += if split == Split::Test { 0.0 } else { features.seconds };
            let (values, labels) = (features.values.clone(), cache.split(split).labels());
            Ok(Inputs::Features { values, labels, plain: false })
        };
        // Where nothing in the tower is trained, only training images can differ from epoch to epoch.
        let frozen = settings.vision_is_frozen();
        let val = inputs(self, Split::Val, frozen)?;
        let test = match cache.split(Split::Test).is_empty() {
            true => None,
            false => Some(inputs(self, Split::Test, frozen)?),
        };
        let training = match self.augmented(settings)? {
            Some(images) => Training {
                inputs: Inputs::Images(images.split(Split::Train)),
                chosen,
                staging: Staging::new(images, batch),
                augmentation: Some((Augmentation::default(), images.preprocess().image_size())),
            },
            None => {
                let inputs = inputs(self, Split::Train, settings.on_frozen_features())?;
                Training { staging: inputs.staging(cache, batch), inputs, chosen, augmentation: None }
            }
        };
        Ok((zero_shot, RunInputs { training, val, test, seconds }))
    }

    /// Plain CLIP on the split where the final result is measured.
    fn zero_shot(
        &mut self,
        learner: &mut Learner<B>,
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<PlainResult> {
        let cache = self.cache;
        let split = if cache.split(Split::Test).is_empty() { Split::Val } else { Split::Test };
        let values = self.features(learner, split, batch, monitor)?.values.clone();
        let inputs = Inputs::Features { values, labels: cache.split(split).labels(), plain: true };
        let mut staging = inputs.staging(cache, batch);
        let task = format!("zero-shot {split}");
        let sums = evaluate_split(learner, &inputs, &mut staging, batch, &task, monitor)?;
        let sums = sums.ok_or(TrainError::Data(DataError::Interrupted))?;
        Ok(PlainResult { metrics: sums.finish(), classes: sums.text_classes() })
    }
}

/// What a learner of a run is made for: batches of up to `batch` images of shape `image`, cut out of larger
/// ones of side `crops_of` if there are any.
pub(super) fn learner_spec<B: Backend>(
    backend: &B,
    settings: &Settings,
    trained: &Trained<B>,
    batch: usize,
    image: Shape,
    image_dtype: DType,
    crops_of: Option<usize>,
) -> LearnerSpec {
    LearnerSpec {
        batch,
        image,
        image_dtype,
        objective: settings.objective(),
        mix: settings.mix(),
        crops_of,
        adamw: Adamw::default(),
        purpose: if trained.tower().is_none() { Purpose::Inference } else { Purpose::Training },
        scaling: loss_scaling(backend),
        dropout: settings.dropout_spec(),
        clip: settings.clip_grad_norm,
        accumulate: settings.accumulate > 1,
    }
}

/// What a run is trained and evaluated on.
struct RunInputs<'a> {
    training: Training<'a>,
    val: Inputs<'a>,
    test: Option<Inputs<'a>>,
    /// What it took to compute features that stand for images.
    seconds: f64,
}

/// The user stopped a run before its next epoch began.
fn interrupted(progress: Option<&Progress>, dir: &RunDir) -> TrainError {
    match progress {
        Some(progress) => TrainError::Interrupted { epoch: progress.epoch, path: dir.path().to_path_buf() },
        None => TrainError::InterruptedEarly,
    }
}

/// The state that the run in `dir` was left in.
fn resumed<B: Backend>(
    learner: &mut Learner<B>,
    settings: &Settings,
    cache: &Cache,
    weights: &WeightsId,
    dir: &RunDir,
    monitor: &dyn Monitor,
) -> Result<(Progress, Best)> {
    let path = dir.state();
    if !path.is_file() {
        let problem = "no saved state: the run ended before its first epoch did".into();
        let remedy = "start the run again with --overwrite";
        return Err(TrainError::Resume { path, problem, remedy });
    }
    let (progress, values) = state::load(&path, learner)?;
    check_photos(&progress, cache, &path, monitor)?;
    progress.weights.as_ref().map_or(Ok(()), |known| check_weights(&path, known, weights))?;
    if settings.epochs < progress.epoch {
        let (asked, done) = (settings.epochs, progress.epoch);
        let text = format!("--epochs: {asked}, and the run has trained {done} already; give {done} or more");
        return Err(TrainError::Setting(text));
    }
    MetricsFile::check(dir, progress.metrics_bytes)?;
    let best = Best { epoch: progress.best_epoch, val: progress.best_val.clone(), values };
    Ok((progress, best))
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
            "the photos have other modification times than when the run began, and the same names and sizes",
        );
        return Ok(());
    }
    let problem = "the photos or classes are not those that the run began with".into();
    let remedy = "put them back as they were, or train into another --output";
    Err(TrainError::Resume { path: path.to_path_buf(), problem, remedy })
}

/// Warns of learning rates that jump because the run gets another length in its middle.
fn warn_of_jump(planned: u32, progress: &Progress, schedule: &Schedule, epochs: u32, monitor: &dyn Monitor) {
    let steps_per_epoch = schedule.total / u64::from(epochs);
    let before = Schedule { total: steps_per_epoch * u64::from(planned), ..*schedule };
    let [was, is] = [&before, schedule].map(|schedule| 100.0 * schedule.factor(progress.steps));
    if was != is {
        monitor.warn(&format!(
            "--epochs: {epochs} instead of {planned} stretches the schedule, so the learning rates jump from \
             {was:.0} % to {is:.0} % of their values"
        ));
    }
}

impl<B: Backend> Run<'_, B> {
    fn epochs(
        mut self,
        zero_shot: PlainResult,
        progress: Option<Progress>,
        mut best: Option<Best>,
    ) -> Result<Summary> {
        let (mut last, mut stopped) =
            progress.as_ref().map_or((0, false), |progress| (progress.epoch, progress.stopped));
        if stopped {
            self.monitor.line(&format!("stopped early after epoch {last}; nothing is left to train"));
        }
        while last < self.settings.epochs && !stopped {
            let epoch = last + 1;
            let started = Instant::now();
            let trained = self.train_epoch(epoch)?;
            let val = match trained {
                Some(_) => self.evaluate(Evaluated::Validation)?.map(|sums| sums.finish()),
                None => None,
            };
            let (Some(train), Some(val)) = (trained, val) else {
                let path = self.dir.path().to_path_buf();
                return Err(match last {
                    0 => TrainError::InterruptedEarly,
                    epoch => TrainError::Interrupted { epoch, path },
                });
            };
            if !val.loss.is_finite() {
                let step = self.learner.steps();
                let flags = self.settings.step_flags();
                return Err(TrainError::NotFinite { step, epoch, loss: val.loss, flags });
            }
            self.seconds += started.elapsed().as_secs_f64();
            stopped = self.early_stop.as_mut().is_some_and(|stop| stop.update(val.loss));
            self.end_epoch(epoch, &train, val, stopped, &zero_shot, &mut best)?;
            last = epoch;
        }
        self.finish(last, stopped, zero_shot, best)
    }

    /// One pass over the training images; `None` when the user asked to stop. Steps are handed to the
    /// device ahead of their results, which are written down as they arrive.
    fn train_epoch(&mut self, epoch: u32) -> Result<Option<StepStats>> {
        let order = self.order(epoch);
        let (rates, of) = (self.settings.rates(), self.settings.epochs);
        let mut sums = EpochSums::default();
        let mut waiting = VecDeque::new();
        let mut clock = Instant::now();
        self.monitor.begin(&format!("epoch {epoch}/{of}"), order.len() as u64);
        for (index, indices) in order.chunks(self.settings.batch_size).enumerate() {
            if self.monitor.stopped() {
                self.monitor.finish();
                return Ok(None);
            }
            let factor = self.schedule.factor(self.learner.steps());
            let (share, step) = (self.share(order.len(), index), self.learner.steps() + 1);
            let number = (epoch as usize - 1) * order.len().div_ceil(self.settings.batch_size) + index;
            self.start_batch(epoch, number as u32, indices, share, &rates, factor)?;
            let (images, stats) = (indices.len(), self.learner.fetch_stats()?);
            waiting.push_back(Part { step, images, share, factor, stats });
            let wait = waiting.len() > STEPS_AHEAD;
            self.write_steps(epoch, &mut waiting, wait, &mut sums, &mut clock)?;
        }
        while !waiting.is_empty() {
            self.write_steps(epoch, &mut waiting, true, &mut sums, &mut clock)?;
        }
        self.monitor.finish();
        Ok(Some(sums.mean()))
    }

    /// The part that batch `index` of an epoch of so many images has in its step.
    fn share(&self, images: usize, index: usize) -> Share {
        let (batch, together) = (self.settings.batch_size, self.settings.accumulate);
        let first = index / together * together;
        let of_step = images.min((first + together) * batch) - first * batch;
        let place = Place::of(index - first, of_step.div_ceil(batch));
        Share { place, of_images: (images - index * batch).min(batch) as f64 / of_step as f64 }
    }

    /// Hands the batch of the images `indices`, which is the run's `number`th, to the device.
    fn start_batch(
        &mut self,
        epoch: u32,
        number: u32,
        indices: &[usize],
        share: Share,
        rates: &Rates,
        factor: f64,
    ) -> Result<()> {
        let Training { inputs, staging, augmentation, .. } = &mut self.training;
        let settings = self.settings;
        staging.fill(inputs, indices)?;
        let mix = match settings.has_mixup() {
            true => Some(mix_draw(settings, indices.len(), u64::from(number))?),
            false => None,
        };
        let crops = augmentation
            .as_ref()
            .map(|(augmentation, side)| augmentation.crops(settings.seed, epoch, indices, *side, *side))
            .transpose()?;
        let batch = Batch {
            images: staging.inputs.view(),
            labels: &staging.labels,
            mix: mix.as_ref(),
            crops: crops.as_ref().map(Tensor::view),
            number,
        };
        match inputs {
            Inputs::Images(_) => self.learner.train_part(batch, share, rates, factor)?,
            Inputs::Features { .. } => self.learner.train_on_features(batch, share, rates, factor)?,
        }
        Ok(())
    }

    /// Writes down the steps whose numbers have arrived, oldest first; `wait` for the first of them.
    fn write_steps(
        &mut self,
        epoch: u32,
        waiting: &mut VecDeque<Part<B>>,
        mut wait: bool,
        sums: &mut EpochSums,
        clock: &mut Instant,
    ) -> Result<()> {
        while let Some(oldest) = waiting.front_mut() {
            let Some(stats) = oldest.stats.arrived(self.learner.backend(), wait)? else { break };
            let Some(part) = waiting.pop_front() else { break };
            wait = false;
            sums.add(&stats, part.images);
            let step = sums.step.get_or_insert_with(|| Step::new(&part));
            step.add(&part, &stats);
            if part.share.place.completes() {
                let seconds = clock.elapsed().as_secs_f64();
                *clock = Instant::now();
                if let Some(step) = sums.step.take() {
                    self.write_step(epoch, &step, seconds)?;
                }
            }
            self.monitor.advance(part.images as u64);
            let mean = sums.mean();
            self.monitor.state(&format!(
                "loss {:.4}  accuracy {:.1} %  {:.0} images/s",
                mean.loss,
                100.0 * mean.correct / sums.images.max(1) as f64,
                self.step_images as f64 / self.step_seconds.max(1e-9),
            ));
        }
        Ok(())
    }

    /// One line of metrics; `seconds` since the step before was done.
    fn write_step(&mut self, epoch: u32, step: &Step, seconds: f64) -> Result<()> {
        let stats = &step.stats;
        let finite = stats.loss.is_finite() && stats.grad_norm.is_finite();
        let scaled_down = stats.skipped && stats.loss_scale >= SMALLEST_LOSS_SCALE;
        if !finite && !scaled_down {
            self.monitor.finish();
            let (step, loss, flags) = (step.step, stats.loss, self.settings.step_flags());
            return Err(TrainError::NotFinite { step, epoch, loss, flags });
        }
        self.step_seconds += seconds;
        self.step_images += step.images;
        self.monitor.debug(&format!(
            "step {} of epoch {epoch}: loss {:.6}, gradient {:.6}, loss scale {}{}, {seconds:.4} s",
            step.step,
            stats.loss,
            stats.grad_norm,
            stats.loss_scale,
            if stats.skipped { ", skipped" } else { "" },
        ));
        let rates = self.settings.rates();
        self.metrics.append(&json!({
            "type": "step", "step": step.step, "epoch": epoch,
            "loss": stats.loss, "loss_head": stats.loss_head, "loss_text": stats.loss_text,
            "loss_triplet": stats.loss_triplet,
            "lr": rates.head.learning_rate * step.factor, "lr_lora": rates.lora.learning_rate * step.factor,
            "lr_prompt": rates.prompt.learning_rate * step.factor,
            "loss_scale": stats.loss_scale, "skipped": stats.skipped, "grad_norm": stats.grad_norm,
            "images_per_s": step.images as f64 / seconds,
        }))
    }

    /// The training images in this epoch's order, which depends on the seed and the epoch alone.
    fn order(&self, epoch: u32) -> Vec<usize> {
        let mut order = self.training.chosen.clone();
        if self.settings.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.settings.seed);
            rng.set_stream(u64::from(epoch));
            order.shuffle(&mut rng);
        }
        order
    }

    /// Evaluates the validation split, or the test split where there is one; `None` when the user asked to
    /// stop.
    fn evaluate(&mut self, split: Evaluated) -> Result<Option<Accumulator>> {
        let (inputs, split) = match (split, &self.test) {
            (Evaluated::Result, Some(test)) => (test, Split::Test),
            _ => (&self.val, Split::Val),
        };
        evaluate_split(&mut self.learner, inputs, &mut self.staging, self.batch, split.name(), self.monitor)
    }

    /// Writes metrics, the best epoch's files and the state.
    fn end_epoch(
        &mut self,
        epoch: u32,
        train: &StepStats,
        val: EvalMetrics,
        stopped: bool,
        zero_shot: &PlainResult,
        best: &mut Option<Best>,
    ) -> Result<()> {
        let images = self.training.chosen.len() as f64;
        let top1 = train.correct / images;
        self.metrics.append(&json!({
            "type": "epoch", "epoch": epoch,
            "train": {
                "loss": train.loss, "loss_head": train.loss_head, "loss_text": train.loss_text,
                "loss_triplet": train.loss_triplet,
                "top1": top1, "text_top1": train.text_correct / images,
            },
            "val": val,
        }))?;
        let better = best
            .as_ref()
            .is_none_or(|b| val.top1 > b.val.top1 || (val.top1 == b.val.top1 && val.loss < b.val.loss));
        self.monitor.line(&format!(
            "epoch {epoch:>3}/{}  train loss {:.4} top-1 {:5.1} %   val loss {:.4} top-1 {:5.1} %  text {:5.1} %{}",
            self.settings.epochs,
            train.loss,
            100.0 * top1,
            val.loss,
            100.0 * val.top1,
            100.0 * val.text_top1,
            if better { "  *" } else { "" },
        ));
        if better {
            let values = self.learner.snapshot()?;
            self.save_best(epoch, &values)?;
            *best = Some(Best { epoch, val, values });
        }
        let Some(best) = best else { return Ok(()) };
        let progress = Progress {
            class_names: self.cache.class_names().to_vec(),
            data: self.cache.fingerprint().to_string(),
            photos: Some(self.cache.photos().to_string()),
            weights: Some(self.weights.clone()),
            epoch,
            steps: self.learner.steps(),
            stopped,
            early_stop_reference: self.early_stop.and_then(|stop| stop.reference),
            early_stop_stale: self.early_stop.map_or(0, |stop| stop.stale),
            best_epoch: best.epoch,
            best_val: best.val.clone(),
            zero_shot: zero_shot.clone(),
            metrics_bytes: self.metrics.sync()?,
            seconds: self.seconds,
            step_seconds: self.step_seconds,
            step_images: self.step_images,
        };
        let path = self.dir.state();
        state::save(&path, &self.learner, &progress, &best.values)?;
        self.monitor.debug(&format!("saved {} after epoch {epoch}", path.display()));
        Ok(())
    }

    /// Writes adapter/, prompts.safetensors and head.safetensors as they are now, at the end of `epoch` with the
    /// trained `values`. They belong together: all are on the disk before the first gets its name, and each says
    /// which the others are.
    fn save_best(&mut self, epoch: u32, values: &[Tensor]) -> Result<()> {
        let stamp = Stamp::new(epoch, values, self.weights);
        let stamp = Some(&stamp);
        // Without a head of its own the run keeps the class features in the form of one.
        self.learner.refresh()?;
        let backend = self.learner.backend();
        let (weight, bias) = adapter::head_tensors(backend, self.learner.head())?;
        let head = adapter::stage_head(&self.dir.head(), weight, bias, self.cache.class_names(), stamp)?;
        let prompts = self.learner.prompts().zip(self.settings.prompt_spec());
        let prompts = prompts
            .map(|(p, spec)| adapter::stage_prompts(&self.dir.prompts(), backend, p, &spec, stamp))
            .transpose()?;
        if let Some(spec) = self.settings.lora() {
            let mut tensors = adapter::tensors(backend, Tower::Vision, self.learner.lora())?;
            tensors.append(&mut adapter::tensors(backend, Tower::Text, self.learner.text_lora())?);
            let staged = adapter::stage(&self.dir.adapter(), &tensors, &spec, self.model_name, stamp)?;
            staged.into_iter().try_for_each(|file| file.persist())?;
        }
        prompts.map_or(Ok(()), Staged::persist)?;
        head.persist()
    }

    /// Tests the best epoch; writes its evaluation and the summary.
    fn finish(
        mut self,
        epochs: u32,
        stopped_early: bool,
        zero_shot: PlainResult,
        best: Option<Best>,
    ) -> Result<Summary> {
        let Some(best) = best else { return Err(TrainError::InterruptedEarly) };
        self.learner.restore(&best.values)?;
        // Again, in case an earlier attempt was cut off between two of the files.
        self.save_best(best.epoch, &best.values)?;
        // Where there is no test split, once more on the validation split, for what is known of each image.
        let split = if self.test.is_some() { Split::Test } else { Split::Val };
        let (dir, cache) = (self.dir, self.cache);
        let sums = match self.evaluate(Evaluated::Result)? {
            Some(sums) => sums,
            None => return Err(TrainError::Interrupted { epoch: epochs, path: dir.path().to_path_buf() }),
        };
        let images = cache.split(split);
        let path = |index| images.path(index).unwrap_or_default().display().to_string();
        let names = cache.class_names();
        dir.write_evaluation(&sums.evaluation(split.name(), names, path, zero_shot.classes))?;
        let plain = zero_shot.metrics;
        let summary = Summary {
            recipe: self.settings.recipe,
            classes: self.learner.classes(),
            trained_parameters: self.learner.trained_elements(),
            epochs,
            best_epoch: best.epoch,
            stopped_early,
            val: best.val,
            test: self.test.is_some().then(|| sums.finish()),
            zero_shot: ZeroShot {
                split: split.to_string(),
                images: plain.images,
                loss: plain.loss_text,
                top1: plain.text_top1,
                top5: plain.text_top5,
            },
            zero_shot_val: None,
            baseline: None,
            temperature: None,
            seconds: self.seconds,
            images_per_s: self.step_images as f64 / self.step_seconds.max(1e-9),
            device: self.learner.backend().describe(),
            vision: Some(self.vision),
        };
        dir.write_summary(&summary)?;
        Ok(summary)
    }
}

/// How the images of a step are mixed.
fn mix_draw(settings: &Settings, batch: usize, step: u64) -> Result<MixDraw> {
    MixDraw::new(settings.mixup, batch, settings.seed, step).map_err(|e| {
        TrainError::Setting(format!("--mixup: {} is no α of a Beta distribution ({e})", settings.mixup))
    })
}

/// Steps that are handed to the device before the host waits for the results of the first.
const STEPS_AHEAD: usize = 64;

/// When overflows have pushed the loss scale below this, the model itself is at fault.
const SMALLEST_LOSS_SCALE: f64 = 1.0 / 1024.0;

/// A batch on the device.
struct Part<B: Backend> {
    /// The step that it belongs to.
    step: u64,
    images: usize,
    share: Share,
    /// The schedule's.
    factor: f64,
    stats: PendingStats<B>,
}

/// A step, from its batches.
struct Step {
    step: u64,
    images: usize,
    factor: f64,
    stats: StepStats,
}

impl Step {
    /// Before its first batch.
    fn new<B: Backend>(part: &Part<B>) -> Self {
        let stats = StepStats {
            loss: 0.0,
            loss_head: 0.0,
            loss_text: 0.0,
            loss_triplet: 0.0,
            correct: 0.0,
            text_correct: 0.0,
            grad_norm: f64::NAN,
            loss_scale: f64::NAN,
            skipped: false,
        };
        Step { step: part.step, images: 0, factor: part.factor, stats }
    }

    /// Adds a batch: the losses are means over the images, what the optimizer says is that of the last.
    fn add<B: Backend>(&mut self, part: &Part<B>, stats: &StepStats) {
        self.images += part.images;
        let (sums, share) = (&mut self.stats, part.share.of_images);
        sums.loss += share * stats.loss;
        sums.loss_head += share * stats.loss_head;
        sums.loss_text += share * stats.loss_text;
        sums.loss_triplet += share * stats.loss_triplet;
        (sums.grad_norm, sums.loss_scale) = (stats.grad_norm, stats.loss_scale);
        sums.skipped = stats.skipped;
    }
}

/// Sums over the steps of an epoch.
#[derive(Default)]
struct EpochSums {
    images: usize,
    /// Those in steps whose loss was a number: an overflow in f16 may leave one without.
    counted: usize,
    loss: f64,
    loss_head: f64,
    loss_text: f64,
    loss_triplet: f64,
    correct: f64,
    text_correct: f64,
    /// The step whose batches are arriving.
    step: Option<Step>,
}

impl EpochSums {
    fn add(&mut self, stats: &StepStats, images: usize) {
        self.images += images;
        if stats.loss.is_finite() {
            let n = images as f64;
            self.counted += images;
            self.loss += n * stats.loss;
            self.loss_head += n * stats.loss_head;
            self.loss_text += n * stats.loss_text;
            self.loss_triplet += n * stats.loss_triplet;
        }
        self.correct += stats.correct;
        self.text_correct += stats.text_correct;
    }

    /// Means of the losses, sums of the counts.
    fn mean(&self) -> StepStats {
        let n = self.counted.max(1) as f64;
        StepStats {
            loss: self.loss / n,
            loss_head: self.loss_head / n,
            loss_text: self.loss_text / n,
            loss_triplet: self.loss_triplet / n,
            correct: self.correct,
            text_correct: self.text_correct,
            grad_norm: f64::NAN,
            loss_scale: f64::NAN,
            skipped: false,
        }
    }
}
