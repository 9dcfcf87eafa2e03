//! One training run, from the settings to the tested best epoch.

use super::adapter::{self, HeadFile};
use super::balance::{self, BalancedWeights};
use super::baseline::{self, Labelled};
use super::evaluate::{Inputs, Staging, evaluate_split, require_numbers};
use super::keep::{Candidate, Candidates};
use super::learner::{Batch, Learner, LearnerSpec, PendingStats, Share, StepStats, loss_scaling};
use super::memory;
use super::metrics::{Accumulator, EvalMetrics, Probabilities};
use super::model::BaseModel;
use super::parts::{Towers, trained_parts};
use super::run_dir::{MetricsFile, RunDir};
use super::session::Session;
use super::settings::{Augment, ClassWeights, ClassifierKind, Sampler, Settings};
use super::stamp::{Stamp, WeightsId, check_weights};
use super::state::{self, PlainResult, Progress};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::config::VisionConfig;
use crate::clip::text::PART;
use crate::clip::vision::Purpose;
use crate::data::{Augmentation, Cache, DataError, Split, classes_below, few_shot};
use crate::files::Staged;
use crate::objective::MixDraw;
use crate::optim::{Adamw, EarlyStop, Rate, Rates, Schedule, ScheduleKind};
use crate::progress::{Monitor, Part as PartOfRun};
use crate::random;
use crate::stats::calibration::chance_error;
use crate::stats::interval::wilson_of;
use crate::stats::temperature::{PRIOR, fit_temperature};
use crate::tensor::{DType, Shape, Tensor};
use crate::tune::{Place, Tower, Trained};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
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
    /// The epoch that was kept, counted from 1; [`Candidates`] says which.
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
    /// Whether the text alignment had no part in it, see [`super::settings::TextAlignment`].
    #[serde(default)]
    pub text_left_out: bool,
    /// A hash of the photos' bytes, labels and splits; none in a summary from before it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub photos: Option<String>,
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

impl ZeroShot {
    fn of(split: Split, plain: &EvalMetrics) -> Self {
        ZeroShot {
            split: split.to_string(),
            images: plain.images,
            loss: plain.loss_text,
            top1: plain.text_top1,
            top5: plain.text_top5,
        }
    }
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
    /// Where `after.ece` lies in 95 of 100 cases if the probabilities are right; none where it is not known.
    #[serde(default)]
    pub chance: Option<[f64; 2]>,
}

/// Everything one run works with.
struct Run<'a, B: Backend> {
    settings: &'a Settings,
    text_left_out: bool,
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
    class_weights: Option<BalancedWeights>,
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
    /// Of every epoch so far.
    val_losses: Vec<f64>,
    candidates: Candidates,
}

