//! Evaluation of a split: plain CLIP, a run in progress, or a finished one.

use super::adapter::{Adapter, HeadFile};
use super::learner::{Learner, LearnerSpec};
use super::memory;
use super::metrics::{Accumulator, EvalMetrics};
use super::model::Model;
use super::run_dir::RunDir;
use super::settings::{Method, Settings};
use super::{Result, TrainError};
use crate::backend::{Backend, DeviceTensor};
use crate::clip::vision::Purpose;
use crate::data::{Cache, DataError, Split, SplitView};
use crate::objective::Objective;
use crate::optim::Adamw;
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor};
use crate::tune::Head;

/// A batch on the host: images next to each other, and their labels.
pub struct Staging {
    pub images: Tensor,
    pub labels: Vec<u32>,
}

impl Staging {
    /// Room for `batch` images of `cache`.
    pub fn new(cache: &Cache, batch: usize) -> Self {
        let images = Tensor::zeros(cache.batch_shape(batch), cache.dtype());
        Staging { images, labels: Vec::with_capacity(batch) }
    }

    /// Copies the images `indices` of `split`.
    pub fn fill(&mut self, split: &SplitView<'_>, indices: &[usize]) -> Result<()> {
        self.images.set_rows(indices.len())?;
        split.gather(indices, &mut self.images)?;
        self.labels.clear();
        self.labels.extend(indices.iter().map(|&i| split.labels()[i]));
        Ok(())
    }
}

/// What is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The tower with its adapters folded in, and the head.
    Tuned,
    /// The tower as it was before training.
    Frozen,
}

/// Runs over a split in order; `None` when the user asked to stop.
pub fn evaluate_split<B: Backend>(
    learner: &mut Learner<B>,
    split: &SplitView<'_>,
    subject: Subject,
    staging: &mut Staging,
    batch: usize,
    task: &str,
    monitor: &dyn Monitor,
) -> Result<Option<EvalMetrics>> {
    let mut sums = Accumulator::new(learner.classes(), learner.objective());
    let indices: Vec<usize> = (0..split.len()).collect();
    let mut waiting: Option<Waiting<B>> = None;
    monitor.begin(task, split.len() as u64);
    for indices in indices.chunks(batch) {
        if monitor.stopped() {
            monitor.finish();
            return Ok(None);
        }
        staging.fill(split, indices)?;
        match subject {
            Subject::Tuned => learner.evaluate(staging.images.view(), &staging.labels)?,
            Subject::Frozen => learner.evaluate_frozen(staging.images.view(), &staging.labels)?,
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
    Ok(Some(sums.finish()))
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
        class_names: cache.class_names().to_vec(),
    };
    let objective = Objective { head: 0.0, text: 1.0 };
    evaluate(backend, model, cache, split, None, head, templates, objective, batch, monitor)
}

/// Evaluates the kept epoch of the run in `dir`.
pub fn evaluate_run<B: Backend>(
    backend: B,
    model: Model,
    cache: &Cache,
    split: Split,
    settings: &Settings,
    dir: &RunDir,
    monitor: &dyn Monitor,
) -> Result<EvalMetrics> {
    if !dir.head().is_file() {
        let problem = "no head.safetensors here; the run ended before its first epoch did";
        return Err(TrainError::file(dir.path(), problem));
    }
    let head = HeadFile::load(&dir.head(), model.config.projection)?;
    head.check_classes(&dir.head(), cache.class_names())?;
    let adapter = match settings.method {
        Method::Lora => Some(Adapter::load(&dir.adapter())?),
        Method::Linear => None,
    };
    let (templates, batch) = (&settings.templates, settings.batch_size);
    let objective = settings.objective();
    evaluate(backend, model, cache, split, adapter, head, templates, objective, batch, monitor)
}

#[allow(clippy::too_many_arguments)]
fn evaluate<B: Backend>(
    backend: B,
    model: Model,
    cache: &Cache,
    split: Split,
    adapter: Option<Adapter>,
    head: HeadFile,
    templates: &[String],
    objective: Objective,
    batch: usize,
    monitor: &dyn Monitor,
) -> Result<EvalMetrics> {
    let view = cache.split(split);
    if view.is_empty() {
        return Err(TrainError::Setting(format!(
            "--split: the data has no {split} images; name another split"
        )));
    }
    let batch = batch.min(view.len());
    let text = model.text_classifier(&backend, cache.class_names(), templates, monitor)?;
    let tower = model.vision(&backend)?;
    let lora = match adapter {
        Some(mut adapter) => {
            adapter.check(tower.config().tower.layers, tower.config().tower.width)?;
            tower.adapters(&backend, &adapter.spec.clone(), &mut adapter)?
        }
        None => Vec::new(),
    };
    drop(model);
    let head = Head::new(&backend, head.weight.view(), head.bias.view())?;
    let spec = LearnerSpec {
        batch,
        image: cache.image_shape(),
        image_dtype: cache.dtype(),
        objective,
        adamw: Adamw::default(),
        purpose: Purpose::Inference,
        scaling: None,
    };
    memory::check_batch(&backend, &tower, &lora, head.bias.value.shape().rows(), &spec)?;
    let mut learner = Learner::new(backend, tower, lora, head, &text, &spec)?;
    let mut staging = Staging::new(cache, batch);
    let name = split.to_string();
    evaluate_split(&mut learner, &view, Subject::Tuned, &mut staging, batch, &name, monitor)?
        .ok_or(TrainError::Data(DataError::Interrupted))
}
