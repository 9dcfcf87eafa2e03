//! Evaluation of a split: plain CLIP, or what a run has kept.

use super::adapter::{Adapter, HeadFile, load_prompts};
use super::batches::{Inputs, evaluate_split, require_numbers};
use super::learner::{Learner, LearnerSpec};
use super::memory;
use super::metrics::{Accumulator, EvalMetrics, Evaluation};
use super::model::Model;
use super::run_dir::RunDir;
use super::saved_run::{head_of_run, of_one_epoch};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::data::{Cache, DataError, Split};
use crate::objective::Objective;
use crate::progress::Monitor;
use crate::settings::Settings;
use crate::settings::flag;
use crate::tensor::{DType, Tensor};
use crate::tune::{Head, PromptMode, Prompts, Trained};
use std::sync::Arc;

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
    let files = Files { adapter: None, prompts: None, head };
    let of = Of { files, templates, objective: Objective::new(0.0, 1.0), batch };
    Ok(evaluate(backend, model, (cache, split), of, monitor)?.finish())
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
    let of = Of { files, templates, objective, batch };
    let sums = evaluate(backend, model, (cache, split), of, monitor)?;
    let images = cache.split(split);
    let path = |index| images.path(index).unwrap_or_default().display().to_string();
    Ok(sums.evaluation(split.name(), cache.class_names(), path, Vec::new()))
}

/// Trained parts of a run, read from its files.
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

/// Trained parts to evaluate, and the settings that evaluating them takes.
struct Of<'a> {
    files: Files,
    templates: &'a [String],
    objective: Objective,
    /// Images of a batch at the most.
    batch: usize,
}

fn evaluate<B: Backend>(
    backend: B,
    model: Model,
    (cache, split): (&Cache, Split),
    Of { mut files, templates, objective, batch }: Of<'_>,
    monitor: &dyn Monitor,
) -> Result<Accumulator> {
    let view = cache.split(split);
    if view.is_empty() {
        return Err(TrainError::Setting(format!(
            "{}: the data has no {split} images; name another split",
            flag::SPLIT
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
    let (image, dtype) = (cache.image_shape(), cache.dtype());
    let spec = LearnerSpec { trains: false, ..LearnerSpec::new(&backend, batch, image, dtype, objective) };
    memory::check_batch(&backend, &tower, None, &trained, &spec)?;
    let mut learner = Learner::new(backend, Arc::new(tower), trained, &text, &spec)?;
    let sums = learner.accumulator().with_temperature(files.head.temperature);
    let (name, inputs) = (split.to_string(), Inputs::Images(cache.split(split)));
    let sums = evaluate_split(&mut learner, &inputs, batch, &name, sums, monitor)?;
    let sums = sums.ok_or(TrainError::Data(DataError::Interrupted))?;
    require_numbers(&sums, view)?;
    Ok(sums)
}
