//! What a run would do, found out without doing it: `engine train --dry-run`.
//!
//! Everything comes from the functions that a run itself uses; nothing is written.

use super::memory::{Estimate, allocated_by, check_batch};
use super::model::Model;
use super::run::initial::{Towers, learner_spec};
use super::run::ladder::Passes;
use super::work::Counted;
use super::{Result, TrainError};
use crate::backend::{Backend, DeviceTensor};
use crate::clip::text::TextClassifier;
use crate::clip::weights::expected_tensors;
use crate::data::{Cache, Dataset, Split, few_shot, larger_side};
use crate::settings::{Augment, CacheType, Settings};
use crate::tensor::{DType, Shape, Tensor};
use crate::tune::{Group, Tower, Trained};

/// The images of a run as far as they are known before they are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// In label order.
    pub class_names: Vec<String>,
    /// Label of every image, split by split in the order of [`Split::ALL`].
    labels: [Vec<u32>; 3],
}

impl Images {
    /// Takes the photos that were found; one that cannot be decoded is still among them.
    pub fn of_dataset(source: &Dataset) -> Self {
        let labels = |split| source.split(split).iter().map(|item| item.label).collect();
        Images { class_names: source.class_names.clone(), labels: Split::ALL.map(labels) }
    }

    /// Takes the images of a cache, which are decoded already.
    pub fn of_cache(cache: &Cache) -> Self {
        let labels = |split| cache.split(split).labels().to_vec();
        Images { class_names: cache.class_names().to_vec(), labels: Split::ALL.map(labels) }
    }

    /// Images of a split.
    pub fn count(&self, split: Split) -> usize {
        self.labels[split as usize].len()
    }
}

/// Plan of a run: what it trains, the memory it takes, and the operations it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Trained parameters of each group that there is.
    pub trained: Vec<(Group, usize)>,
    /// Parameters of the checkpoint, which stay as they are: vision tower, text tower.
    pub frozen: [usize; 2],
    /// Training images that take part.
    pub images: usize,
    /// Images of a batch at the most.
    pub batch: usize,
    /// Steps of an epoch.
    pub steps: usize,
    /// Bytes of the towers' weights, the text tower's where it is trained, with what is trained and its optimizer
    /// state.
    pub weights: usize,
    /// Bytes for the work on a batch.
    pub work: usize,
    /// Bytes that the device has left for it; none where the system does not say.
    pub free: Option<usize>,
    /// Floating-point operations of a full step.
    pub step_flops: f64,
    /// Floating-point operations of an epoch's training and validation.
    pub epoch_flops: f64,
    /// Floating-point operations of a ladder besides the epochs: of plain features, of finding the learning rate and of
    /// what lies between head and adapters; none where there is no ladder.
    pub ladder_flops: Option<f64>,
}

impl Plan {
    /// Works out what a run of `settings` on `images` would do.
    ///
    /// # Errors
    /// Anything that would end the run before its first step, as far as it shows without the photos' contents.
    pub fn of<B: Backend>(backend: &B, model: &Model, images: &Images, settings: &Settings) -> Result<Plan> {
        settings.validate()?;
        let chosen = chosen(images, settings)?;
        let batch = settings.largest_batch(|split| images.count(split));
        let (tower, tower_bytes) = allocated_by(backend, || model.vision(backend))?;
        let names = &images.class_names;
        // What they are does not matter here, and finding out takes a pass through the text tower.
        let features = Tensor::zeros([names.len(), tower.features()], DType::F32);
        let text = TextClassifier { features, scale: 1.0 };
        let (text_training, text_bytes) = match settings.trained_towers().contains(&Tower::Text) {
            true => {
                let load = || model.text_training(backend, names, &settings.templates).map(Some);
                allocated_by(backend, load)?
            }
            false => (None, 0),
        };
        let text_tower = text_training.as_ref().map(|text| &*text.tower);
        let towers = Towers { backend, vision: &tower, text: text_tower, config: &model.config };
        let from = settings.init_from.as_deref();
        let (trained, trained_bytes) =
            allocated_by(backend, || towers.trained_parts(settings, from, names, &text))?;
        let side = model.preprocess.image_size();
        let shape: Shape = match settings.dtype {
            CacheType::U8 => [side, side, 3].into(),
            CacheType::F16 | CacheType::F32 => [3, side, side].into(),
        };
        let crops_of = (settings.augment != Augment::Off).then(|| larger_side(side));
        let spec = learner_spec(backend, settings, batch, (shape, settings.dtype.into()), crops_of);
        check_batch(backend, &tower, text_training.as_ref(), &trained, &spec)?;
        let prompts = text_training.as_ref().map(|text| &text.prompts);
        let mut counted = Counted::new(backend, model, settings, (names, &text), prompts, &spec)?;
        let Work { step, epoch, ladder } = work(&mut counted, images, settings, chosen)?;
        Ok(Plan {
            trained: groups(&trained),
            frozen: frozen(model),
            images: chosen,
            batch,
            steps: chosen.div_ceil(settings.batch_size).div_ceil(settings.accumulate),
            weights: tower_bytes + text_bytes + trained_bytes,
            work: Estimate::of(backend, &tower, text_training.as_ref(), &trained, &spec)?.of_batch(batch),
            free: backend.memory()?.map(|memory| memory.free),
            step_flops: step,
            epoch_flops: epoch,
            ladder_flops: ladder,
        })
    }

