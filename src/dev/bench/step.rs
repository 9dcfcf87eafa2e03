//! The training step that is timed, listed and counted: LoRA on all attention layers, and a head.

use crate::TrainError;
use crate::backend::tally::{Tally, Work};
use crate::backend::{Backend, Result as BackendResult};
use crate::clip::config::ClipConfig;
use crate::clip::text::TextClassifier;
use crate::clip::vision::{Normalisation, Savings, VisionTower};
use crate::clip::weight_source::{WeightSource, Zeros};
use crate::objective::Objective;
use crate::optim::{Rate, Rates};
use crate::tensor::{DType, Shape, Tensor};
use crate::train::learner::{Batch, Input, Learner, LearnerSpec, Which};
use crate::tune::{Head, KaimingInit, LoraSpec, Target, Trained, initial_head};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::Arc;

#[derive(Debug, Clone, Copy)]
pub struct StepSizes {
    /// Images of a batch.
    pub batch: usize,
    pub classes: usize,
    /// Rank of the adapters.
    pub rank: usize,
}

impl StepSizes {
    /// A learner for such steps of a model of these sizes.
    pub fn learner<B: Backend>(
        &self,
        backend: B,
        config: &ClipConfig,
        weights: &dyn WeightSource,
    ) -> Result<Learner<B>, TrainError> {
        let (vision, e) = (&config.vision, config.projection);
        let tower = VisionTower::load(&backend, weights, vision, e, Normalisation::CLIP, Savings::ALL)?;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let spec = LoraSpec::new(self.rank, 16.0, &Target::ATTENTION);
        let mut init = KaimingInit { rank: spec.rank, rng: &mut rng };
        let lora = tower.adapters(&backend, &spec, &mut init)?;
        let (weight, bias) = initial_head(self.classes, e, &mut rng);
        let head = Head::new(&backend, weight.view(), bias.view())?;
        let text = initial_head(self.classes, e, &mut rng).0;
        let spec = self.spec(&backend, vision.image_size);
        let text = TextClassifier { features: text, scale: 14.3 };
        let trained = Trained { lora, text_lora: Vec::new(), prompts: None, head };
        Ok(Learner::new(backend, Arc::new(tower), trained, &text, &spec)?)
    }

    /// A learner for steps of the head alone, on features of the tower of `learner` that were computed before.
    pub fn probe<B: Backend>(&self, learner: &Learner<B>) -> BackendResult<Learner<B>> {
        let (backend, tower) = (learner.backend(), learner.tower());
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let (weight, bias) = initial_head(self.classes, tower.features(), &mut rng);
        let head = Head::new(backend, weight.view(), bias.view())?;
        let text = TextClassifier { features: weight, scale: 14.3 };
        let spec = self.spec(backend, tower.config().image_size);
        Learner::new(backend.clone(), tower.clone(), Trained::head(head), &text, &spec)
    }

    fn spec<B: Backend>(&self, backend: &B, side: usize) -> LearnerSpec {
        let image = Shape::from([side, side, 3]);
        LearnerSpec::new(backend, self.batch, image, DType::U8, Objective::new(1.0, 0.3))
    }

    /// What a device would compute.
    pub fn work<B: Backend>(&self, device: &B, config: &ClipConfig) -> Result<StepWork, TrainError> {
        let tally = Tally::of(device);
        let mut learner = self.learner(tally.clone(), config, &Zeros)?;
        let side = config.vision.image_size;
        let images = Tensor::zeros([self.batch, side, side, 3], DType::U8);
        let features = Tensor::zeros([self.batch, config.projection], DType::F32);
        let labels = vec![0; self.batch];
        let train = tally.count(|| learner.train_step(Batch::new(images.view(), &labels), &rates(), 1.0))?;
        learner.refresh()?;
        let eval = tally.count(|| learner.evaluate(Input::Images(images.view()), &labels, Which::Tuned))?;
        let mut learner = self.probe(&learner)?;
        let batch = Batch::of_features(features.view(), &labels);
        let probe = tally.count(|| learner.train_step(batch, &rates(), 1.0))?;
        Ok(StepWork { train, eval, probe })
    }
}

/// Work of one batch.
#[derive(Debug, Clone, Copy)]
pub struct StepWork {
    /// A training step.
    pub train: Work,
    /// An evaluation whose adapters are in the weights already.
    pub eval: Work,
    /// A training step of the head alone, on features.
    pub probe: Work,
}

/// Learning rates and weight decay of the steps that are timed or listed.
pub fn rates() -> Rates {
    let rate = |learning_rate| Rate { learning_rate, weight_decay: 1e-2 };
    Rates { head: rate(1e-3), lora: rate(1e-4), prompt: rate(5e-3) }
}
