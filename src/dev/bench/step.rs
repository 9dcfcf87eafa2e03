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
        let eval =
            tally.count(|| learner.evaluate(Input::Images(images.view().into()), &labels, Which::Tuned))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::clip::text::{EmbeddedPrompts, TextTower};
    use crate::clip::tokenizer::TokenBatch;
    use crate::tune::prompts::{PromptMode, PromptSharing, PromptSpec, Prompts, initial_prompts};
    use crate::tune::{DropoutSpec, Tower};

    const CLASSES: usize = 3;

    /// ViT-B/32, batch 32, 102 classes without any saving: 282.2 GFLOP forward, 1.9 for the adapters,
    /// 275.8 backward, as PyTorch's counter has it. What the last block leaves out is subtracted by hand.
    #[test]
    fn counts_are_those_of_the_full_model_less_the_savings() {
        let sizes = StepSizes { batch: 32, classes: 102, rank: 8 };
        let work = sizes.work(&Cpu::<f32>::new(), &ClipConfig::vit_b_32()).unwrap();
        let (rows, d, m) = (32.0 * 49.0, 768.0, 3072.0);
        let linear = rows * 2.0 * (2.0 * d * d + 2.0 * d * m);
        let attention = rows * 4.0 * 50.0 * d;
        let lora = rows * 2.0 * 2.0 * d * 8.0 * 2.0;
        let forward = 282.2e9 - linear - attention;
        let found = work.eval.flop as f64;
        assert!((found - forward).abs() < 0.1e9, "{found}");
        let expected = forward + 1.9e9 - lora + 275.8e9 - linear - 2.0 * attention - 2.0 * lora;
        let found = work.train.flop as f64;
        assert!((found - expected).abs() < 0.3e9, "{found}");
        assert_eq!(work.probe.flop, 3 * 2 * 32 * 512 * 102);
    }

    /// Floating-point operations of a training step of one image of ViT-B/32, with what is trained.
    fn step(
        targets: &[Target],
        rank: usize,
        prompts: Option<PromptSpec>,
        texts: Option<(usize, usize)>,
        dropout: bool,
    ) -> u64 {
        let (tally, config) = (Tally::of(&Cpu::<f32>::new()), ClipConfig::vit_b_32());
        let e = config.projection;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let towers = if texts.is_some() { vec![Tower::Text] } else { vec![Tower::Vision] };
        let lora = LoraSpec { towers, ..LoraSpec::new(rank, 1.0, targets) };
        let vision = &config.vision;
        let tower = VisionTower::load(&tally, &Zeros, vision, e, Normalisation::CLIP, Savings::ALL).unwrap();
        let mut adapters = Vec::new();
        if texts.is_none() && !targets.is_empty() {
            adapters = tower.adapters(&tally, &lora, &mut KaimingInit { rank, rng: &mut rng }).unwrap();
        }
        let prompts = prompts.map(|spec| {
            let initial = initial_prompts(&spec, vision.tower.layers, vision.tower.width, &mut rng);
            Prompts::new(&tally, spec.mode, initial.view()).unwrap()
        });
        let features = Tensor::zeros([CLASSES, e], DType::F32);
        let bias = Tensor::zeros([CLASSES], DType::F32);
        let head = Head::new(&tally, features.view(), bias.view()).unwrap();
        let text = TextClassifier { features, scale: 1.0 };
        let mut trained = Trained { lora: adapters, text_lora: Vec::new(), prompts, head };
        let image = Shape::from([vision.image_size, vision.image_size, 3]);
        let dropout = dropout.then_some(DropoutSpec { probability: 0.5, seed: 1 });
        let objective = Objective::new(1.0, 0.3);
        let spec = LearnerSpec { dropout, ..LearnerSpec::new(&tally, 1, image, DType::U8, objective) };
        let text_tower = texts.map(|(templates, part)| {
            let (rows, len) = (CLASSES * templates, 77);
            let tokens =
                TokenBatch { ids: vec![1; rows * len], len, rows, eos_rows: vec![5; rows], cut: Vec::new() };
            let prompts = EmbeddedPrompts::new(&Zeros, &config.text, &tokens, templates).unwrap();
            let tower = Arc::new(TextTower::load(&tally, &Zeros, &config.text, e).unwrap());
            trained.text_lora =
                tower.adapters(&tally, &lora, &mut KaimingInit { rank, rng: &mut rng }).unwrap();
            (tower, prompts, part)
        });
        let mut learner = Learner::new(tally.clone(), Arc::new(tower), trained, &text, &spec).unwrap();
        if let Some((tower, prompts, part)) = text_tower {
            learner = learner.with_text_tower(tower, &prompts, part).unwrap();
        }
        let images = Tensor::zeros([1, vision.image_size, vision.image_size, 3], DType::U8);
        tally.count(|| learner.train_step(Batch::new(images.view(), &[0]), &rates(), 1.0)).unwrap().flop
    }

    fn of(targets: &[Target]) -> u64 {
        step(targets, 4, None, None, false)
    }

    /// An adapter of the MLP costs its two products per token, twice that in the backward pass; where it is the
    /// only one, all that lies in front of it in the first block is left out.
    #[test]
    fn adapters_of_the_mlp_count_by_their_sizes() {
        let (d, m, rank) = (768, 3072, 4);
        let each = (11 * 50 + 1) * 2 * rank * (d + m);
        let (both, second) = (of(&[Target::Expand, Target::Contract]), of(&[Target::Contract]));
        // Down to fc1's weights and the gradient of its input, and fc2's own adapter.
        let further = 50 * (2 * d * m + 2 * rank * (m - d)) + 2 * each;
        assert_eq!(both - second, further + each);
        assert_eq!(step(&[Target::Contract], 4, None, None, true), second);
    }

    /// With `m` prompts in front of every block, those of the blocks before replaced or kept: the tokens of block i are
    /// 50 + m, or 50 + (i + 1)·m. The backward pass goes down to the first block's prompts.
    #[test]
    fn prompts_count_by_the_tokens_they_add() {
        let (d, hidden, e, count) = (768u64, 3072u64, 512, 16);
        for mode in [PromptMode::Replace, PromptMode::Accumulate] {
            let spec = PromptSpec { count, sharing: PromptSharing::PerLayer, mode };
            let found = step(&[], 0, Some(spec), None, false);
            let tokens = |layer: u64| match mode {
                PromptMode::Replace => 50 + count as u64,
                PromptMode::Accumulate => 50 + (layer + 1) * count as u64,
            };
            let rest = 2 * (2 * d * d + 2 * d * hidden);
            let mut expected = 2 * 49 * 3 * 32 * 32 * d;
            for layer in 0..11 {
                let n = tokens(layer);
                expected += 2 * n * (2 * 2 * d * d + rest) + 3 * 4 * n * n * d;
            }
            let n = tokens(11);
            expected += 2 * (n * 4 * d * d + rest) + 3 * 4 * n * d;
            expected += 2 * 2 * d * e + 5 * 2 * e * CLASSES as u64;
            assert_eq!(found, expected, "{mode:?}");
        }
    }

    /// CLIP's text tower at 77 tokens: 2·(4·512² + 2·512·2048)·77 for the products of a block and 4·77²·512 for
    /// its attention, forward; the backward pass twice the attention and all products but the first three. Prompts
    /// that are not in the last part are computed once more.
    #[test]
    fn the_text_tower_counts_by_its_prompts() {
        let (d, m, n) = (512, 2048, 77);
        let qkv = [Target::Query, Target::Key, Target::Value];
        let (frozen, attention) = (n * 2 * (4 * d * d + 2 * d * m), 4 * n * n * d);
        let lora = n * 3 * 2 * 2 * d * 2;
        let forward = 12 * (frozen + attention + lora) + 2 * d * 512;
        let first = n * (3 * 2 * d * d + 3 * 2 * d * 2);
        let backward = 12 * (frozen + 2 * attention + 2 * lora) + 2 * d * 512 - first;
        let alone = step(&[], 0, None, None, false);
        // The gradient of the class features.
        let behind = 2 * 512 * CLASSES as u64;
        assert_eq!(step(&qkv, 2, None, Some((1, 8)), false) - alone, 3 * (forward + backward) + behind);
        assert_eq!(
            step(&qkv, 2, None, Some((1, 2)), false) - alone,
            3 * (forward + backward) + 2 * forward + behind
        );
        assert_eq!(
            step(&qkv, 2, None, Some((2, 2)), false) - alone,
            6 * (forward + backward) + 4 * forward + behind
        );
    }
}