    /// Trained parameters of all groups.
    pub fn trained_parameters(&self) -> usize {
        self.trained.iter().map(|(_, count)| count).sum()
    }
}

/// How many training images take part.
fn chosen(images: &Images, settings: &Settings) -> Result<usize> {
    for split in [Split::Train, Split::Val] {
        if images.count(split) == 0 {
            let data = settings.data.clone().unwrap_or_default();
            return Err(TrainError::file(&data, format!("the {split} split has no images; add some")));
        }
    }
    let labels = &images.labels[Split::Train as usize];
    Ok(match settings.shots {
        Some(shots) => few_shot(labels, &images.class_names, shots, settings.seed)?.len(),
        None => labels.len(),
    })
}

fn groups<B: Backend>(trained: &Trained<B>) -> Vec<(Group, usize)> {
    let mut groups: Vec<(Group, usize)> = Vec::new();
    for param in trained.params() {
        let count = param.value.shape().elements();
        match groups.iter_mut().find(|(group, _)| *group == param.group) {
            Some((_, sum)) => *sum += count,
            None => groups.push((param.group, count)),
        }
    }
    groups
}

fn frozen(model: &Model) -> [usize; 2] {
    let mut counts = [0; 2];
    for (name, shape) in expected_tensors(&model.config) {
        counts[usize::from(!name.starts_with("vis"))] += shape.elements();
    }
    counts
}

/// Floating-point operations.
struct Work {
    step: f64,
    epoch: f64,
    ladder: Option<f64>,
}

/// Operations of a full step on the `chosen` images, of an epoch, and of a ladder.
fn work(counted: &mut Counted, images: &Images, settings: &Settings, chosen: usize) -> Result<Work> {
    let batch = settings.batch_size;
    let step = in_batches(chosen.min(batch * settings.accumulate), batch, |images| counted.train(images))?;
    let epoch = in_batches(chosen, batch, |images| counted.train(images))?;
    let all_of_val =
        counted.refresh()? + in_batches(images.count(Split::Val), batch, |images| counted.evaluate(images))?;
    let ladder = match settings.climbs() {
        true => {
            let passes = Passes::of(settings);
            let views = in_batches(chosen, batch, |images| counted.embed(images))? * passes.views as f64;
            Some(views + epoch * f64::from(passes.look_epochs) + all_of_val * passes.of_val as f64)
        }
        false => None,
    };
    Ok(Work { step, epoch: epoch + all_of_val, ladder })
}

/// The sum of `of` over batches of `batch` that `images` make up.
fn in_batches(images: usize, batch: usize, mut of: impl FnMut(usize) -> Result<f64>) -> Result<f64> {
    let of_full = if images >= batch { of(batch)? * (images / batch) as f64 } else { 0.0 };
    let rest = images % batch;
    Ok(of_full + if rest > 0 { of(rest)? } else { 0.0 })
}
