//! One training run, from the settings to the tested best epoch.

use super::adapter::{self, Adapter, HeadFile};
use super::evaluate::{Staging, Subject, evaluate_split};
use super::learner::{Learner, LearnerSpec, PendingStats, StepStats, TextClassifier, loss_scaling};
use super::memory;
use super::metrics::EvalMetrics;
use super::model::Model;
use super::run_dir::{MetricsFile, RunDir};
use super::settings::{HeadInit, Settings};
use super::state::{self, Best, Progress};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::vision::{Purpose, VisionTower};
use crate::data::{Cache, Split};
use crate::optim::{Adamw, EarlyStop, Schedule};
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor};
use crate::tune::{BlockLora, Head, head::initial_head, lora::KaimingInit};
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
    pub recipe: super::settings::Recipe,
    pub classes: usize,
    pub trained_parameters: usize,
    /// Epochs that ran, and the one that was kept.
    pub epochs: u32,
    pub best_epoch: u32,
    pub stopped_early: bool,
    /// The kept epoch on the validation split, and on the test split where there is one.
    pub val: EvalMetrics,
    pub test: Option<EvalMetrics>,
    /// Plain CLIP on the test split, or on the validation split where there is no test split: its text
    /// logits are the result, its head is untrained.
    pub zero_shot: ZeroShot,
    /// Wall-clock time of training and validation.
    pub seconds: f64,
    /// Images per second of the training steps alone.
    pub images_per_s: f64,
    pub device: String,
}

/// Plain CLIP's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ZeroShot {
    pub split: String,
    pub images: usize,
    pub loss: f64,
    pub top1: f64,
    pub top5: f64,
}

/// Everything one run works with.
pub struct Run<'a, B: Backend> {
    settings: &'a Settings,
    cache: &'a Cache,
    dir: &'a RunDir,
    model_name: String,
    monitor: &'a dyn Monitor,
    learner: Learner<B>,
    staging: Staging,
    schedule: Schedule,
    early_stop: Option<EarlyStop>,
    metrics: MetricsFile,
    /// Seconds of training and validation, and of training steps alone with their images.
    seconds: f64,
    step_seconds: f64,
    step_images: usize,
}

/// Trains and tests. `resume` continues the run that `dir` holds. The model's weights are let go before
/// the first step.
pub fn train<B: Backend>(
    backend: B,
    model: Model,
    cache: &Cache,
    settings: &Settings,
    dir: &RunDir,
    resume: bool,
    monitor: &dyn Monitor,
) -> Result<Summary> {
    for split in [Split::Train, Split::Val] {
        if cache.split(split).is_empty() {
            let data = settings.data.clone().unwrap_or_default();
            return Err(TrainError::file(&data, format!("the {split} split has no images; add some")));
        }
    }
    let names = cache.class_names();
    let text = model.text_classifier(&backend, names, &settings.templates, monitor)?;
    let tower = model.vision(&backend)?;
    let (lora, head) = trained_parts(&backend, &tower, settings, names, &text)?;
    // No batch is larger than the largest split.
    let largest = Split::ALL.map(|split| cache.split(split).len()).into_iter().max().unwrap_or(1);
    let batch = settings.batch_size.min(largest);
    let spec = LearnerSpec {
        batch,
        image: cache.image_shape(),
        image_dtype: cache.dtype(),
        objective: settings.objective(),
        adamw: Adamw::default(),
        purpose: if lora.is_empty() { Purpose::Inference } else { Purpose::Training },
        scaling: loss_scaling(&backend),
    };
    memory::check_batch(&backend, &tower, &lora, names.len(), &spec)?;
    let model_name = model.name.clone();
    drop(model);
    let mut learner = Learner::new(backend, tower, lora, head, &text, &spec)?;
    let (progress, best) = if resume {
        let path = dir.state();
        if !path.is_file() {
            let problem = "no saved state: the run ended before its first epoch did".into();
            return Err(TrainError::Resume { path, problem });
        }
        let (progress, values) = state::load(&path, &mut learner)?;
        if progress.class_names != names || progress.data != cache.fingerprint() {
            let problem = "the photos or classes are not those that the run began with".into();
            return Err(TrainError::Resume { path, problem });
        }
        dir.write_settings(settings)?;
        let best = Best { epoch: progress.best_epoch, val: progress.best_val.clone(), values };
        (Some(progress), Some(best))
    } else {
        dir.begin(settings)?;
        (None, None)
    };
    let steps_per_epoch = cache.split(Split::Train).len().div_ceil(settings.batch_size) as u64;
    let mut early_stop = settings.early_stop_spec().map(EarlyStop::new);
    if let (Some(stop), Some(progress)) = (&mut early_stop, &progress) {
        (stop.reference, stop.stale) = (progress.early_stop_reference, progress.early_stop_stale);
    }
    let run = Run {
        settings,
        cache,
        dir,
        model_name,
        monitor,
        learner,
        staging: Staging::new(cache, batch),
        schedule: Schedule {
            kind: settings.schedule,
            warmup: settings.warmup,
            total: steps_per_epoch * u64::from(settings.epochs),
        },
        early_stop,
        metrics: MetricsFile::open(&dir.metrics(), progress.as_ref().map_or(0, |p| p.metrics_bytes))?,
        seconds: progress.as_ref().map_or(0.0, |p| p.seconds),
        step_seconds: progress.as_ref().map_or(0.0, |p| p.step_seconds),
        step_images: progress.as_ref().map_or(0, |p| p.step_images),
    };
    run.epochs(progress, best)
}

