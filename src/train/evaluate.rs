//! Evaluation of a split: plain CLIP, a run in progress, or a finished one.

use super::adapter::{Adapter, HeadFile, load_prompts};
use super::learner::{Learner, LearnerSpec};
use super::memory;
use super::metrics::{Accumulator, EvalMetrics, Evaluation};
use super::model::Model;
use super::run_dir::RunDir;
use super::settings::Settings;
use super::stamp::of_one_epoch;
use super::tuned::{head_file_of_run, head_of_run};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::vision::Purpose;
use crate::data::{Cache, DataError, Split, SplitView};
use crate::objective::Objective;
use crate::optim::Adamw;
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor};
use crate::tune::{Head, PromptMode, Prompts, Trained};
use std::sync::Arc;

/// What a split's batches are taken from.
pub(crate) enum Inputs<'a> {
    /// The split's images, which go through the tower.
    Images(SplitView<'a>),
    /// Features \[N, E\] of the images, and their labels.
    Features {
        /// \[N, E\], normalised; a row for each image of the split, in its order.
        values: Arc<Tensor>,
        /// \[N\]
        labels: &'a [u32],
        /// Whether plain CLIP is evaluated on them, and not what is trained.
        plain: bool,
    },
}

impl Inputs<'_> {
    /// The class of every image, in the order of the split.
    pub fn labels(&self) -> &[u32] {
        match self {
            Inputs::Images(split) => split.labels(),
            Inputs::Features { labels, .. } => labels,
        }
    }

    /// Room for batches of these, which are `cache`'s images or their features.
    pub fn staging(&self, cache: &Cache, batch: usize) -> Staging {
        match self {
            Inputs::Images(_) => Staging::new(cache, batch),
            Inputs::Features { values, .. } => Staging::of_features(values, batch),
        }
    }
}

/// A batch on the host: images or features next to each other, and their labels.
pub(crate) struct Staging {
    /// \[n, …\]: the batch that was filled in last; the memory is that of the largest.
    pub inputs: Tensor,
    /// \[n\]
    pub labels: Vec<u32>,
}

impl Staging {
    /// Room for `batch` images of `cache`.
    pub fn new(cache: &Cache, batch: usize) -> Self {
        let inputs = Tensor::zeros(cache.batch_shape(batch), cache.dtype());
        Staging { inputs, labels: Vec::with_capacity(batch) }
    }

    /// Room for the features of `batch` images.
    pub fn of_features(features: &Tensor, batch: usize) -> Self {
        let inputs = Tensor::zeros([batch, features.shape().columns()], features.dtype());
        Staging { inputs, labels: Vec::with_capacity(batch) }
    }

    /// Copies the images, or features, `indices`.
    pub fn fill(&mut self, inputs: &Inputs<'_>, indices: &[usize]) -> Result<()> {
        self.inputs.set_rows(indices.len())?;
        match inputs {
            Inputs::Images(split) => split.gather(indices, &mut self.inputs)?,
            Inputs::Features { values, .. } => {
                let size = values.shape().columns() * values.dtype().size();
                for (row, &index) in self.inputs.bytes_mut().chunks_exact_mut(size).zip(indices) {
                    row.copy_from_slice(values.view().rows(index, 1)?.bytes());
                }
            }
        }
        self.labels.clear();
        self.labels.extend(indices.iter().map(|&i| inputs.labels()[i]));
        Ok(())
    }
}

/// Runs over a split in order and adds it to `sums`; `None` when the user asked to stop.
pub(crate) fn evaluate_split<B: Backend>(
    learner: &mut Learner<B>,
    inputs: &Inputs<'_>,
    staging: &mut Staging,
    batch: usize,
    task: &str,
    mut sums: Accumulator,
    monitor: &dyn Monitor,
) -> Result<Option<Accumulator>> {
    let indices: Vec<usize> = (0..inputs.labels().len()).collect();
    let mut waiting: Option<Waiting<B>> = None;
    monitor.begin(task, indices.len() as u64);
    for indices in indices.chunks(batch) {
        if monitor.stopped() {
            monitor.finish();
            return Ok(None);
        }
        staging.fill(inputs, indices)?;
        match inputs {
            Inputs::Images(_) => learner.evaluate(staging.inputs.view(), &staging.labels)?,
            Inputs::Features { plain: false, .. } => {
                learner.evaluate_head(staging.inputs.view(), &staging.labels)?
            }
            Inputs::Features { plain: true, .. } => {
                learner.evaluate_frozen_head(staging.inputs.view(), &staging.labels)?
            }
        }
        let logits = learner.fetch_logits()?;
        // One batch behind, so that the device works on the next while this one is counted.
        if let Some(previous) = waiting.replace(Waiting { logits, labels: staging.labels.clone() }) {
            previous.count(learner.backend(), &mut sums, monitor)?;
        }
    }
    if let Some(last) = waiting {
        last.count(learner.backend(), &mut sums, monitor)?;
    }
    monitor.finish();
    Ok(Some(sums))
}

/// A batch whose logits are on their way.
struct Waiting<B: Backend> {
    logits: [B::Pending; 2],
    labels: Vec<u32>,
}

impl<B: Backend> Waiting<B> {
    fn count(mut self, backend: &B, sums: &mut Accumulator, monitor: &dyn Monitor) -> Result<()> {
        let [head, text] = &mut self.logits;
        if let (Some(head), Some(text)) = (backend.arrived(head, true)?, backend.arrived(text, true)?) {
            sums.add(&head, &text, &self.labels)?;
        }
        monitor.advance(self.labels.len() as u64);
        Ok(())
    }
}

