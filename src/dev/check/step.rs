//! Finite differences of a whole training step: every trained tensor of a tiny model, in f64.

use super::difference::{against, normal};
use super::{Result, Row, worse};
use crate::backend::cpu::Cpu;
use crate::backend::{Activation, Backend, LossScaling};
use crate::clip::config::{TextConfig, TowerConfig, VisionConfig};
use crate::clip::random::RandomWeights;
use crate::clip::text::TextClassifier;
use crate::clip::text::{self, EmbeddedPrompts, TextTower};
use crate::clip::tokenizer::TokenBatch;
use crate::clip::vision::{Normalisation, Savings, VisionTower};
use crate::objective::{ClassCounts, MixDraw, MixOn, Objective};
use crate::optim::Rates;
use crate::progress::Silent;
use crate::tensor::{DType, Shape, Tensor};
use crate::train::learner::{Batch, Input, Learner, LearnerSpec, MicroBatch};
use crate::tune::{
    DropoutSpec, Head, LoraSpec, Place, PromptMode, PromptSharing, PromptSpec, Prompts, Site, Target, Tower,
    Trained, lora::LoraInit,
};
use std::sync::Arc;

pub const BOUND: f64 = 1e-5;

/// The sizes of a model small enough to difference, or to run on the host twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TinySizes {
    pub batch: usize,
    /// Classes; not all of them need occur in a batch.
    pub classes: usize,
    pub side: usize,
    pub patch: usize,
    pub width: usize,
    /// Attention heads of the vision tower; they divide `width`. The text tower has one fewer.
    pub heads: usize,
    /// Elements between the two linear layers of an MLP; half as many in the text tower.
    pub mlp: usize,
    pub features: usize,
    /// r of the adapters, which are scaled by 2 whatever it is.
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
    /// The linear layers with adapters; empty for a step without any.
    pub targets: Vec<Target>,
    pub prompts: Option<PromptSpec>,
    pub objective: Objective,
    pub mix: Option<MixOn>,
    /// Side of the images that training batches are crops of, at least that of the model's.
    pub crops_of: Option<usize>,
    pub savings: Savings,
    pub towers: Vec<Tower>,
    pub dropout: f64,
    /// False where the text features of the classes take the head's place.
    pub head: bool,
    /// Prompts that a text tower in training computes together.
    pub text_part: usize,
    pub accumulate: usize,
    /// The length that the gradients of a step are scaled down to.
    pub clip: Option<f64>,
}

/// Prompts of a class, where the text tower is trained.
const TEMPLATES: usize = 3;

/// A training batch of u8 images with all that goes with it.
#[derive(Debug, Clone)]
pub struct TinyBatch {
    /// u8 \[n, S, S, 3\]; S is [`TinyStep::crops_of`] where that is set.
    pub images: Tensor,
    pub labels: Vec<u32>,
    pub mix: Option<MixDraw>,
    /// u32 \[n, 5\], as [`CropResizeOp::crop_resize`](crate::backend::CropResizeOp::crop_resize) takes them; none where images are taken as they are.
    pub crops: Option<Tensor>,
    /// Which batch of the run it is, for dropout.
    pub number: u32,
    /// Weight of each class; none where all count the same.
    pub class_weights: Option<Vec<f32>>,
}

