//! What the batches of a run come to in floating-point operations: the steps themselves, on a backend that only counts.

use super::Result;
use super::learner::{Batch, Input, Learner, LearnerSpec, MicroBatch, Which};
use super::model::Model;
use super::run::initial::Towers;
use crate::backend::Backend;
use crate::backend::tally::Tally;
use crate::clip::text::{EmbeddedPrompts, PART, TextClassifier, TextTower};
use crate::clip::vision::{Normalisation, Savings, VisionTower};
use crate::clip::weight_source::Zeros;
use crate::optim::{Rate, Rates};
use crate::settings::Settings;
use crate::tensor::{DType, Shape, Tensor};
use crate::tune::Tower;
use std::sync::Arc;

/// A run's learner without numbers.
pub(super) struct Counted {
    tally: Tally,
    learner: Learner<Tally>,
    spec: LearnerSpec,
    /// Whether steps, and evaluations, take features in the place of images.
    on_features: [bool; 2],
}

impl Counted {
    /// That of `settings` on `device`; `prompts` are those of a text tower that is trained.
    pub fn new<B: Backend>(
        device: &B,
        model: &Model,
        settings: &Settings,
        (classes, text): (&[String], &TextClassifier),
        prompts: Option<&EmbeddedPrompts>,
        spec: &LearnerSpec,
    ) -> Result<Self> {
        let tally = Tally::of(device);
        // Crops and mixes multiply nothing.
        let spec = LearnerSpec { crops_of: None, mix: None, ..spec.clone() };
        let (config, e) = (&model.config, model.config.projection);
        let tower = VisionTower::load(&tally, &Zeros, &config.vision, e, Normalisation::CLIP, Savings::ALL)?;
        let text_tower = match prompts.filter(|_| settings.trained_towers().contains(&Tower::Text)) {
            Some(prompts) => Some((Arc::new(TextTower::load(&tally, &Zeros, &config.text, e)?), prompts)),
            None => None,
        };
        let of_text = text_tower.as_ref().map(|(tower, _)| &**tower);
        let towers = Towers { backend: &tally, vision: &tower, text: of_text, config };
        let trained = towers.trained_parts(settings, None, classes, text)?;
        let mut learner = Learner::new(tally.clone(), Arc::new(tower), trained, text, &spec)?;
        if let Some((tower, prompts)) = text_tower {
            learner = learner.with_text_tower(tower, prompts, PART)?;
        }
        let on_features = [settings.on_frozen_features(), settings.vision_is_frozen()];
        Ok(Counted { tally, learner, spec, on_features })
    }

    /// Operations of a training batch of so many images.
    pub fn train(&mut self, images: usize) -> Result<f64> {
        let input = self.input(images, self.on_features[0])?;
        let labels = vec![0; images];
        let weights = vec![1.0; self.learner.classes()];
        let class_weights = self.spec.objective.counts.weighted.then_some(&weights[..]);
        let batch = match self.on_features[0] {
            true => Batch { class_weights, ..Batch::of_features(input.view(), &labels) },
            false => Batch { class_weights, ..Batch::new(input.view(), &labels) },
        };
        let still = Rate { learning_rate: 0.0, weight_decay: 0.0 };
        let rates = Rates { head: still, lora: still, prompt: still };
        let learner = &mut self.learner;
        let work = self.tally.count(|| learner.train(batch, MicroBatch::ALONE, &rates, 1.0))?;
        Ok(work.flop as f64)
    }

    /// Operations in front of the first evaluation of a split: adapters into the weights, and class features where the
    /// text tower is trained.
    pub fn refresh(&mut self) -> Result<f64> {
        let learner = &mut self.learner;
        Ok(self.tally.count(|| learner.refresh())?.flop as f64)
    }

    /// Operations of an evaluation of so many images.
    pub fn evaluate(&mut self, images: usize) -> Result<f64> {
        let on_features = self.on_features[1];
        self.count(images, on_features, Which::Tuned)
    }

    /// Operations of plain features of so many images.
    pub fn embed(&mut self, images: usize) -> Result<f64> {
        self.count(images, false, Which::Frozen)
    }

    fn count(&mut self, images: usize, on_features: bool, which: Which) -> Result<f64> {
        let (input, labels) = (self.input(images, on_features)?, vec![0; images]);
        let input = if on_features {
            Input::Features(input.view().into())
        } else {
            Input::Images(input.view().into())
        };
        self.refresh()?;
        let learner = &mut self.learner;
        Ok(self.tally.count(|| learner.evaluate(input, &labels, which))?.flop as f64)
    }

    fn input(&self, images: usize, on_features: bool) -> Result<Tensor> {
        if on_features {
            return Ok(Tensor::zeros([images, self.learner.tower().features()], DType::F32));
        }
        let dims = [&[images], self.spec.image.dims()].concat();
        Ok(Tensor::zeros(Shape::try_from(&dims[..]).unwrap_or(self.spec.image), self.spec.image_dtype))
    }
}