/// Evaluates plain CLIP: the text results of the metrics are meaningful, there is no head.
pub fn zero_shot<B: Backend>(
    backend: B,
    model: Model,
    cache: &Cache,
    split: Split,
    templates: &[String],
    batch: usize,
    monitor: &dyn Monitor,
) -> Result<EvalMetrics> {
    let (classes, width) = (cache.class_names().len(), model.config.projection);
    let head = HeadFile {
        weight: Tensor::zeros([classes, width], DType::F32),
        bias: Tensor::zeros([classes], DType::F32),
        temperature: 1.0,
        class_names: cache.class_names().to_vec(),
    };
    let objective = Objective::new(0.0, 1.0);
    let files = Files { adapter: None, prompts: None, head };
    Ok(evaluate(backend, model, cache, split, files, templates, objective, batch, monitor)?.finish())
}

/// Evaluates the kept epoch of the run in `dir`; what is said of plain CLIP is left empty.
pub fn evaluate_run<B: Backend>(
    backend: B,
    model: Model,
    cache: &Cache,
    split: Split,
    settings: &Settings,
    dir: &RunDir,
    monitor: &dyn Monitor,
) -> Result<Evaluation> {
    let files = of_one_epoch(dir, settings, || Files::of_run(dir, settings, &model))?;
    files.head.check_classes(&dir.head(), cache.class_names())?;
    let (templates, batch) = (&settings.templates, settings.batch_size);
    let mut objective = settings.objective();
    if dir.read_summary()?.is_some_and(|summary| summary.text_left_out) {
        objective.text = 0.0;
    }
    let sums = evaluate(backend, model, cache, split, files, templates, objective, batch, monitor)?;
    let images = cache.split(split);
    let path = |index| images.path(index).unwrap_or_default().display().to_string();
    Ok(sums.evaluation(split.name(), cache.class_names(), path, Vec::new()))
}

/// The classes of the run in `dir`, in label order.
pub fn class_names_of_run(dir: &RunDir) -> Result<Vec<String>> {
    HeadFile::load_class_names(&head_file_of_run(dir)?)
}

/// Whether the photos of `cache` are known not to be those that the run in `dir` was trained on.
pub fn other_photos(dir: &RunDir, cache: &Cache) -> Result<bool> {
    let known = dir.read_summary()?.and_then(|summary| summary.photos);
    Ok(known.is_some_and(|photos| !photos.is_empty() && photos != cache.photos()))
}

/// What was trained, read from its files.
struct Files {
    adapter: Option<Adapter>,
    prompts: Option<(PromptMode, Tensor)>,
    head: HeadFile,
}

impl Files {
    fn of_run(dir: &RunDir, settings: &Settings, model: &Model) -> Result<Self> {
        let head = head_of_run(dir, model.config.projection)?;
        let adapter = settings.lora().map(|_| Adapter::load(&dir.adapter())).transpose()?;
        let tower = &model.config.vision.tower;
        let prompts = settings
            .prompt_spec()
            .map(|spec| {
                let values = load_prompts(&dir.prompts(), &spec, tower.layers, tower.width)?;
                Ok::<_, TrainError>((spec.mode, values))
            })
            .transpose()?;
        Ok(Files { adapter, prompts, head })
    }
}

#[allow(clippy::too_many_arguments)]
fn evaluate<B: Backend>(
    backend: B,
    model: Model,
    cache: &Cache,
    split: Split,
    mut files: Files,
    templates: &[String],
    objective: Objective,
    batch: usize,
    monitor: &dyn Monitor,
) -> Result<Accumulator> {
    let view = cache.split(split);
    if view.is_empty() {
        return Err(TrainError::Setting(format!(
            "--split: the data has no {split} images; name another split"
        )));
    }
    let batch = batch.min(view.len());
    if let Some(adapter) = &files.adapter {
        adapter.check(&model.config)?;
    }
    let text =
        model.text_classifier(&backend, cache.class_names(), templates, files.adapter.as_mut(), monitor)?;
    let tower = model.vision(&backend)?;
    let lora = match files.adapter {
        Some(mut adapter) => tower.adapters(&backend, &adapter.spec.clone(), &mut adapter)?,
        None => Vec::new(),
    };
    drop(model);
    let prompts =
        files.prompts.map(|(mode, values)| Prompts::new(&backend, mode, values.view())).transpose()?;
    let head = Head::new(&backend, files.head.weight.view(), files.head.bias.view())?;
    let trained = Trained { lora, text_lora: Vec::new(), prompts, head };
    let spec = LearnerSpec {
        batch,
        image: cache.image_shape(),
        image_dtype: cache.dtype(),
        objective,
        mix: None,
        crops_of: None,
        adamw: Adamw::default(),
        purpose: Purpose::Inference,
        scaling: None,
        dropout: None,
        clip: None,
        accumulate: false,
    };
    memory::check_batch(&backend, &tower, None, &trained, &spec)?;
    let mut learner = Learner::new(backend, Arc::new(tower), trained, &text, &spec)?;
    let mut staging = Staging::new(cache, batch);
    let sums = learner.accumulator().with_temperature(files.head.temperature);
    let (name, inputs) = (split.to_string(), Inputs::Images(cache.split(split)));
    let sums = evaluate_split(&mut learner, &inputs, &mut staging, batch, &name, sums, monitor)?;
    let sums = sums.ok_or(TrainError::Data(DataError::Interrupted))?;
    require_numbers(&sums, view)?;
    Ok(sums)
}

/// Refuses results in which the loss of an image is no number.
pub(crate) fn require_numbers(sums: &Accumulator, images: SplitView<'_>) -> Result<()> {
    let Some(index) = sums.not_finite() else { return Ok(()) };
    let path = images.path(index).unwrap_or_default();
    let problem = "the model's logits for it are not numbers; try --precision f32, or check the weights";
    Err(TrainError::file(&path, problem))
}