/// Adapters and head as the run starts with them.
fn trained_parts<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    settings: &Settings,
    class_names: &[String],
    text: &TextClassifier,
) -> Result<(Vec<BlockLora<B>>, Head<B>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let (weight, bias) = initial_head(class_names.len(), tower.features(), &mut rng);
    let mut head = match settings.head_init {
        HeadInit::Random => Head::new(backend, weight.view(), bias.view())?,
        HeadInit::Text => {
            let zero = Tensor::zeros([class_names.len()], DType::F32);
            Head::new(backend, text.features.view(), zero.view())?
        }
    };
    let mut lora = match settings.lora() {
        Some(spec) => {
            let mut init = KaimingInit { rank: spec.rank, rng: &mut rng };
            tower.adapters(backend, &spec, &mut init)?
        }
        None => Vec::new(),
    };
    if let Some(from) = &settings.init_from {
        (lora, head) = initial_parts_from(backend, tower, settings, class_names, from, lora, head)?;
    }
    Ok((lora, head))
}

/// Replaces what `from` has files for.
fn initial_parts_from<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    settings: &Settings,
    class_names: &[String],
    from: &Path,
    mut lora: Vec<BlockLora<B>>,
    mut head: Head<B>,
) -> Result<(Vec<BlockLora<B>>, Head<B>)> {
    let (adapter_dir, head_path) = (from.join("adapter"), from.join("head.safetensors"));
    if !adapter_dir.is_dir() && !head_path.is_file() {
        return Err(TrainError::file(
            from,
            "neither adapter/ nor head.safetensors is here; check --init-from",
        ));
    }
    if adapter_dir.is_dir() && settings.lora().is_none() {
        return Err(TrainError::Setting(format!(
            "--init-from: {} has an adapter, which --method linear leaves out; use --method lora",
            from.display()
        )));
    }
    if let (true, Some(spec)) = (adapter_dir.is_dir(), settings.lora()) {
        let mut adapter = Adapter::load(&adapter_dir)?;
        let mut wanted = spec.clone();
        wanted.targets.sort_unstable();
        if adapter.spec != wanted {
            let found = &adapter.spec;
            return Err(TrainError::file(
                &adapter_dir,
                format!(
                    "rank {} alpha {} targets {:?} differ from the run's; set --rank, --alpha and --targets to these",
                    found.rank,
                    found.alpha,
                    found.targets.iter().map(|t| t.name()).collect::<Vec<_>>()
                ),
            ));
        }
        adapter.check(tower.config().tower.layers, tower.config().tower.width)?;
        lora = tower.adapters(backend, &spec, &mut adapter)?;
    }
    if head_path.is_file() {
        let file = HeadFile::load(&head_path, tower.features())?;
        file.check_classes(&head_path, class_names)?;
        head = Head::new(backend, file.weight.view(), file.bias.view())?;
    }
    Ok((lora, head))
}

