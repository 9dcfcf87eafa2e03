//! One model and one set of images on a device, for as many runs as are wanted.

use super::learner::TextClassifier;
use super::model::Model;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::block::FoldedBlock;
use crate::clip::vision::{Purpose, VisionActivations, VisionTower};
use crate::data::{Cache, DataError, Split};
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor};
use crate::train::evaluate::{Inputs, Staging};
use crate::tune::TowerTuning;
use std::collections::HashMap;
use std::sync::Arc;

/// What runs share: the frozen tower, the class features, the images, and the images' features.
pub struct Session<'a, B: Backend> {
    pub(super) backend: B,
    pub(super) tower: Arc<VisionTower<B>>,
    pub(super) text: TextClassifier,
    pub(super) cache: &'a Cache,
    /// Larger training images, for augmentation.
    pub(super) enlarged: Option<&'a Cache>,
    /// The model that adapters belong to.
    pub(super) model_name: String,
    templates: Vec<String>,
    features: HashMap<Split, Arc<Tensor>>,
}

impl<'a, B: Backend> Session<'a, B> {
    /// Loads the towers of `model`, whose files are let go; the text tower serves the class features alone.
    /// `enlarged` holds the training images for runs with augmentation.
    pub fn new(
        backend: B,
        model: Model,
        cache: &'a Cache,
        enlarged: Option<&'a Cache>,
        templates: &[String],
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let text = model.text_classifier(&backend, cache.class_names(), templates, monitor)?;
        let tower = Arc::new(model.vision(&backend)?);
        Ok(Session {
            backend,
            tower,
            text,
            cache,
            enlarged,
            model_name: model.name.clone(),
            templates: templates.to_vec(),
            features: HashMap::new(),
        })
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    pub fn cache(&self) -> &'a Cache {
        self.cache
    }

    /// Refuses settings that belong to another session.
    pub(super) fn check_templates(&self, templates: &[String]) -> Result<()> {
        if templates == self.templates {
            return Ok(());
        }
        let text = "--template: differs between runs of one model; compare runs of the same templates";
        Err(TrainError::Setting(text.into()))
    }

    /// Normalised features of plain CLIP \[N, E\] in the master type, for the images of a split in their order;
    /// computed the first time they are asked for, `batch` images at a time.
    ///
    /// # Errors
    /// [`DataError::Interrupted`] once `monitor` says stop.
    pub fn features(&mut self, split: Split, batch: usize, monitor: &dyn Monitor) -> Result<Arc<Tensor>> {
        if let Some(features) = self.features.get(&split) {
            return Ok(features.clone());
        }
        let images = self.cache.split(split);
        let (backend, tower) = (&self.backend, &*self.tower);
        let mut extractor = Extractor::new(backend, tower, TowerTuning::NONE, &[], batch.min(images.len()))?;
        let mut staging = Staging::new(self.cache, batch.min(images.len()));
        let mut bytes = Vec::with_capacity(images.len() * tower.features() * backend.master_dtype().size());
        let indices: Vec<usize> = (0..images.len()).collect();
        let count = images.len();
        let inputs = Inputs::Images(images);
        monitor.begin(&format!("features {split}"), count as u64);
        for chunk in indices.chunks(batch) {
            if monitor.stopped() {
                monitor.finish();
                return Err(DataError::Interrupted.into());
            }
            staging.fill(&inputs, chunk)?;
            bytes.extend_from_slice(extractor.features(&staging.inputs)?.bytes());
            monitor.advance(chunk.len() as u64);
        }
        monitor.finish();
        let mut features = Tensor::zeros([count, tower.features()], backend.master_dtype());
        features.bytes_mut().copy_from_slice(&bytes);
        let features = Arc::new(features);
        self.features.insert(split, features.clone());
        Ok(features)
    }
}

/// Features of batches of images, from a tower that is not trained.
pub(super) struct Extractor<'a, B: Backend> {
    backend: &'a B,
    tower: &'a VisionTower<B>,
    tuning: TowerTuning<'a, B>,
    folded: &'a [FoldedBlock<B>],
    activations: VisionActivations<B>,
}

impl<'a, B: Backend> Extractor<'a, B> {
    /// For batches of up to `batch` images. The adapters of `tuning` are those in `folded`.
    pub fn new(
        backend: &'a B,
        tower: &'a VisionTower<B>,
        tuning: TowerTuning<'a, B>,
        folded: &'a [FoldedBlock<B>],
        batch: usize,
    ) -> Result<Self> {
        let activations = VisionActivations::new(backend, tower, batch, tuning, Purpose::Inference)?;
        Ok(Extractor { backend, tower, tuning, folded, activations })
    }

    /// Normalised features \[n, E\] of `images` \[n, …\], u8 or numbers; waits for the device.
    pub fn features(&mut self, images: &Tensor) -> Result<Tensor> {
        let (backend, a) = (self.backend, &mut self.activations);
        let dtype = if images.dtype() == DType::U8 { DType::U8 } else { backend.compute_dtype() };
        let pixels = backend.upload(images.view(), dtype)?;
        a.set_batch(images.shape().rows())?;
        self.tower.infer(backend, &pixels, None, self.folded, self.tuning.prompts, a)?;
        Ok(backend.download(&a.features)?)
    }
}