/// Which images a run evaluates.
enum Evaluated {
    Validation,
    Test,
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

impl Training<'_> {
    /// Images that take part, of each class.
    fn counts(&self, classes: usize) -> Vec<usize> {
        let labels = self.inputs.labels();
        balance::counts_of(self.chosen.iter().map(|&image| labels[image]), classes)
    }
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
        let (cache, chosen) = (self.cache, self.chosen(settings, monitor)?);
        if !resume {
            self.say_what_images_there_are(settings, &chosen, monitor);
        }
        let mut settled = settings.clone();
        settled.settle_epochs(chosen.len(), cache.class_names().len());
        let settings = &mut settled;
        // No batch is larger than the largest split.
        let largest = Split::ALL.map(|split| cache.split(split).len()).into_iter().max().unwrap_or(1);
        let batch = settings.batch_size.min(largest);
        let mut learner = self.learner(settings, batch, resume)?;
        let (progress, candidates) = if resume {
            dir.lock(monitor)?;
            let (progress, candidates) = resumed(&mut learner, settings, cache, &self.weights, dir, monitor)?;
            monitor.line(&format!("going on after epoch {} and step {}", progress.epoch, progress.steps));
            (Some(progress), candidates)
        } else {
            dir.begin(settings, monitor)?;
            (None, Candidates::new(settings.keep_by, Vec::new()))
        };
        let inputs = self.all_inputs(settings, &mut learner, chosen, batch, progress.as_ref(), monitor);
        let (zero_shot, RunInputs { training, val, test, seconds }) =
            inputs.map_err(|error| match error {
                TrainError::Data(DataError::Interrupted) => interrupted(progress.as_ref(), dir),
                error => error,
            })?;
        let asked = settings.clone();
        let text_left_out = self.leaves_out_text(settings, &zero_shot.val, progress.is_none(), monitor);
        if text_left_out {
            settings.text_weight = 0.0;
            learner.set_objective(settings.objective());
        }
        let class_weights = match settings.class_weights {
            ClassWeights::Off => None,
            ClassWeights::Balanced => Some(BalancedWeights::new(&training.counts(cache.class_names().len()))),
        };
        let batches = training.chosen.len().div_ceil(settings.batch_size);
        let steps_per_epoch = batches.div_ceil(settings.accumulate) as u64;
        let schedule = Schedule {
            kind: settings.schedule,
            warmup: settings.warmup,
            total: steps_per_epoch * u64::from(settings.epochs),
        };
        let mut early_stop = settings.early_stop_spec().map(EarlyStop::new);
        let mut stopped = false;
        if let Some(progress) = &progress {
            for &loss in &progress.val_losses {
                stopped = early_stop.as_mut().is_some_and(|stop| stop.update(loss));
            }
            let to_train = !stopped && progress.epoch < settings.epochs;
            if to_train {
                warn_of_jump(dir.read_settings()?.epochs, progress, &schedule, settings.epochs, monitor);
            }
            // Nothing is removed before it is known that the run can go on.
            dir.resume(&asked, to_train, monitor)?;
        }
        let run = Run {
            settings,
            text_left_out,
            cache,
            dir,
            model_name: &self.model_name,
            weights: &self.weights,
            vision: self.tower.config().into(),
            monitor,
            learner,
            batch,
            training,
            class_weights,
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
            val_losses: progress.map_or_else(Vec::new, |p| p.val_losses),
            candidates,
        };
        run.epochs(zero_shot, stopped)
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
            monitor.warn(&format!(
            "plain CLIP's class names are no better than chance on the validation split ({:.1} %): {}; other names \
             or --template may help",
            100.0 * plain.text_top1,
            match left_out {
                true => "the text alignment is left out (--text-alignment always keeps it)",
                false => "the text alignment holds the images to them",
            }
        ));
        }
        left_out
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
    fn chosen(&self, settings: &Settings, monitor: &dyn Monitor) -> Result<Vec<usize>> {
        let images = self.cache.split(Split::Train);
        Ok(match settings.shots {
            Some(shots) => {
                let names = self.cache.class_names();
                if let Some(line) = classes_below(images.labels(), names, shots) {
                    monitor.line(&line);
                }
                few_shot(images.labels(), names, shots, settings.seed)?
            }
            None => (0..images.len()).collect(),
        })
    }

    /// Says how many training images the classes have where they differ, and warns of splits that are too small. Once:
    /// the runs of a session have the same images, unless they take a part of them.
    fn say_what_images_there_are(&mut self, settings: &Settings, chosen: &[usize], monitor: &dyn Monitor) {
        let (names, labels) = (self.cache.class_names(), self.cache.split(Split::Train).labels());
        if std::mem::replace(&mut self.images_are_said, true) {
            return;
        }
        let counts = balance::counts_of(chosen.iter().map(|&image| labels[image]), names.len());
        let done = settings.class_weights != ClassWeights::Off || settings.sampler != Sampler::Once;
        if let Some(line) = balance::describe(&counts, names, done) {
            monitor.line(&line);
        }
        if settings.batch_size > chosen.len() {
            monitor.warn(&format!(
                "--batch-size: {} is more than the {} training images, so that an epoch is one step; a smaller one \
                 makes more of them",
                settings.batch_size,
                chosen.len()
            ));
        }
        let splits = [Split::Val, Split::Test].map(|split| (split.name(), self.cache.split(split).labels()));
        let splits: Vec<_> = splits.into_iter().filter(|(_, labels)| !labels.is_empty()).collect();
        balance::warnings_of_splits(&splits, names).iter().for_each(|warning| monitor.warn(warning));
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
            None => self.plain(settings, learner, &chosen, batch, monitor)?,
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
                augmentation: settings.augmentation().map(|crops| (crops, images.preprocess().image_size())),
            },
            None => {
                let inputs = inputs(self, Split::Train, settings.on_frozen_features())?;
                Training { staging: inputs.staging(cache, batch), inputs, chosen, augmentation: None }
            }
        };
        Ok((zero_shot, RunInputs { training, val, test, seconds }))
    }

    /// Plain CLIP on the split where the final result is measured and on the validation split, and what a logistic
    /// regression makes of its features.
    fn plain(
        &mut self,
        settings: &Settings,
        learner: &mut Learner<B>,
        chosen: &[usize],
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<PlainResult> {
        let cache = self.cache;
        let split = if cache.split(Split::Test).is_empty() { Split::Val } else { Split::Test };
        let sums = self.zero_shot(split, learner, batch, monitor)?;
        let val = match split {
            Split::Val => sums.finish(),
            _ => self.zero_shot(Split::Val, learner, batch, monitor)?.finish(),
        };
        let baseline = match settings.baseline {
            true => self.logistic_regression(settings.seed, learner, chosen, batch, split, monitor)?,
            false => None,
        };
        Ok(PlainResult { metrics: sums.finish(), classes: sums.text_classes(), val, baseline })
    }

    fn zero_shot(
        &mut self,
        split: Split,
        learner: &mut Learner<B>,
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<Accumulator> {
        let values = self.features(learner, split, batch, monitor)?.values.clone();
        let inputs = Inputs::Features { values, labels: self.cache.split(split).labels(), plain: true };
        let mut staging = inputs.staging(self.cache, batch);
        let (task, sums) = (format!("plain CLIP {split}"), learner.accumulator());
        let sums = evaluate_split(learner, &inputs, &mut staging, batch, &task, sums, monitor)?;
        let sums = sums.ok_or(TrainError::Data(DataError::Interrupted))?;
        require_numbers(&sums, self.cache.split(split))?;
        Ok(sums)
    }

    /// Fitted once for runs on the same images with the same seed.
    fn logistic_regression(
        &mut self,
        seed: u64,
        learner: &mut Learner<B>,
        chosen: &[usize],
        batch: usize,
        split: Split,
        monitor: &dyn Monitor,
    ) -> Result<Option<Baseline>> {
        if let Some((known, of_seed, baseline)) = &self.baseline
            && (known.as_slice(), *of_seed) == (chosen, seed)
        {
            return Ok(baseline.clone());
        }
        let cache = self.cache;
        let mut features = |split| -> Result<Arc<Tensor>> {
            Ok(self.features(learner, split, batch, monitor)?.values.clone())
        };
        let [train, val, result] = [features(Split::Train)?, features(Split::Val)?, features(split)?];
        let of = |split, features| Labelled { features, labels: cache.split(split).labels() };
        let classes = cache.class_names().len();
        let (train, val) = (of(Split::Train, &train), of(Split::Val, &val));
        let result = (split.name(), of(split, &result));
        let baseline = baseline::fit(train, chosen, val, result, classes, seed)?;
        monitor.line(&match &baseline {
            Some(Baseline { top1, c, seconds, .. }) => format!(
                "logistic regression on plain CLIP's features: {:.1} % on {split} (C {c:.3}, {seconds:.1} s)",
                100.0 * top1
            ),
            None => "logistic regression on plain CLIP's features: left out, it would take minutes".into(),
        });
        self.baseline = Some((chosen.to_vec(), seed, baseline.clone()));
        Ok(baseline)
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
) -> Result<(Progress, Candidates)> {
    let path = dir.state();
    if !path.is_file() {
        let problem = "no saved state: the run ended before its first epoch did".into();
        let remedy = "start the run again with --overwrite";
        return Err(TrainError::Resume { path, problem, remedy });
    }
    let (progress, candidates) = state::load(&path, learner, settings.keep_by)?;
    check_photos(&progress, cache, &path, monitor)?;
    progress.weights.as_ref().map_or(Ok(()), |known| check_weights(&path, known, weights))?;
    if settings.epochs < progress.epoch {
        let (asked, done) = (settings.epochs, progress.epoch);
        let text = format!("--epochs: {asked}, and the run has trained {done} already; give {done} or more");
        return Err(TrainError::Setting(text));
    }
    MetricsFile::check(dir, progress.metrics_bytes)?;
    Ok((progress, candidates))
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
    /// Trains the epochs that are left; `stopped` where those before have stopped early.
    fn epochs(mut self, zero_shot: PlainResult, mut stopped: bool) -> Result<Summary> {
        let mut last = self.val_losses.len() as u32;
        if stopped {
            self.monitor.line(&format!(
                "stopped early after epoch {last}; --resume trains on with a larger --early-stop, or off"
            ));
        }
        while last < self.settings.epochs && !stopped {
            let epoch = last + 1;
            let started = Instant::now();
            let trained = self.train_epoch(epoch)?;
            let val = match trained {
                Some(_) => {
                    let sums = self.learner.accumulator();
                    self.evaluate(Evaluated::Validation, sums)?.map(|sums| sums.finish())
                }
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
            self.val_losses.push(val.loss);
            self.end_epoch(epoch, &train, val, &zero_shot)?;
            last = epoch;
        }
        if !stopped && still_falls(&self.val_losses) {
            self.monitor.warn(&self.advice_to_go_on(last));
        }
        self.finish(last, stopped, zero_shot)
    }

    /// What to do about a validation loss that still falls after the `last` epoch.
    fn advice_to_go_on(&self, last: u32) -> String {
        let more = 2 * last;
        let remedy = match self.settings.schedule {
            ScheduleKind::Constant => {
                format!(
                    "go on with engine train --resume --output {} --epochs {more}",
                    self.dir.path().display()
                )
            }
            ScheduleKind::Cosine => format!("train anew with --epochs {more}"),
        };
        format!("the validation loss was still falling after epoch {last}, the last: {remedy}")
    }

    /// One pass over the training images; `None` when the user asked to stop. Steps are handed to the
    /// device ahead of their results, which are written down as they arrive.
    fn train_epoch(&mut self, epoch: u32) -> Result<Option<StepStats>> {
        let order = self.order(epoch);
        let (rates, of) = (self.settings.rates(), self.settings.epochs);
        let mut sums = EpochSums::default();
        let mut waiting = VecDeque::new();
        let mut clock = Instant::now();
        let (after, at_most) = (self.val.labels().len() as u64, self.early_stop.is_some());
        self.monitor.part(PartOfRun { index: epoch - 1, of, after, at_most });
        self.monitor.begin(&format!("epoch {epoch}/{of}"), order.len() as u64);
        for (index, indices) in order.chunks(self.settings.batch_size).enumerate() {
            if self.monitor.stopped() {
                self.monitor.finish();
                return Ok(None);
            }
            let factor = self.schedule.factor(self.learner.steps());
            let (share, step) = (self.share(order.len(), index), self.learner.steps() + 1);
            self.weigh_classes(&order, index);
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

    /// Sets what the classes count in the step that begins with batch `index` of an epoch, if one does.
    fn weigh_classes(&mut self, order: &[usize], index: usize) {
        let (batch, together) = (self.settings.batch_size, self.settings.accumulate);
        let Some(weights) = self.class_weights.as_mut().filter(|_| index.is_multiple_of(together)) else {
            return;
        };
        let labels = self.training.inputs.labels();
        let images = &order[index * batch..order.len().min((index + together) * batch)];
        weights.begin_step(images.iter().map(|&image| labels[image]));
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
            class_weights: self.class_weights.as_ref().map(BalancedWeights::of_step),
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
                "loss {:.3}  {:.1} %  {:.0}/s",
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
        let mut entry = json!({
            "type": "step", "step": step.step, "epoch": epoch, "loss": stats.loss,
            "loss_scale": stats.loss_scale, "skipped": stats.skipped, "grad_norm": stats.grad_norm,
            "images_per_s": step.images as f64 / seconds,
        });
        let lr = |rate: Rate| rate.learning_rate * step.factor;
        let trained = [
            ("lr", self.has_head(), lr(rates.head)),
            ("lr_lora", self.settings.lora().is_some(), lr(rates.lora)),
            ("lr_prompt", self.settings.prompt_spec().is_some(), lr(rates.prompt)),
        ];
        put(&mut entry, trained.into_iter().chain(self.parts(stats)));
        self.metrics.append(&entry)
    }

    fn has_head(&self) -> bool {
        self.settings.classifier == ClassifierKind::Head
    }

    /// The parts of the objective and what else is known of them: a name, whether it has a part, its value.
    fn parts(&self, stats: &StepStats) -> [(&'static str, bool, f64); 6] {
        let triplet = self.settings.has_triplet();
        [
            ("loss_head", self.has_head(), stats.loss_head),
            ("loss_text", self.settings.text_weight > 0.0, stats.loss_text),
            ("loss_triplet", triplet, stats.loss_triplet),
            ("triplets_active", triplet, stats.triplets_active),
            ("distance_positive", triplet, stats.distance_positive),
            ("distance_negative", triplet, stats.distance_negative),
        ]
    }

    /// The training images of this epoch in their order, which depends on the seed and the epoch alone.
    fn order(&self, epoch: u32) -> Vec<usize> {
        let mut rng = random::stream(self.settings.seed, u64::from(epoch));
        let chosen = &self.training.chosen;
        if self.settings.sampler == Sampler::Balanced {
            let classes = self.learner.classes();
            return balance::draw(self.training.inputs.labels(), chosen, classes, &mut rng);
        }
        let mut order = chosen.clone();
        if self.settings.shuffle {
            order.shuffle(&mut rng);
        }
        order
    }

    /// Adds the validation split, or the test split where there is one, to `sums`; `None` when the user asked to
    /// stop.
    fn evaluate(&mut self, split: Evaluated, sums: Accumulator) -> Result<Option<Accumulator>> {
        let (inputs, split) = match (split, &self.test) {
            (Evaluated::Test, Some(test)) => (test, Split::Test),
            _ => (&self.val, Split::Val),
        };
        let (learner, staging) = (&mut self.learner, &mut self.staging);
        evaluate_split(learner, inputs, staging, self.batch, split.name(), sums, self.monitor)
    }

    /// Writes metrics, the best epoch's files and the state.
    fn end_epoch(
        &mut self,
        epoch: u32,
        train: &StepStats,
        val: EvalMetrics,
        zero_shot: &PlainResult,
    ) -> Result<()> {
        let images = self.training.chosen.len() as f64;
        let top1 = train.correct / images;
        let mut record =
            json!({ "loss": train.loss, "top1": top1, "text_top1": train.text_correct / images });
        put(&mut record, self.parts(train));
        self.metrics.append(&json!({ "type": "epoch", "epoch": epoch, "train": record, "val": val }))?;
        let before = self.candidates.chosen().map(|kept| kept.epoch);
        if self.candidates.admit(&val) {
            let values = self.learner.snapshot()?;
            self.candidates.add(Candidate { epoch, val: val.clone(), values });
        }
        let candidates = std::mem::take(&mut self.candidates);
        let Some(kept) = candidates.chosen() else { return Ok(()) };
        self.monitor.line(&format!(
            "epoch {epoch:>3}/{}  loss {:.4} val {:.4}  top-1 {:5.1} % val {:5.1} % text {:5.1} %{}",
            self.settings.epochs,
            train.loss,
            val.loss,
            100.0 * top1,
            100.0 * val.top1,
            100.0 * val.text_top1,
            if kept.epoch == epoch { " *" } else { "" },
        ));
        if before != Some(kept.epoch) {
            let now = self.learner.snapshot()?;
            self.learner.restore(&kept.values)?;
            self.save(kept, 1.0)?;
            self.learner.restore(&now)?;
        }
        let progress = Progress {
            class_names: self.cache.class_names().to_vec(),
            data: self.cache.fingerprint().to_string(),
            photos: Some(self.cache.photos().to_string()),
            weights: Some(self.weights.clone()),
            epoch,
            steps: self.learner.steps(),
            val_losses: self.val_losses.clone(),
            candidates: candidates.iter().map(|c| (c.epoch, c.val.clone())).collect(),
            zero_shot: zero_shot.clone(),
            metrics_bytes: self.metrics.sync()?,
            seconds: self.seconds,
            step_seconds: self.step_seconds,
            step_images: self.step_images,
        };
        let path = self.dir.state();
        state::save(&path, &self.learner, &progress, &candidates)?;
        self.candidates = candidates;
        self.monitor.debug(&format!("saved {} after epoch {epoch}", path.display()));
        Ok(())
    }

    /// Writes adapter/, prompts.safetensors and head.safetensors with the values of `kept`, which are the
    /// learner's. They belong together: all are on the disk before the first gets its name, and each says which
    /// the others are.
    fn save(&mut self, kept: &Candidate, temperature: f64) -> Result<()> {
        let stamp = Stamp::new(kept.epoch, &kept.values, self.weights);
        let stamp = Some(&stamp);
        // Without a head of its own the run keeps the class features in the form of one.
        self.learner.refresh()?;
        let backend = self.learner.backend();
        let head = HeadFile::of(backend, self.learner.head(), self.cache.class_names())?;
        let head = adapter::stage_head(&self.dir.head(), &HeadFile { temperature, ..head }, stamp)?;
        let prompts = self.learner.prompts().zip(self.settings.prompt_spec());
        let prompts = prompts
            .map(|(p, spec)| adapter::stage_prompts(&self.dir.prompts(), backend, p, &spec, stamp))
            .transpose()?;
        if let Some(spec) = self.settings.lora() {
            let mut tensors = adapter::tensors(backend, Tower::Vision, self.learner.lora())?;
            tensors.append(&mut adapter::tensors(backend, Tower::Text, self.learner.text_lora())?);
            let staged = adapter::stage(&self.dir.adapter(), &tensors, &spec, self.model_name, stamp)?;
            staged.into_iter().try_for_each(Staged::persist)?;
        }
        prompts.map_or(Ok(()), Staged::persist)?;
        Ok(head.persist()?)
    }

    /// Tests the best epoch; writes its evaluation and the summary.
    fn finish(mut self, epochs: u32, stopped_early: bool, zero_shot: PlainResult) -> Result<Summary> {
        let Some(kept) = std::mem::take(&mut self.candidates).into_chosen() else {
            return Err(TrainError::InterruptedEarly);
        };
        self.learner.restore(&kept.values)?;
        let (dir, cache) = (self.dir, self.cache);
        let interrupted = || TrainError::Interrupted { epoch: epochs, path: dir.path().to_path_buf() };
        let sums = self.learner.accumulator().keep_logits();
        let sums = self.evaluate(Evaluated::Validation, sums)?.ok_or_else(interrupted)?;
        let temperature = fitted_temperature(&sums, self.learner.classes());
        // The other files again too, in case an earlier attempt was cut off between two of them.
        self.save(&kept, temperature)?;
        let val = sums.with_temperature(temperature);
        let split = if self.test.is_some() { Split::Test } else { Split::Val };
        let sums = match &self.test {
            Some(_) => {
                let sums = self.learner.accumulator().with_temperature(temperature);
                self.evaluate(Evaluated::Test, sums)?.ok_or_else(interrupted)?
            }
            // For what is known of each image.
            None => val.clone(),
        };
        let images = cache.split(split);
        require_numbers(&sums, cache.split(split))?;
        let path = |index| images.path(index).unwrap_or_default().display().to_string();
        let names = cache.class_names();
        let evaluation = sums.evaluation(split.name(), names, path, zero_shot.classes);
        let evened = self.class_weights.is_some() || self.settings.sampler != Sampler::Once;
        let helps =
            if evened { "" } else { ", or --class-weights balanced where there are fewer than of others" };
        if let Some(warning) = balance::never_predicted(split.name(), &evaluation.classes, names, helps) {
            self.monitor.warn(&warning);
        }
        dir.write_evaluation(&evaluation)?;
        let summary = Summary {
            recipe: self.settings.recipe,
            classes: self.learner.classes(),
            trained_parameters: self.learner.trained_elements(),
            epochs,
            best_epoch: kept.epoch,
            stopped_early,
            val: val.finish(),
            test: self.test.is_some().then(|| sums.finish()),
            zero_shot: ZeroShot::of(split, &zero_shot.metrics),
            zero_shot_val: Some(ZeroShot::of(Split::Val, &zero_shot.val)),
            baseline: zero_shot.baseline,
            temperature: Some(Temperature {
                value: temperature,
                before: sums.untempered(),
                after: sums.probabilities(),
                chance: Some(chance_error(&sums.confidences(), 1000, self.settings.seed).into()),
            }),
            seconds: self.seconds,
            images_per_s: self.step_images as f64 / self.step_seconds.max(1e-9),
            text_left_out: self.text_left_out,
            photos: Some(cache.photos().to_owned()),
            device: self.learner.backend().describe(),
            vision: Some(self.vision),
        };
        dir.write_summary(&summary)?;
        Ok(summary)
    }
}

/// What the logits of a validation split are divided by so that their probabilities are those that are found
/// there; 1 where they say nothing.
fn fitted_temperature(val: &Accumulator, classes: usize) -> f64 {
    let Some((logits, labels)) = val.logits() else { return 1.0 };
    // As its file holds it, so that what is tested is what others read.
    f64::from(fit_temperature(logits, classes, &labels, Some(PRIOR)) as f32)
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

/// Adds the values that are there to a record.
fn put(record: &mut Value, values: impl IntoIterator<Item = (&'static str, bool, f64)>) {
    for (name, _, value) in values.into_iter().filter(|(_, there, _)| *there) {
        record[name] = json!(value);
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
        let stats = StepStats::default();
        Step { step: part.step, images: 0, factor: part.factor, stats }
    }

    /// Adds a batch: the losses are means over the images, what the optimizer says is that of the last.
    fn add<B: Backend>(&mut self, part: &Part<B>, stats: &StepStats) {
        self.images += part.images;
        let sums = &mut self.stats;
        sums.add(stats, part.share.of_images);
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
