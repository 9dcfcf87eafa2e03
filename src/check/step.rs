//! Finite differences of a whole training step: every trained tensor of a tiny model, in f64.

use super::difference::{against, normal};
use super::{CheckError, Row};
use crate::backend::Activation;
use crate::backend::cpu::Cpu;
use crate::clip::config::{TowerConfig, VisionConfig};
use crate::clip::random::RandomWeights;
use crate::clip::vision::{Normalisation, Purpose, Savings, VisionTower};
use crate::objective::Objective;
use crate::optim::Adamw;
use crate::tensor::{DType, Shape, Tensor};
use crate::train::learner::{Learner, LearnerSpec, TextClassifier};
use crate::tune::{Head, LoraSpec, Target, lora::LoraInit};

/// The largest error that passes.
pub const BOUND: f64 = 1e-5;

/// A model small enough to difference, with awkward sizes.
pub struct TinyStep {
    pub layers: usize,
    pub activation: Activation,
    pub targets: Vec<Target>,
    pub objective: Objective,
    pub savings: Savings,
}

impl TinyStep {
    const BATCH: usize = 4;
    const CLASSES: usize = 5;
    const SIDE: usize = 15;
    const FEATURES: usize = 6;

    /// Model, adapters with B ≠ 0 and head, all from fixed seeds.
    pub fn learner(&self) -> Result<Learner<Cpu<f64>>, CheckError> {
        let backend = Cpu::<f64>::new();
        let config = VisionConfig {
            tower: TowerConfig {
                width: 12,
                mlp: 20,
                layers: self.layers,
                heads: 3,
                activation: self.activation,
                norm_eps: 1e-5,
            },
            image_size: Self::SIDE,
            patch_size: 5,
        };
        let source = RandomWeights { seed: 5 };
        let tower =
            VisionTower::load(&backend, &source, &config, Self::FEATURES, Normalisation::CLIP, self.savings)?;
        let lora = if self.targets.is_empty() {
            Vec::new()
        } else {
            let spec = LoraSpec { rank: 2, alpha: 4.0, targets: self.targets.clone() };
            tower.adapters(&backend, &spec, &mut WarmInit)?
        };
        let (c, e) = (Self::CLASSES, Self::FEATURES);
        let weight = Tensor::from_slice([c, e], &normal(c * e, 11))?;
        let bias = Tensor::from_slice([c], &normal(c, 12))?;
        let head = Head::new(&backend, weight.view(), bias.view())?;
        let text = TextClassifier { features: Tensor::from_slice([c, e], &normal(c * e, 13))?, scale: 1.5 };
        let spec = LearnerSpec {
            batch: Self::BATCH,
            image: Shape::from([3, Self::SIDE, Self::SIDE]),
            image_dtype: DType::F64,
            objective: self.objective,
            adamw: Adamw::default(),
            purpose: Purpose::Training,
            scaling: None,
        };
        Ok(Learner::new(backend, tower, lora, head, &text, &spec)?)
    }

    /// Random images and labels.
    pub fn batch() -> Result<(Tensor, Vec<u32>), CheckError> {
        let shape = Shape::from([Self::BATCH, 3, Self::SIDE, Self::SIDE]);
        Ok((Tensor::from_slice(shape, &normal(shape.elements(), 14))?, vec![0, 3, 1, 3]))
    }
}

/// Adapters whose B is not zero: with B = 0 the gradient of A is zero whatever the code does. The values
/// depend on layer and target only, not on the order in which they are asked for.
struct WarmInit;

impl LoraInit for WarmInit {
    fn start(&mut self, layer: usize, target: Target, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let seed = 100 + (layer * 16 + target as usize * 2) as u64;
        let fill = |shape: [usize; 2], seed| {
            let mut tensor = Tensor::zeros(shape, DType::F32);
            let values = normal(shape[0] * shape[1], seed);
            for (bytes, v) in tensor.bytes_mut().chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&(0.3 * v as f32).to_ne_bytes());
            }
            tensor
        };
        (fill([2, inputs], seed), fill([outputs, 2], seed + 1))
    }
}

/// Checks the gradient of every trained tensor of a few variants of the step.
pub fn check() -> Result<Vec<Row>, CheckError> {
    let both = Objective { head: 1.0, text: 0.3 };
    let variants = [
        ("q k v out, 3 layers", 3, Activation::QuickGelu, Target::ALL.to_vec(), both),
        ("q v, GELU, 2 layers", 2, Activation::Gelu, vec![Target::Query, Target::Value], both),
        ("out only, 2 layers", 2, Activation::QuickGelu, vec![Target::Output], both),
        ("one layer", 1, Activation::QuickGelu, Target::ALL.to_vec(), Objective { head: 1.0, text: 0.0 }),
        ("head only", 2, Activation::QuickGelu, vec![], both),
    ];
    let mut rows = Vec::new();
    for (name, layers, activation, targets, objective) in variants {
        let tiny = TinyStep { layers, activation, targets, objective, savings: Savings::ALL };
        rows.push(variant(name, &tiny)?);
    }
    Ok(rows)
}

/// The worst error over all trained tensors of one variant.
fn variant(name: &str, tiny: &TinyStep) -> Result<Row, CheckError> {
    let (images, labels) = TinyStep::batch()?;
    let mut learner = tiny.learner()?;
    learner.gradients(images.view(), &labels)?;
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
            Ok(learner.loss(images.view(), &labels)?)
        })?;
        error = if one.is_nan() { one } else { error.max(one) };
    }
    learner.restore(&start)?;
    Ok(Row { name: format!("step: {name}"), at: "f64".into(), error, bound: BOUND, peer: None })
}
