//! Finite differences of a whole training step: every trained tensor of a tiny model, in f64.

use super::difference::{against, normal};
use super::{CheckError, Row};
use crate::backend::cpu::Cpu;
use crate::backend::{Activation, Backend, LossScaling};
use crate::clip::config::{TowerConfig, VisionConfig};
use crate::clip::random::RandomWeights;
use crate::clip::vision::{Normalisation, Purpose, Savings, VisionTower};
use crate::objective::Objective;
use crate::optim::Adamw;
use crate::tensor::{DType, Shape, Tensor};
use crate::train::learner::{Batch, Learner, LearnerSpec, TextClassifier};
use crate::tune::{Head, LoraSpec, Target, Trained, lora::LoraInit};
use std::sync::Arc;

/// The largest error that passes.
pub const BOUND: f64 = 1e-5;

/// The sizes of a model small enough to difference, or to run on the host twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TinySizes {
    pub batch: usize,
    pub classes: usize,
    /// Pixels of an image and of a patch, a side.
    pub side: usize,
    pub patch: usize,
    pub width: usize,
    pub heads: usize,
    pub mlp: usize,
    pub features: usize,
    pub rank: usize,
}

impl TinySizes {
    /// Awkward everywhere.
    pub const ODD: TinySizes = TinySizes {
        batch: 4,
        classes: 5,
        side: 15,
        patch: 5,
        width: 12,
        heads: 3,
        mlp: 20,
        features: 6,
        rank: 2,
    };

    /// Multiples of what tensor cores and wide accesses take.
    pub const EVEN: TinySizes = TinySizes {
        batch: 6,
        classes: 5,
        side: 32,
        patch: 8,
        width: 64,
        heads: 2,
        mlp: 128,
        features: 32,
        rank: 8,
    };
}

/// A tiny model with adapters and head, and a batch for it.
pub struct TinyStep {
    pub sizes: TinySizes,
    pub layers: usize,
    pub activation: Activation,
    pub targets: Vec<Target>,
    pub objective: Objective,
    pub savings: Savings,
}

impl TinyStep {
    /// Model, adapters with B ≠ 0 and head, all from fixed seeds, in f64 on the CPU.
    pub fn learner(&self) -> Result<Learner<Cpu<f64>>, CheckError> {
        let image = Shape::from([3, self.sizes.side, self.sizes.side]);
        self.learner_on(Cpu::new(), image, DType::F64, None)
    }

    /// The same on any backend; `image` and `dtype` are those of one image as it will be handed in.
    pub fn learner_on<B: Backend>(
        &self,
        backend: B,
        image: Shape,
        dtype: DType,
        scaling: Option<LossScaling>,
    ) -> Result<Learner<B>, CheckError> {
        let sizes = self.sizes;
        let config = VisionConfig {
            tower: TowerConfig {
                width: sizes.width,
                mlp: sizes.mlp,
                layers: self.layers,
                heads: sizes.heads,
                activation: self.activation,
                norm_eps: 1e-5,
            },
            image_size: sizes.side,
            patch_size: sizes.patch,
        };
        let source = RandomWeights { seed: 5 };
        let (c, e, norm) = (sizes.classes, sizes.features, Normalisation::CLIP);
        let tower = VisionTower::load(&backend, &source, &config, e, norm, self.savings)?;
        let lora = if self.targets.is_empty() {
            Vec::new()
        } else {
            let alpha = 2.0 * sizes.rank as f64;
            let spec = LoraSpec { rank: sizes.rank, alpha, targets: self.targets.clone() };
            tower.adapters(&backend, &spec, &mut WarmInit { rank: sizes.rank })?
        };
        let weight = Tensor::from_slice([c, e], &normal(c * e, 11))?;
        let bias = Tensor::from_slice([c], &normal(c, 12))?;
        let head = Head::new(&backend, weight.view(), bias.view())?;
        let text = TextClassifier { features: Tensor::from_slice([c, e], &normal(c * e, 13))?, scale: 1.5 };
        let spec = LearnerSpec {
            batch: sizes.batch,
            image,
            image_dtype: dtype,
            objective: self.objective,
            mix: None,
            crops_of: None,
            adamw: Adamw::default(),
            purpose: Purpose::Training,
            scaling,
        };
        let trained = Trained { lora, prompts: None, head };
        Ok(Learner::new(backend, Arc::new(tower), trained, &text, &spec)?)
    }

