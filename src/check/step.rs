//! Finite differences of a whole training step: every trained tensor of a tiny model, in f64.

use super::difference::{against, normal};
use super::{CheckError, Row};
use crate::backend::cpu::Cpu;
use crate::backend::{Activation, Backend, LossScaling};
use crate::clip::config::{TowerConfig, VisionConfig};
use crate::clip::random::RandomWeights;
use crate::clip::vision::{Normalisation, Purpose, Savings, VisionTower};
use crate::objective::{MixDraw, MixOn, Objective};
use crate::optim::Adamw;
use crate::tensor::{DType, Shape, Tensor};
use crate::train::learner::{Batch, Learner, LearnerSpec, TextClassifier};
use crate::tune::{
    Head, LoraSpec, PromptMode, PromptSharing, PromptSpec, Prompts, Site, Target, Trained, lora::LoraInit,
};
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

/// A tiny model with adapters, prompts and head, and a batch for it.
#[derive(Debug, Clone)]
pub struct TinyStep {
    pub sizes: TinySizes,
    pub layers: usize,
    pub activation: Activation,
    pub targets: Vec<Target>,
    pub prompts: Option<PromptSpec>,
    pub objective: Objective,
    pub mix: Option<MixOn>,
    /// Side of the images that training batches are crops of, at least that of the model's.
    pub crops_of: Option<usize>,
    pub savings: Savings,
}

/// A training batch of u8 images with all that goes with it.
#[derive(Debug, Clone)]
pub struct TinyBatch {
    pub images: Tensor,
    pub labels: Vec<u32>,
    pub mix: Option<MixDraw>,
    pub crops: Option<Tensor>,
}

impl TinyBatch {
    /// As a learner takes it.
    pub fn view(&self) -> Batch<'_> {
        Batch {
            images: self.images.view(),
            labels: &self.labels,
            mix: self.mix.as_ref(),
            crops: self.crops.as_ref().map(Tensor::view),
            number: 0,
        }
    }
}

impl TinyStep {
    /// LoRA on all attention layers with head and text loss; techniques are made from it.
    pub fn new(sizes: TinySizes, layers: usize) -> Self {
        TinyStep {
            sizes,
            layers,
            activation: Activation::QuickGelu,
            targets: Target::ATTENTION.to_vec(),
            prompts: None,
            objective: Objective::new(1.0, 0.3),
            mix: None,
            crops_of: None,
            savings: Savings::ALL,
        }
    }

    /// Model, adapters with B ≠ 0, prompts and head, all from fixed seeds, in f64 on the CPU.
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
            let spec = LoraSpec::new(sizes.rank, alpha, &self.targets);
            tower.adapters(&backend, &spec, &mut WarmInit { rank: sizes.rank })?
        };
        let prompts = match &self.prompts {
            Some(spec) => {
                let shape = Shape::from([spec.sets(self.layers), spec.count, sizes.width]);
                let values = Tensor::from_slice(shape, &normal(shape.elements(), 15))?;
                Some(Prompts::new(&backend, spec.mode, values.view())?)
            }
            None => None,
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
            mix: self.mix,
            crops_of: self.crops_of,
            adamw: Adamw::default(),
            purpose: Purpose::Training,
            scaling,
            dropout: None,
            clip: None,
            accumulate: false,
        };
        let trained = Trained { lora, text_lora: Vec::new(), prompts, head };
        Ok(Learner::new(backend, Arc::new(tower), trained, &text, &spec)?)
    }

    /// Random images and labels.
    pub fn batch(&self) -> Result<(Tensor, Vec<u32>), CheckError> {
        let shape = Shape::from([self.sizes.batch, 3, self.sizes.side, self.sizes.side]);
        Ok((Tensor::from_slice(shape, &normal(shape.elements(), 14))?, self.labels()))
    }

    /// Random u8 images and labels; another `seed` gives other images.
    pub fn pixels(&self, seed: u64) -> Result<(Tensor, Vec<u32>), CheckError> {
        Ok((self.images(self.sizes.batch, self.sizes.side, seed)?, self.labels()))
    }

    /// `batch` images to train on, with draw and crops where the step has them; another `seed` gives others of
    /// each.
    pub fn training_batch(&self, batch: usize, seed: u64) -> Result<TinyBatch, CheckError> {
        let images = self.images(batch, self.crops_of.unwrap_or(self.sizes.side), seed)?;
        let labels = self.labels().into_iter().take(batch).collect();
        Ok(TinyBatch { images, labels, mix: self.draw(batch, seed), crops: self.crops(batch, seed)? })
    }

    fn images(&self, batch: usize, side: usize, seed: u64) -> Result<Tensor, CheckError> {
        let shape = Shape::from([batch, side, side, 3]);
        let levels: Vec<u8> =
            normal(shape.elements(), seed).iter().map(|v| (v * 60.0 + 128.0) as u8).collect();
        Ok(Tensor::from_slice(shape, &levels)?)
    }

    /// For triplets, the first image is alone in its class and the others come in threes; without, there are
    /// as many classes as can be.
    fn labels(&self) -> Vec<u32> {
        let class = |i: usize| if self.objective.triplet == 0.0 { i * 3 } else { i.div_ceil(3) };
        (0..self.sizes.batch).map(|i| (class(i) % self.sizes.classes) as u32).collect()
    }

    /// How `batch` images are mixed, where they are: in a circle but for the last, so that partner and
    /// inverse differ, and one image keeps to itself. Seeds that follow one another give other partners, where
    /// there are enough images for others, and other λ.
    pub fn draw(&self, batch: usize, seed: u64) -> Option<MixDraw> {
        self.mix.map(|_| {
            let circle = batch.saturating_sub(1) as u32;
            let step = 1 + seed as u32 % circle.saturating_sub(1).max(1);
            let partner = (0..circle).map(|i| (i + step) % circle).chain([circle]).collect();
            let lambda = (0..batch).map(|i| ((i * 7 + 1 + seed as usize * 3) % 10) as f32 / 10.0).collect();
            MixDraw { partner, lambda }
        })
    }

    /// Where `batch` images are cut, where they are; seeds that follow one another give other places and mirror
    /// other images. No crop is resized: two orders of summation may round to two levels, which is more than
    /// the losses of a step may differ by.
    fn crops(&self, batch: usize, seed: u64) -> Result<Option<Tensor>, CheckError> {
        let Some(larger) = self.crops_of else {
            return Ok(None);
        };
        let side = self.sizes.side;
        let (places, seed) = (larger - side + 1, seed as usize);
        let crops = (0..batch).flat_map(|i| {
            let (top, left) = ((i + seed) % places, (2 * i + 3 * seed) % places);
            [top, left, side, side, (i + seed) % 2].map(|field| field as u32)
        });
        Ok(Some(Tensor::from_slice([batch, 5], &crops.collect::<Vec<u32>>())?))
    }
}