impl TinyBatch {
    pub fn view(&self) -> Batch<'_> {
        Batch {
            input: Input::Images(self.images.view().into()),
            labels: &self.labels,
            mix: self.mix.as_ref(),
            crops: self.crops.as_ref().map(Tensor::view),
            number: self.number,
            class_weights: self.class_weights.as_deref(),
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
            towers: vec![Tower::Vision],
            dropout: 0.0,
            head: true,
            text_part: usize::MAX,
            accumulate: 1,
            clip: None,
        }
    }

    /// Model, adapters with B ≠ 0, prompts and head, all from fixed seeds, in f64 on the CPU.
    pub fn learner(&self) -> Result<Learner<Cpu<f64>>> {
        let image = Shape::from([3, self.sizes.side, self.sizes.side]);
        self.learner_on(Cpu::new(), image, DType::F64, None)
    }

    /// The learner of [`TinyStep::learner`] on any backend; `image` and `dtype` are those of one image as it will be
    /// handed in.
    pub fn learner_on<B: Backend>(
        &self,
        backend: B,
        image: Shape,
        dtype: DType,
        scaling: Option<LossScaling>,
    ) -> Result<Learner<B>> {
        let sizes = self.sizes;
        let source = RandomWeights { seed: 5 };
        let config = self.vision();
        let norm = Normalisation::CLIP;
        let tower = VisionTower::load(&backend, &source, &config, sizes.features, norm, self.savings)?;
        let text = match self.trains_text() {
            true => Some(Arc::new(TextTower::load(&backend, &source, &self.text(), sizes.features)?)),
            false => None,
        };
        let classifier = self.classifier(&backend, &source, text.as_deref())?;
        let trained = self.trained(&backend, &tower, text.as_deref())?;
        let dropout = (self.dropout > 0.0).then_some(self.dropout);
        let dropout = dropout.map(|probability| DropoutSpec { probability, seed: (7 << 32) + 3 });
        let spec = LearnerSpec {
            mix: self.mix,
            crops_of: self.crops_of,
            scaling,
            dropout,
            clip: self.clip,
            accumulate: self.accumulate > 1,
            ..LearnerSpec::new(&backend, sizes.batch, image, dtype, self.objective)
        };
        let learner = Learner::new(backend, Arc::new(tower), trained, &classifier, &spec)?;
        let Some(text) = text else { return Ok(learner) };
        let prompts = EmbeddedPrompts::new(&source, &self.text(), &self.tokens(), TEMPLATES)?;
        Ok(learner.with_text_tower(text, &prompts, self.text_part)?)
    }

    fn trains_text(&self) -> bool {
        self.towers.contains(&Tower::Text) && !self.targets.is_empty()
    }

    fn vision(&self) -> VisionConfig {
        let sizes = self.sizes;
        VisionConfig {
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
        }
    }

    /// A head fewer than the vision tower, and half as wide an MLP.
    fn text(&self) -> TextConfig {
        let vision = self.vision().tower;
        let heads = vision.heads - 1;
        let (width, mlp) = (vision.width / vision.heads * heads, vision.mlp / 2);
        let tower = TowerConfig { width, mlp, heads, ..vision };
        TextConfig { tower, vocabulary: 30, max_tokens: 8, bos: Some(28), eos: 29 }
    }

    /// Prompts of three to six tokens for every class.
    fn tokens(&self) -> TokenBatch {
        let (rows, len) = (self.sizes.classes * TEMPLATES, 6);
        let mut tokens = TokenBatch { ids: Vec::new(), len, rows, eos_rows: Vec::new(), cut: Vec::new() };
        for row in 0..rows {
            let end = 2 + row % 4;
            let id = |at: usize| match at {
                0 => 28,
                at if at < end => (row * 5 + at * 11) as u32 % 28,
                _ => 29,
            };
            tokens.ids.extend((0..len).map(id));
            tokens.eos_rows.push(end as u32);
        }
        tokens
    }

    /// The class features of the text tower; at random where none is trained.
    fn classifier<B: Backend>(
        &self,
        backend: &B,
        source: &RandomWeights,
        text: Option<&TextTower<B>>,
    ) -> Result<TextClassifier> {
        let (c, e) = (self.sizes.classes, self.sizes.features);
        let features = match text {
            Some(text) => {
                let features = text.features(backend, source, &self.tokens(), &[], &Silent)?;
                text::class_features(&features, TEMPLATES)?
            }
            None => Tensor::from_slice([c, e], &normal(c * e, 13))?,
        };
        Ok(TextClassifier { features, scale: 1.5 })
    }

    fn trained<B: Backend>(
        &self,
        backend: &B,
        tower: &VisionTower<B>,
        text: Option<&TextTower<B>>,
    ) -> Result<Trained<B>> {
        let (c, e, rank) = (self.sizes.classes, self.sizes.features, self.sizes.rank);
        let (mut lora, mut text_lora) = (Vec::new(), Vec::new());
        if !self.targets.is_empty() {
            let spec = LoraSpec::new(rank, 2.0 * rank as f64, &self.targets);
            let spec = LoraSpec { towers: self.towers.clone(), ..spec };
            lora = tower.adapters(backend, &spec, &mut WarmInit { rank })?;
            if let Some(text) = text {
                text_lora = text.adapters(backend, &spec, &mut WarmInit { rank })?;
            }
        }
        let prompts = match &self.prompts {
            Some(spec) => {
                let shape = Shape::from([spec.sets(self.layers), spec.count, self.sizes.width]);
                let values = Tensor::from_slice(shape, &normal(shape.elements(), 15))?;
                Some(Prompts::new(backend, spec.mode, values.view())?)
            }
            None => None,
        };
        let weight = Tensor::from_slice([c, e], &normal(c * e, 11))?;
        let bias = Tensor::from_slice([c], &normal(c, 12))?;
        let head = Head { trained: self.head, ..Head::new(backend, weight.view(), bias.view())? };
        Ok(Trained { lora, text_lora, prompts, head })
    }

    pub fn batch(&self) -> Result<(Tensor, Vec<u32>)> {
        let shape = Shape::from([self.sizes.batch, 3, self.sizes.side, self.sizes.side]);
        Ok((Tensor::from_slice(shape, &normal(shape.elements(), 14))?, self.labels()))
    }

    /// Random u8 images and labels; another `seed` gives other images.
    pub fn pixels(&self, seed: u64) -> Result<(Tensor, Vec<u32>)> {
        Ok((self.images(self.sizes.batch, self.sizes.side, seed)?, self.labels()))
    }

    /// `batch` images to train on, with draw and crops where the step has them; another `seed` gives others of
    /// each, and another number.
    pub fn training_batch(&self, batch: usize, seed: u64) -> Result<TinyBatch> {
        let images = self.images(batch, self.crops_of.unwrap_or(self.sizes.side), seed)?;
        let labels = self.labels().into_iter().take(batch).collect();
        let (mix, crops) = (self.draw(batch, seed), self.crops(batch, seed)?);
        let class_weights = self.class_weights(seed);
        Ok(TinyBatch { images, labels, mix, crops, number: seed as u32, class_weights })
    }

    /// From a half to twice, where the classes are weighted; another `seed` gives others.
    pub fn class_weights(&self, seed: u64) -> Option<Vec<f32>> {
        let weight = |class: usize| 0.5 + (class as f32 * 0.7 + seed as f32 * 0.3) % 1.5;
        self.objective.counts.weighted.then(|| (0..self.sizes.classes).map(weight).collect())
    }

    /// The batches that make up a step, each with its share; another `step` gives others. Where they are
    /// several, they have half as many images as the learner has room for, and the last of them one less.
    pub fn step_batches(&self, step: u64) -> Result<Vec<(TinyBatch, MicroBatch)>> {
        let count = self.accumulate;
        if count == 1 {
            return Ok(vec![(self.training_batch(self.sizes.batch, step)?, MicroBatch::ALONE)]);
        }
        let whole = self.sizes.batch.div_ceil(2);
        let part = |index: usize| {
            let images = if index + 1 == count { whole - 1 } else { whole };
            let batch = self.training_batch(images, step * count as u64 + index as u64)?;
            let share = images as f64 / (whole * count - 1) as f64;
            Ok((batch, MicroBatch { place: Place::of(index, count), share }))
        };
        (0..count).map(part).collect()
    }

    fn images(&self, batch: usize, side: usize, seed: u64) -> Result<Tensor> {
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
    fn crops(&self, batch: usize, seed: u64) -> Result<Option<Tensor>> {
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
    let counted = |step: TinyStep| {
        let objective = step.objective.with_counts(ClassCounts { weighted: true, smoothing: 0.1 });
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
        ("head only, features mixed, classes weighted", {
            counted(TinyStep { targets: vec![], ..mixed(MixOn::Features) })
        }),
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

/// One step for every setting of the adapters, and for steps of several batches.
pub fn adapter_techniques(sizes: TinySizes, layers: usize) -> Vec<(&'static str, TinyStep)> {
    let lora = TinyStep::new(sizes, layers);
    let on = |targets: &[Target]| TinyStep { targets: targets.to_vec(), ..lora.clone() };
    let every = on(&Target::ALL);
    let text = |towers: &[Tower], step: &TinyStep| TinyStep { towers: towers.to_vec(), ..step.clone() };
    // Two classes a part: the last of five is alone.
    let parts = |step: TinyStep| TinyStep { text_part: 2 * TEMPLATES + 1, ..step };
    let no_head = TinyStep {
        head: false,
        objective: Objective::new(0.0, 1.0),
        ..text(&Tower::ALL, &on(&[Target::Query, Target::Key, Target::Value]))
    };
    let dropped = |step: TinyStep| TinyStep { dropout: 0.25, ..step };
    let counts = ClassCounts { weighted: true, smoothing: 0.2 };
    let counted = TinyStep { objective: no_head.objective.with_counts(counts), ..no_head.clone() };
    let prompts = PromptSpec { count: 3, sharing: PromptSharing::Shared, mode: PromptMode::Replace };
    vec![
        ("MLP", on(&[Target::Expand, Target::Contract])),
        ("fc2 alone", on(&[Target::Contract])),
        ("every layer", every.clone()),
        ("both towers", text(&Tower::ALL, &lora)),
        ("text tower alone, every layer", text(&[Tower::Text], &every)),
        ("both towers, text in parts", parts(text(&Tower::ALL, &lora))),
        (
            "both towers, features mixed",
            TinyStep { mix: Some(MixOn::Features), ..text(&Tower::ALL, &on(&[Target::Value])) },
        ),
        ("dropout, every layer", dropped(every.clone())),
        ("dropout, both towers, text in parts", dropped(parts(text(&Tower::ALL, &every)))),
        ("dropout, prompts replaced", dropped(TinyStep { prompts: Some(prompts), ..every.clone() })),
        ("no head", no_head.clone()),
        ("no head, classes weighted", counted),
        ("three batches", TinyStep { accumulate: 3, ..lora.clone() }),
        ("no head, dropout, three batches", TinyStep { accumulate: 3, ..dropped(parts(no_head)) }),
    ]
}

/// Checks the gradient of every trained tensor of a few variants of the step, and hands out a row for each as it comes.
pub fn check(report: &mut dyn FnMut(Row)) -> Result<()> {
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
    let adapters = adapter_techniques(TinySizes { batch: 5, ..TinySizes::ODD }, 2);
    variants.extend(adapters.into_iter().map(|(name, step)| (name.to_string(), step)));
    // The only block is the first and the last for prompts.
    let one_block = techniques(seven, 1).into_iter().filter(|(_, step)| step.prompts.is_some());
    variants.extend(one_block.map(|(name, step)| (format!("{name}, one layer"), step)));
    variants.iter().try_for_each(|(name, tiny)| variant(name, tiny).map(&mut *report))
}

/// The batches of one step: images of the whole, their labels, how they are mixed.
struct Step {
    images: Tensor,
    labels: Vec<u32>,
    draw: Option<MixDraw>,
    class_weights: Option<Vec<f32>>,
    count: usize,
}

impl Step {
    fn new(tiny: &TinyStep) -> Result<Self> {
        let (images, labels) = tiny.batch()?;
        let draw = tiny.draw(labels.len(), 0);
        Ok(Step { images, labels, draw, class_weights: tiny.class_weights(0), count: tiny.accumulate })
    }

    /// The batches, as large as one another but for the last.
    fn batches(&self) -> Result<Vec<(Batch<'_>, MicroBatch)>> {
        let (all, size) = (self.labels.len(), self.labels.len().div_ceil(self.count));
        let batch = |number: usize| {
            let (start, end) = (number * size, all.min((number + 1) * size));
            let images = self.images.view().rows(start, end - start)?;
            let batch = Batch::new(images, &self.labels[start..end]);
            let micro =
                MicroBatch { place: Place::of(number, self.count), share: (end - start) as f64 / all as f64 };
            let class_weights = self.class_weights.as_deref();
            Ok((Batch { mix: self.draw.as_ref(), number: number as u32, class_weights, ..batch }, micro))
        };
        (0..self.count).map(batch).collect()
    }

    /// The mean loss over all images.
    fn loss(&self, learner: &mut Learner<Cpu<f64>>) -> Result<f64> {
        let mut loss = 0.0;
        for (batch, micro) in self.batches()? {
            loss += micro.share * learner.loss(batch)?;
        }
        Ok(loss)
    }

    /// Leaves the gradients of that loss in the trained tensors, whose values stay.
    fn gradients(&self, learner: &mut Learner<Cpu<f64>>) -> Result<()> {
        if self.count == 1 {
            return Ok(learner.gradients(self.batches()?[0].0)?);
        }
        for (batch, micro) in self.batches()? {
            learner.train(batch, micro, &Rates::STILL, 1.0)?;
        }
        Ok(())
    }
}

/// The worst error over all trained tensors of one variant.
fn variant(name: &str, tiny: &TinyStep) -> Result<Row> {
    let step = Step::new(tiny)?;
    let mut learner = tiny.learner()?;
    step.gradients(&mut learner)?;
    let start = learner.snapshot()?;
    let gradients: Vec<Tensor> = learner.params().into_iter().map(|p| p.gradient.clone()).collect();
    let mut error = 0.0f64;
    for (index, gradient) in gradients.iter().enumerate() {
        let x = start[index].typed::<f64>()?;
        let seed = index as u64;
        let one = against(x, gradient.typed::<f64>()?, seed, |moved| -> Result<f64> {
            let mut values = start.clone();
            values[index] = Tensor::from_slice(start[index].shape(), moved)?;
            learner.restore(&values)?;
            step.loss(&mut learner)
        })?;
        error = worse(error, one);
    }
    learner.restore(&start)?;
    Ok(Row::new(format!("step: {name}"), "f64", error, BOUND))
}