impl<B: Backend> Run<'_, B> {
    fn epochs(mut self, progress: Option<Progress>, mut best: Option<Best>) -> Result<Summary> {
        let zero_shot = match progress.as_ref().and_then(|p| p.zero_shot.clone()) {
            Some(metrics) => metrics,
            None => {
                let metrics = self.evaluate(self.result_split(), Subject::Frozen)?;
                metrics.ok_or(TrainError::InterruptedEarly)?
            }
        };
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
                Some(_) => self.evaluate(Split::Val, Subject::Tuned)?,
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
                return Err(TrainError::NotFinite { step, epoch, loss: val.loss });
            }
            self.seconds += started.elapsed().as_secs_f64();
            stopped = self.early_stop.as_mut().is_some_and(|stop| stop.update(val.loss));
            self.end_epoch(epoch, &train, val, stopped, &zero_shot, &mut best)?;
            last = epoch;
        }
        self.finish(last, stopped, zero_shot, best)
    }

    /// Where the final result is measured.
    fn result_split(&self) -> Split {
        if self.cache.split(Split::Test).is_empty() { Split::Val } else { Split::Test }
    }

    /// One pass over the training images; `None` when the user asked to stop. Steps are handed to the
    /// device ahead of their results, which are written down as they arrive.
    fn train_epoch(&mut self, epoch: u32) -> Result<Option<StepStats>> {
        let order = self.order(epoch);
        let cache = self.cache;
        let split = cache.split(Split::Train);
        let (rates, of) = (self.settings.rates(), self.settings.epochs);
        let mut sums = EpochSums::default();
        let mut waiting = VecDeque::new();
        let mut clock = Instant::now();
        self.monitor.begin(&format!("epoch {epoch}/{of}"), order.len() as u64);
        for indices in order.chunks(self.settings.batch_size) {
            if self.monitor.stopped() {
                self.monitor.finish();
                return Ok(None);
            }
            self.staging.fill(&split, indices)?;
            let factor = self.schedule.factor(self.learner.steps());
            let (images, labels) = (self.staging.images.view(), &self.staging.labels);
            self.learner.train_step(images, labels, &rates, factor)?;
            let (step, images, stats) = (self.learner.steps(), indices.len(), self.learner.fetch_stats()?);
            waiting.push_back(Step { step, images, factor, stats });
            let wait = waiting.len() > STEPS_AHEAD;
            self.write_steps(epoch, &mut waiting, wait, &mut sums, &mut clock)?;
        }
        while !waiting.is_empty() {
            self.write_steps(epoch, &mut waiting, true, &mut sums, &mut clock)?;
        }
        self.monitor.finish();
        Ok(Some(sums.mean()))
    }

    /// Writes down the steps whose numbers have arrived, oldest first; `wait` for the first of them.
    fn write_steps(
        &mut self,
        epoch: u32,
        waiting: &mut VecDeque<Step<B>>,
        mut wait: bool,
        sums: &mut EpochSums,
        clock: &mut Instant,
    ) -> Result<()> {
        while let Some(oldest) = waiting.front_mut() {
            let Some(stats) = oldest.stats.arrived(self.learner.backend(), wait)? else { break };
            let Some(step) = waiting.pop_front() else { break };
            wait = false;
            let seconds = clock.elapsed().as_secs_f64();
            *clock = Instant::now();
            self.write_step(epoch, &step, &stats, seconds)?;
            sums.add(&stats, step.images);
            self.monitor.advance(step.images as u64);
            let mean = sums.mean();
            self.monitor.state(&format!(
                "loss {:.4}  accuracy {:.1} %  {:.0} images/s",
                mean.loss,
                100.0 * mean.correct as f64 / sums.images.max(1) as f64,
                self.step_images as f64 / self.step_seconds.max(1e-9),
            ));
        }
        Ok(())
    }

    /// One line of metrics; `seconds` since the step before was done.
    fn write_step(&mut self, epoch: u32, step: &Step<B>, stats: &StepStats, seconds: f64) -> Result<()> {
        let finite = stats.loss.is_finite() && stats.grad_norm.is_finite();
        let scaled_down = stats.skipped && stats.loss_scale >= SMALLEST_LOSS_SCALE;
        if !finite && !scaled_down {
            self.monitor.finish();
            return Err(TrainError::NotFinite { step: step.step, epoch, loss: stats.loss });
        }
        self.step_seconds += seconds;
        self.step_images += step.images;
        let rates = self.settings.rates();
        self.metrics.append(&json!({
            "type": "step", "step": step.step, "epoch": epoch,
            "loss": stats.loss, "loss_head": stats.loss_head, "loss_text": stats.loss_text,
            "lr": rates.head.learning_rate * step.factor, "lr_lora": rates.lora.learning_rate * step.factor,
            "loss_scale": stats.loss_scale, "skipped": stats.skipped, "grad_norm": stats.grad_norm,
            "images_per_s": step.images as f64 / seconds,
        }))
    }

    /// The training images in this epoch's order, which depends on the seed and the epoch alone.
    fn order(&self, epoch: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.cache.split(Split::Train).len()).collect();
        if self.settings.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.settings.seed);
            rng.set_stream(u64::from(epoch));
            order.shuffle(&mut rng);
        }
        order
    }

    /// Evaluates a split; `None` when the user asked to stop.
    fn evaluate(&mut self, split: Split, subject: Subject) -> Result<Option<EvalMetrics>> {
        let task = if subject == Subject::Frozen { format!("zero-shot {split}") } else { split.to_string() };
        let (view, batch) = (self.cache.split(split), self.settings.batch_size);
        let staging = &mut self.staging;
        evaluate_split(&mut self.learner, &view, subject, staging, batch, &task, self.monitor)
    }

    /// Writes metrics, the best epoch's files and the state.
    fn end_epoch(
        &mut self,
        epoch: u32,
        train: &StepStats,
        val: EvalMetrics,
        stopped: bool,
        zero_shot: &EvalMetrics,
        best: &mut Option<Best>,
    ) -> Result<()> {
        let images = self.cache.split(Split::Train).len() as f64;
        let top1 = train.correct as f64 / images;
        self.metrics.append(&json!({
            "type": "epoch", "epoch": epoch,
            "train": {
                "loss": train.loss, "loss_head": train.loss_head, "loss_text": train.loss_text,
                "top1": top1, "text_top1": train.text_correct as f64 / images,
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
            self.save_best()?;
            *best = Some(Best { epoch, val, values: self.learner.snapshot()? });
        }
        let Some(best) = best else { return Ok(()) };
        let progress = Progress {
            class_names: self.cache.class_names().to_vec(),
            data: self.cache.fingerprint().to_string(),
            epoch,
            steps: self.learner.steps(),
            stopped,
            early_stop_reference: self.early_stop.and_then(|stop| stop.reference),
            early_stop_stale: self.early_stop.map_or(0, |stop| stop.stale),
            best_epoch: best.epoch,
            best_val: best.val.clone(),
            zero_shot: Some(zero_shot.clone()),
            metrics_bytes: self.metrics.sync()?,
            seconds: self.seconds,
            step_seconds: self.step_seconds,
            step_images: self.step_images,
        };
        state::save(&self.dir.state(), &self.learner, &progress, &best.values)
    }

    /// Writes adapter/ and head.safetensors as they are now. They belong together: all are on the disk
    /// before the first gets its name.
    fn save_best(&self) -> Result<()> {
        let backend = self.learner.backend();
        let (weight, bias) = adapter::head_tensors(backend, self.learner.head())?;
        let head = adapter::stage_head(&self.dir.head(), weight, bias, self.cache.class_names())?;
        if let Some(spec) = self.settings.lora() {
            let tensors = adapter::tensors(backend, self.learner.lora())?;
            let staged = adapter::stage(&self.dir.adapter(), &tensors, &spec, &self.model_name)?;
            staged.into_iter().try_for_each(|file| file.persist())?;
        }
        head.persist()
    }

    /// Tests the best epoch and writes the summary.
    fn finish(
        mut self,
        epochs: u32,
        stopped_early: bool,
        zero_shot: EvalMetrics,
        best: Option<Best>,
    ) -> Result<Summary> {
        let Some(best) = best else { return Err(TrainError::InterruptedEarly) };
        self.learner.restore(&best.values)?;
        // Again, in case an earlier attempt was cut off between two of the files.
        self.save_best()?;
        let split = self.result_split();
        let test = if split == Split::Test {
            let metrics = self.evaluate(Split::Test, Subject::Tuned)?;
            let path = self.dir.path().to_path_buf();
            Some(metrics.ok_or(TrainError::Interrupted { epoch: epochs, path })?)
        } else {
            None
        };
        let summary = Summary {
            recipe: self.settings.recipe,
            classes: self.learner.classes(),
            trained_parameters: self.learner.trained_elements(),
            epochs,
            best_epoch: best.epoch,
            stopped_early,
            val: best.val,
            test,
            zero_shot: ZeroShot {
                split: split.to_string(),
                images: zero_shot.images,
                loss: zero_shot.loss_text,
                top1: zero_shot.text_top1,
                top5: zero_shot.text_top5,
            },
            seconds: self.seconds,
            images_per_s: self.step_images as f64 / self.step_seconds.max(1e-9),
            device: self.learner.backend().describe(),
        };
        self.dir.write_summary(&summary)?;
        Ok(summary)
    }
}

/// Steps that are handed to the device before the host waits for the results of the first.
const STEPS_AHEAD: usize = 64;

/// When overflows have pushed the loss scale below this, the model itself is at fault.
const SMALLEST_LOSS_SCALE: f64 = 1.0 / 1024.0;

/// A step on the device.
struct Step<B: Backend> {
    step: u64,
    images: usize,
    /// The schedule's.
    factor: f64,
    stats: PendingStats<B>,
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
    correct: u64,
    text_correct: u64,
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
            correct: self.correct,
            text_correct: self.text_correct,
            grad_norm: f64::NAN,
            loss_scale: f64::NAN,
            skipped: false,
        }
    }
}
