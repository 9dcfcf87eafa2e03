//! One model and one set of images on a device, for as many runs as are wanted.

use super::initial::{Towers, learner_spec};
use crate::backend::Backend;
use crate::clip::config::ClipConfig;
use crate::clip::text::{PART, TextClassifier};
use crate::clip::vision::VisionTower;
use crate::data::{Cache, DataError, Split};
use crate::progress::Monitor;
use crate::settings::Key;
use crate::settings::Settings;
use crate::tensor::Tensor;
use crate::train::base_model::BaseModel;
use crate::train::batches::{Behind, Inputs};
use crate::train::learner::{Learner, Which};
use crate::train::memory;
use crate::train::model::{Model, TextTraining};
use crate::train::provenance::WeightsId;
use crate::train::records::Baseline;
use crate::train::{Result, TrainError};
use crate::tune::Tower;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Parts that several runs share: the frozen tower, the class features, the images, and the images' features.
pub struct SharedModel<'a, B: Backend> {
    pub(super) backend: B,
    pub(super) tower: Arc<VisionTower<B>>,
    pub(super) config: ClipConfig,
    pub(super) text: TextClassifier,
    pub(super) text_training: Option<TextTraining<B>>,
    pub(super) cache: &'a Cache,
    /// Larger training images, for augmentation.
    pub(super) enlarged: Option<&'a Cache>,
    /// The model that adapters belong to.
    pub(super) name: BaseModel,
    pub(super) weights: WeightsId,
    templates: Vec<String>,
    features: HashMap<Split, Features>,
    /// The last that was fitted, with the training images and the seed that it is of.
    pub(super) baseline: Option<(Vec<usize>, u64, Option<Baseline>)>,
    /// Whether it was said what images there are.
    pub(super) images_are_said: bool,
}

impl<'a, B: Backend> SharedModel<'a, B> {
    /// Loads the towers of `model`, whose files are let go. The text tower is dropped behind the class features
    /// of `templates`, unless one of `towers` is it: those that runs will train. `enlarged` holds the training
    /// images for runs with augmentation.
    pub fn new(
        backend: B,
        model: Model,
        cache: &'a Cache,
        enlarged: Option<&'a Cache>,
        templates: &[String],
        towers: &[Tower],
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        if let Some(enlarged) = enlarged {
            let ([large, own], train) = ([enlarged, cache], Split::Train);
            if large.split(train).labels() != own.split(train).labels() {
                let text = "the larger training images are others than the training images; the photos changed \
                            while they were prepared, start again";
                return Err(TrainError::Setting(format!("{}: {text}", Key::augment)));
            }
        }
        let names = cache.class_names();
        let text = model.text_classifier(&backend, names, templates, None, monitor)?;
        let text_training = match towers.contains(&Tower::Text) {
            true => Some(model.text_training(&backend, names, templates)?),
            false => None,
        };
        let tower = Arc::new(model.vision(&backend)?);
        Ok(SharedModel {
            backend,
            tower,
            config: model.config.clone(),
            text,
            text_training,
            cache,
            enlarged,
            name: model.base.clone(),
            weights: model.weights_id()?,
            templates: templates.to_vec(),
            features: HashMap::new(),
            baseline: None,
            images_are_said: false,
        })
    }

    /// The device that the towers are on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The images that runs are trained and evaluated on.
    pub fn cache(&self) -> &'a Cache {
        self.cache
    }

    /// Refuses templates that the class features are not of.
    pub(super) fn check_templates(&self, templates: &[String]) -> Result<()> {
        if templates == self.templates {
            return Ok(());
        }
        let text = "differs between runs of one model; compare runs of the same templates";
        Err(TrainError::Setting(format!("{}: {text}", Key::templates)))
    }

    /// A learner at the start of a run; that of a run to resume gets its values later.
    pub(super) fn learner(&self, settings: &Settings, batch: usize, resume: bool) -> Result<Learner<B>> {
        let (backend, tower, names) = (&self.backend, &self.tower, self.cache.class_names());
        let from = settings.init_from.as_deref().filter(|_| !resume);
        let text_tower = self.text_training.as_ref().map(|text| &*text.tower);
        let towers = Towers { backend, vision: tower, text: text_tower, config: &self.config };
        let trained = towers.trained_parts(settings, from, names, &self.text)?;
        let image = (self.cache.image_shape(), self.cache.dtype());
        let crops_of = self.augmented(settings)?.map(|images| images.preprocess().image_size());
        let spec = learner_spec(backend, settings, batch, image, crops_of);
        memory::check_batch(backend, tower, self.text_training.as_ref(), &trained, &spec)?;
        let trains_text = !trained.text_lora.is_empty();
        let learner = Learner::new(backend.clone(), tower.clone(), trained, &self.text, &spec)?;
        Ok(match &self.text_training {
            Some(text) if trains_text => learner.with_text_tower(text.tower.clone(), &text.prompts, PART)?,
            _ => learner,
        })
    }

    /// Normalised features of plain CLIP \[N, E\] in the parameter dtype, for the images of a split in their
    /// order; computed by `learner` the first time they are asked for, `batch` images at a time.
    ///
    /// # Errors
    /// [`DataError::Interrupted`] once `monitor` says stop.
    pub(super) fn features(
        &mut self,
        learner: &mut Learner<B>,
        split: Split,
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<&Features> {
        if !self.features.contains_key(&split) {
            let features = self.compute_features(learner, split, batch, monitor)?;
            self.features.insert(split, features);
        }
        // It is there now.
        Ok(&self.features[&split])
    }

    fn compute_features(
        &self,
        learner: &mut Learner<B>,
        split: Split,
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<Features> {
        let started = Instant::now();
        let images = self.cache.split(split);
        let count = images.len();
        let (width, dtype) = (self.tower.features(), self.backend.parameter_dtype());
        let mut bytes = Vec::with_capacity(count * width * dtype.size());
        let mut keep = |mut features: B::Pending| -> Result<()> {
            if let Some(features) = self.backend.arrived(&mut features, true)? {
                bytes.extend_from_slice(features.bytes());
                monitor.advance(features.shape().rows() as u64);
            }
            Ok(())
        };
        let mut waiting = Behind::new();
        let indices: Vec<usize> = (0..count).collect();
        let inputs = Inputs::Images(images);
        monitor.begin(&format!("features {split}"), count as u64);
        for chunk in indices.chunks(batch) {
            if monitor.stopped() {
                monitor.finish();
                return Err(DataError::Interrupted.into());
            }
            let host = inputs.batch(chunk)?;
            learner.evaluate(host.input()?, &host.labels, Which::Frozen)?;
            waiting.push(learner.fetch_features()?).map_or(Ok(()), &mut keep)?;
        }
        waiting.rest().try_for_each(keep)?;
        monitor.finish();
        let mut values = Tensor::zeros([count, width], dtype);
        values.bytes_mut().copy_from_slice(&bytes);
        Ok(Features { values: Arc::new(values), seconds: started.elapsed().as_secs_f64() })
    }
}

/// Plain CLIP's features of a split.
pub(super) struct Features {
    /// \[N, E\]
    pub values: Arc<Tensor>,
    /// Wall-clock time of computing them.
    pub seconds: f64,
}