    /// Random images and labels.
    pub fn batch(&self) -> Result<(Tensor, Vec<u32>), CheckError> {
        let shape = Shape::from([self.sizes.batch, 3, self.sizes.side, self.sizes.side]);
        Ok((Tensor::from_slice(shape, &normal(shape.elements(), 14))?, self.labels()))
    }

    /// Random u8 images and labels; another `seed` gives other images.
    pub fn pixels(&self, seed: u64) -> Result<(Tensor, Vec<u32>), CheckError> {
        let shape = Shape::from([self.sizes.batch, self.sizes.side, self.sizes.side, 3]);
        let levels: Vec<u8> =
            normal(shape.elements(), seed).iter().map(|v| (v * 60.0 + 128.0) as u8).collect();
        Ok((Tensor::from_slice(shape, &levels)?, self.labels()))
    }

    fn labels(&self) -> Vec<u32> {
        (0..self.sizes.batch).map(|i| (i * 3 % self.sizes.classes) as u32).collect()
    }
}

/// Adapters whose B is not zero: with B = 0 the gradient of A is zero whatever the code does. The values
/// depend on layer and target only, not on the order in which they are asked for.
struct WarmInit {
    rank: usize,
}

impl LoraInit for WarmInit {
    fn start(&mut self, layer: usize, target: Target, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let seed = 100 + (layer * 16 + target as usize * 2) as u64;
        let fill = |shape: [usize; 2], deviation: f64, seed| {
            let mut tensor = Tensor::zeros(shape, DType::F32);
            let values = normal(shape[0] * shape[1], seed);
            for (bytes, v) in tensor.bytes_mut().chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&((deviation * v) as f32).to_ne_bytes());
            }
            tensor
        };
        // With the scale of 2 the update is half as large as the layer's own output.
        let (a, b) = (1.0 / (inputs as f64).sqrt(), 0.25 / (self.rank as f64).sqrt());
        (fill([self.rank, inputs], a, seed), fill([outputs, self.rank], b, seed + 1))
    }
}

/// Checks the gradient of every trained tensor of a few variants of the step.
pub fn check() -> Result<Vec<Row>, CheckError> {
    let both = Objective::new(1.0, 0.3);
    let variants = [
        ("q k v out, 3 layers", 3, Activation::QuickGelu, Target::ALL.to_vec(), both),
        ("q v, GELU, 2 layers", 2, Activation::Gelu, vec![Target::Query, Target::Value], both),
        ("out only, 2 layers", 2, Activation::QuickGelu, vec![Target::Output], both),
        ("one layer", 1, Activation::QuickGelu, Target::ALL.to_vec(), Objective::new(1.0, 0.0)),
        ("head only", 2, Activation::QuickGelu, vec![], both),
    ];
    let mut rows = Vec::new();
    for (name, layers, activation, targets, objective) in variants {
        let sizes = TinySizes::ODD;
        let tiny = TinyStep { sizes, layers, activation, targets, objective, savings: Savings::ALL };
        rows.push(variant(name, &tiny)?);
    }
    Ok(rows)
}

/// The worst error over all trained tensors of one variant.
fn variant(name: &str, tiny: &TinyStep) -> Result<Row, CheckError> {
    let (images, labels) = tiny.batch()?;
    let mut learner = tiny.learner()?;
    learner.gradients(Batch::new(images.view(), &labels))?;
    let start = learner.snapshot()?;
    let gradients: Vec<Tensor> = learner.params().into_iter().map(|p| p.gradient.clone()).collect();
    let mut error = 0.0f64;
    for (index, gradient) in gradients.iter().enumerate() {
        let x = start[index].typed::<f64>()?;
        let seed = index as u64;
        let one = against(x, gradient.typed::<f64>()?, seed, |moved| -> Result<f64, CheckError> {
            let mut values = start.clone();
            values[index] = Tensor::from_slice(start[index].shape(), moved)?;
            learner.restore(&values)?;
            Ok(learner.loss(Batch::new(images.view(), &labels))?)
        })?;
        error = if one.is_nan() { one } else { error.max(one) };
    }
    learner.restore(&start)?;
    Ok(Row { name: format!("step: {name}"), at: "f64".into(), error, bound: BOUND, peer: None })
}