/// Adapters whose B is not zero: with B = 0 the gradient of A is zero whatever the code does. The values
/// depend on layer and target only, not on the order in which they are asked for.
struct WarmInit {
    rank: usize,
}

impl LoraInit for WarmInit {
    fn start(&mut self, site: Site, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let block = site.layer + 1000 * site.tower as usize;
        let seed = 100 + (block * 16 + site.target as usize * 2) as u64;
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

/// One step for every way to tune and to train but plain LoRA.
pub fn techniques(sizes: TinySizes, layers: usize) -> Vec<(&'static str, TinyStep)> {
    use PromptMode::{Accumulate, Replace};
    use PromptSharing::{PerLayer, Shared};
    let lora = TinyStep::new(sizes, layers);
    let mixed = |mix| TinyStep { mix: Some(mix), ..lora.clone() };
    // Random images are farther from their own class than from others: with a margin below zero some anchors
    // have no loss.
    let triplet = |margin: f64, step: TinyStep| {
        let objective = step.objective.with_triplet(0.3, margin);
        TinyStep { objective, ..step }
    };
    let beside = |sharing, mode| {
        let prompts = Some(PromptSpec { count: 3, sharing, mode });
        TinyStep { prompts, ..lora.clone() }
    };
    let alone = |sharing, mode| TinyStep { targets: vec![], ..beside(sharing, mode) };
    vec![
        ("head only", TinyStep { targets: vec![], ..lora.clone() }),
        ("pixels mixed", mixed(MixOn::Pixels)),
        ("features mixed", mixed(MixOn::Features)),
        ("head only, features mixed", TinyStep { targets: vec![], ..mixed(MixOn::Features) }),
        ("triplet", triplet(-0.155, lora.clone())),
        ("prompts shared, replaced", alone(Shared, Replace)),
        ("prompts per layer, replaced", alone(PerLayer, Replace)),
        ("prompts shared, accumulated", alone(Shared, Accumulate)),
        ("prompts per layer, accumulated", alone(PerLayer, Accumulate)),
        ("prompts replaced, LoRA", beside(Shared, Replace)),
        ("prompts accumulated, LoRA", beside(PerLayer, Accumulate)),
        (
            "prompts accumulated, pixels mixed",
            TinyStep { mix: Some(MixOn::Pixels), ..alone(Shared, Accumulate) },
        ),
        ("prompts replaced, triplet", triplet(-0.4, alone(PerLayer, Replace))),
    ]
}

/// Checks the gradient of every trained tensor of a few variants of the step.
pub fn check() -> Result<Vec<Row>, CheckError> {
    let odd = |layers, targets: &[Target]| TinyStep {
        targets: targets.to_vec(),
        ..TinyStep::new(TinySizes::ODD, layers)
    };
    let gelu = |step| TinyStep { activation: Activation::Gelu, ..step };
    let one_layer = TinyStep { objective: Objective::new(1.0, 0.0), ..odd(1, &Target::ATTENTION) };
    let mut variants: Vec<(String, TinyStep)> = vec![
        ("q k v out, 3 layers".into(), odd(3, &Target::ATTENTION)),
        ("q v, GELU, 2 layers".into(), gelu(odd(2, &[Target::Query, Target::Value]))),
        ("out only, 2 layers".into(), odd(2, &[Target::Output])),
        ("one layer".into(), one_layer),
    ];
    let seven = TinySizes { batch: 7, ..TinySizes::ODD };
    variants.extend(techniques(seven, 3).into_iter().map(|(name, step)| (name.to_string(), step)));
    // The only block is the first and the last for prompts.
    let one_block = techniques(seven, 1).into_iter().filter(|(_, step)| step.prompts.is_some());
    variants.extend(one_block.map(|(name, step)| (format!("{name}, one layer"), step)));
    variants.iter().map(|(name, tiny)| variant(name, tiny)).collect()
}

/// The worst error over all trained tensors of one variant.
fn variant(name: &str, tiny: &TinyStep) -> Result<Row, CheckError> {
    let (images, labels) = tiny.batch()?;
    let mut learner = tiny.learner()?;
    let draw = tiny.draw(labels.len(), 0);
    let batch = Batch { mix: draw.as_ref(), ..Batch::new(images.view(), &labels) };
    learner.gradients(batch)?;
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
            Ok(learner.loss(batch)?)
        })?;
        error = if one.is_nan() { one } else { error.max(one) };
    }
    learner.restore(&start)?;
    Ok(Row { name: format!("step: {name}"), at: "f64".into(), error, bound: BOUND, peer: None })
}
