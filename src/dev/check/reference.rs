//! Comparison with what PyTorch computed: a reference file from `tools/reference.py` and its model.
//!
//! The values to meet are the reference's f64 ones, so that the error is this engine's own and not that of
//! two f32 computations; next to it stands PyTorch's own error on the same numbers, in f32 or in bf16.

use super::{CheckError, Result, Row, euclidean_error, relative_error};
use crate::backend::{Backend, DeviceTensor};
use crate::clip::config::ClipConfig;
use crate::clip::text::TextClassifier;
use crate::clip::text::{self, EmbeddedPrompts, TextTower};
use crate::clip::tokenizer::TokenBatch;
use crate::clip::vision::{Normalisation, Savings, VisionTower};
use crate::clip::weights::Weights;
use crate::objective::{ClassCounts, MixDraw, MixOn, Objective};
use crate::optim::{Adamw, Rate, Rates};
use crate::progress::Silent;
use crate::settings::Precision;
use crate::tensor::{DType, Shape, Tensor};
use crate::train::learner::{Batch, Learner, LearnerSpec, MicroBatch, Which, loss_scaling};
use crate::tune::{
    DropoutSpec, Head, LoraSpec, Param, Place, PromptMode, PromptSharing, Prompts, Site, Target, Tower,
    Trained, lora::LoraInit,
};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Deserialize)]
struct Meta {
    variant: Variant,
    /// What PyTorch's own error is that of. The model's weights are numbers of it.
    #[serde(default = "single")]
    precision: Precision,
    with_lora: bool,
    targets: Vec<Target>,
    #[serde(default = "vision")]
    towers: Vec<Tower>,
    r: usize,
    alpha: f64,
    #[serde(default)]
    rslora: bool,
    #[serde(default)]
    dropout: f64,
    #[serde(default)]
    dropout_seed: u64,
    /// Prompts that the text tower computes together; 0 for all.
    #[serde(default)]
    text_chunk: usize,
    #[serde(default = "one")]
    accumulate: usize,
    /// Images of the last batch of an epoch; 0 for as many as the others have.
    #[serde(default)]
    last_batch: usize,
    clip_grad_norm: Option<f64>,
    #[serde(default = "unscaled")]
    head_scale: f64,
    text_weight: f64,
    triplet_weight: f64,
    margin: f64,
    /// As `torch.nn.CrossEntropyLoss` takes both, in the cross entropy that images are classified by.
    #[serde(default)]
    class_weights: Option<Vec<f64>>,
    #[serde(default)]
    label_smoothing: f64,
    templates: usize,
    steps: usize,
    betas: [f64; 2],
    eps: f64,
    hp: Hyper,
}

fn vision() -> Vec<Tower> {
    vec![Tower::Vision]
}

fn single() -> Precision {
    Precision::F32
}

fn one() -> usize {
    1
}

fn unscaled() -> f64 {
    1.0
}

/// Learning rate and weight decay per group, of those that are trained.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Hyper {
    head: [f64; 2],
    lora: [f64; 2],
    prompt: [f64; 2],
}

/// Trained parts and objective of a reference, under the names of `tools/reference.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Variant {
    Lora,
    Linear,
    MixupPixel,
    MixupFeat,
    Triplet,
    VptSharedReplace,
    VptLayerReplace,
    VptSharedAccum,
    VptLayerAccum,
    ClipLora,
}

impl Variant {
    fn prompts(self) -> Option<(PromptSharing, PromptMode)> {
        match self {
            Variant::VptSharedReplace => Some((PromptSharing::Shared, PromptMode::Replace)),
            Variant::VptLayerReplace => Some((PromptSharing::PerLayer, PromptMode::Replace)),
            Variant::VptSharedAccum => Some((PromptSharing::Shared, PromptMode::Accumulate)),
            Variant::VptLayerAccum => Some((PromptSharing::PerLayer, PromptMode::Accumulate)),
            _ => None,
        }
    }

    fn mix(self) -> Option<MixOn> {
        match self {
            Variant::MixupPixel => Some(MixOn::Pixels),
            Variant::MixupFeat => Some(MixOn::Features),
            _ => None,
        }
    }
}

impl Meta {
    fn has_lora(&self) -> bool {
        self.with_lora || !(self.variant.prompts().is_some() || self.variant == Variant::Linear)
    }

    fn has_head(&self) -> bool {
        self.variant != Variant::ClipLora
    }

    fn trains_text(&self) -> bool {
        self.has_lora() && self.towers.contains(&Tower::Text)
    }

    fn lora(&self) -> LoraSpec {
        LoraSpec {
            rslora: self.rslora,
            towers: self.towers.clone(),
            dropout: self.dropout,
            ..LoraSpec::new(self.r, self.alpha, &self.targets)
        }
    }

    fn objective(&self) -> Objective {
        let objective = Objective::new(if self.has_head() { 1.0 } else { 0.0 }, self.text_weight);
        let weighted = self.class_weights.is_some();
        let objective = objective.with_counts(ClassCounts { weighted, smoothing: self.label_smoothing });
        match self.variant {
            Variant::Triplet => objective.with_triplet(self.triplet_weight, self.margin),
            _ => objective,
        }
    }
}

struct Reference {
    path: PathBuf,
    bytes: Vec<u8>,
    meta: Meta,
}

impl Reference {
    fn read(path: &Path) -> Result<Self> {
        let problem = |problem: String| CheckError::Reference { path: path.into(), problem };
        let bytes = std::fs::read(path).map_err(|e| problem(format!("cannot be read ({e})")))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| problem(format!("not a safetensors file ({e})")))?;
        let meta = header.metadata().as_ref().and_then(|m| m.get("meta"));
        let meta = meta.ok_or_else(|| problem("has no settings in its metadata".into()))?;
        let meta: Meta =
            serde_json::from_str(meta).map_err(|e| problem(format!("has unusable settings ({e})")))?;
        Ok(Reference { path: path.into(), bytes, meta })
    }

    fn problem(&self, problem: String) -> CheckError {
        CheckError::Reference { path: self.path.clone(), problem }
    }

    fn names(&self) -> Result<Vec<String>> {
        let file = SafeTensors::deserialize(&self.bytes).map_err(|e| self.problem(e.to_string()))?;
        Ok(file.names().into_iter().map(String::from).collect())
    }

    /// The tensor `name` as f64.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let file = SafeTensors::deserialize(&self.bytes).map_err(|e| self.problem(e.to_string()))?;
        let view = file.tensor(name).map_err(|_| self.problem(format!("tensor {name} is missing")))?;
        let shape =
            Shape::try_from(view.shape()).map_err(|e| self.problem(format!("tensor {name} has {e}")))?;
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::BF16 => DType::BF16,
            Dtype::I64 => {
                let ints = view.data().chunks_exact(8).map(bytemuck::pod_read_unaligned::<i64>);
                let values: Vec<f64> = ints.map(|v| v as f64).collect();
                return Ok(Tensor::from_slice(shape, &values)?);
            }
            other => return Err(self.problem(format!("tensor {name} holds {other:?}"))),
        };
        Ok(crate::tensor::View::new(shape, dtype, view.data())?.to_tensor(DType::F64)?)
    }

    fn values(&self, name: &str) -> Result<Vec<f64>> {
        Ok(self.tensor(name)?.typed::<f64>()?.to_vec())
    }

    fn indices(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.values(name)?.into_iter().map(|v| v as u32).collect())
    }
}

/// The batches that the reference saw.
struct Batches {
    images: Vec<Tensor>,
    labels: Vec<Vec<u32>>,
    /// Empty where nothing is mixed.
    draws: Vec<MixDraw>,
    /// Images of the last batch in a run; the whole of it has been made for the passes alone.
    last: usize,
    /// Class weights in each batch of a run, scaled to a mean of 1 over its images; none where all count the same.
    class_weights: Option<Vec<Vec<f32>>>,
    accumulate: usize,
}

impl Batches {
    fn read(reference: &Reference, side: usize) -> Result<Self> {
        let shape = reference.tensor("batch.labels")?.shape();
        let batch = shape.columns();
        if shape.rows() == 0 || batch == 0 {
            return Err(reference.problem("has no batches".into()));
        }
        let pixels = reference.tensor("batch.pixel_values")?;
        let image = |t| {
            let rows = pixels.view().rows(t, 1)?.to_tensor(DType::F64)?;
            Ok(rows.reshape([batch, 3, side, side])?)
        };
        let images = (0..shape.rows()).map(image).collect::<Result<_>>()?;
        let split = |values: Vec<u32>| values.chunks_exact(batch).map(<[u32]>::to_vec).collect::<Vec<_>>();
        let draws = match reference.meta.variant.mix() {
            None => Vec::new(),
            Some(_) => {
                let lambda = reference.values("batch.lam")?;
                let partners = split(reference.indices("batch.perm")?).into_iter();
                let draw = |(partner, lambda): (_, &[f64])| MixDraw {
                    partner,
                    lambda: lambda.iter().map(|&l| l as f32).collect(),
                };
                partners.zip(lambda.chunks_exact(batch)).map(draw).collect()
            }
        };
        let meta = &reference.meta;
        let last = if meta.last_batch == 0 { batch } else { meta.last_batch.min(batch) };
        let labels = split(reference.indices("batch.labels")?);
        // torch's mean is over the weights of the labels.
        let of_batch = |weights: &[f64], labels: &[u32]| {
            let sum: f64 = labels.iter().map(|&label| weights[label as usize]).sum();
            weights.iter().map(|weight| (weight * labels.len() as f64 / sum) as f32).collect()
        };
        let class_weights = meta.class_weights.as_ref();
        let class_weights =
            class_weights.map(|weights| labels.iter().map(|labels| of_batch(weights, labels)).collect());
        Ok(Batches { images, labels, draws, last, class_weights, accumulate: meta.accumulate.max(1) })
    }

    fn size(&self) -> usize {
        self.labels[0].len()
    }

    /// The whole of the first batch.
    fn first(&self) -> Batch<'_> {
        let class_weights = self.class_weights(0);
        Batch { mix: self.draws.first(), class_weights, ..Batch::new(self.images[0].view(), &self.labels[0]) }
    }

    fn class_weights(&self, index: usize) -> Option<&[f32]> {
        self.class_weights.as_ref().map(|weights| weights[index].as_slice())
    }

    /// The images of batch `index` of an epoch that a run sees.
    fn seen(&self, index: usize) -> usize {
        if index + 1 == self.images.len() { self.last } else { self.size() }
    }

    /// Batch `t` of a run, as one of its step's.
    fn of(&self, t: usize) -> Result<(Batch<'_>, MicroBatch)> {
        let index = t % self.images.len();
        let start = index / self.accumulate * self.accumulate;
        let end = self.images.len().min(start + self.accumulate);
        let (seen, of_step) = (self.seen(index), (start..end).map(|i| self.seen(i)).sum::<usize>());
        let images = self.images[index].view().rows(0, seen)?;
        let batch = Batch::new(images, &self.labels[index][..seen]);
        let micro =
            MicroBatch { place: Place::of(index - start, end - start), share: seen as f64 / of_step as f64 };
        let class_weights = self.class_weights(index);
        Ok((Batch { mix: self.draws.get(index), number: t as u32, class_weights, ..batch }, micro))
    }
}

/// Features as the head gets them: mixed where they are what is mixed.
fn features(features: &Tensor, on: Option<MixOn>, draw: Option<&MixDraw>) -> Result<Vec<f64>> {
    let (width, f) = (features.shape().columns(), f64s(features)?);
    let (Some(MixOn::Features), Some(draw)) = (on, draw) else { return Ok(f) };
    let mixed = (0..f.len()).map(|i| {
        let (row, column) = (i / width, i % width);
        let (own, partner) = (f64::from(draw.lambda[row]), draw.partner[row] as usize);
        own * f[i] + (1.0 - own) * f[partner * width + column]
    });
    Ok(mixed.collect())
}

/// The name of a layer's adapter in the reference.
fn adapter(site: Site) -> String {
    let Site { tower, layer, target } = site;
    let prefix = if tower == Tower::Text { "text_" } else { "" };
    format!("{prefix}lora.{layer}.{target}")
}

fn f64s(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.view().to_tensor(DType::F64)?.typed::<f64>()?.to_vec())
}

/// What an error is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Scale,
    /// Logits too.
    Features,
    Loss,
    Gradient,
    /// In the text tower.
    TextGradient,
    /// Of all gradients, as one vector.
    GradientNorm,
    /// Trained tensors after the last step.
    Trained,
}

impl Kind {
    /// What all tensors of the kind are called, where they are judged together, and how many times as large as PyTorch's
    /// own their error in bf16 may be. Over 40 references of small models with four seeds it is 0.9 times as large at the
    /// median; at the most 1.4 times for gradients, of which there are many, and 1.5 times for the others. Two of the
    /// triplet loss are not among them, one of which fails: where rounding chooses another hardest image, the gradient is another one.
    fn together(self) -> Option<(&'static str, f64)> {
        match self {
            Kind::Features => Some(("features and logits", 2.0)),
            Kind::Gradient => Some(("gradients", 1.5)),
            Kind::TextGradient => Some(("gradients of the text tower", 2.0)),
            Kind::Trained => Some(("trained tensors after the steps", 2.0)),
            Kind::Scale | Kind::Loss | Kind::GradientNorm => None,
        }
    }
}

/// Tensors that are too few to be judged together: one element may decide.
const FEW: usize = 3;

/// Half a step of the 8 digits of bf16: the most that rounding changes a number by, relative to it.
const BF16_ROUNDOFF: f64 = 1.0 / 256.0;

/// The errors that pass for what is computed in one type.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    dtype: DType,
    /// Blocks of the deeper tower.
    layers: usize,
}

impl Bounds {
    fn of(self, kind: Kind) -> f64 {
        if self.dtype == DType::BF16 {
            return self.of_bf16(kind);
        }
        match kind {
            Kind::Scale => 1e-6,
            Kind::Features | Kind::Loss | Kind::Trained => 1e-5,
            Kind::Gradient | Kind::TextGradient | Kind::GradientNorm => 1e-4,
        }
    }

    /// A block rounds its activations some ten times on the way there and as often on the way back. These errors have
    /// no part in each other: they add up as the square root of their number. Losses are means over images, in which most
    /// of it cancels, whatever the depth.
    ///
    /// Of the same references the worst is 0.8 of the bound for features, 0.6 for losses, 0.7 for gradients, 0.8 in the text
    /// tower, where of the gradient of the class features only the part across them is left, 0.5 for gradient norms and
    /// 0.4 for trained tensors; PyTorch's own 1.1, 0.8, 0.7, 0.7, 0.9 and 0.4. Of ViT-B/32 it is 0.4 and 0.3 for features
    /// and gradients.
    fn of_bf16(self, kind: Kind) -> f64 {
        let roundings = |count: f64| count * BF16_ROUNDOFF;
        let per_block = |count: f64| roundings(count) * (self.layers as f64).sqrt();
        match kind {
            // A number of the file, which is not rounded.
            Kind::Scale => 1e-6,
            Kind::Features => per_block(4.0),
            Kind::Loss => roundings(3.0),
            Kind::Gradient => per_block(12.0),
            Kind::TextGradient => per_block(24.0),
            Kind::GradientNorm => roundings(6.0),
            // Of the way that the tensor went. AdamW's steps are as long for a gradient near zero, and where that is
            // rounded to the other side of zero, the element goes the other way: one in 16 makes this error. A tensor
            // that stays where it is has an error of 1, and one that goes the other way throughout has 2.
            Kind::Trained => 0.5,
        }
    }
}

/// The rows of the comparison, and what they come to together.
struct Rows {
    rows: Vec<Row>,
    bounds: Bounds,
    /// Squares of the errors of all tensors of a kind, ours and PyTorch's, and their number.
    together: BTreeMap<Kind, ([f64; 2], usize)>,
}

impl Rows {
    fn new(bounds: Bounds) -> Self {
        Rows { rows: Vec::new(), bounds, together: BTreeMap::new() }
    }

    /// A row for one tensor, whose error is `measure(found, exact)`.
    fn add(&mut self, kind: Kind, name: String, values: Values<'_>, measure: fn(&[f64], &[f64]) -> f64) {
        let Values { ours, exact, peer } = values;
        let (at, bound) = (self.bounds.dtype.name(), self.bounds.of(kind));
        let row = Row::new(name, at, measure(ours, exact), bound);
        self.rows.push(Row { peer: peer.map(|peer| measure(peer, exact)), ..row });
        if let Some(peer) = peer {
            let (squares, count) = self.together.entry(kind).or_default();
            for (sum, found) in squares.iter_mut().zip([ours, peer]) {
                *sum += euclidean_error(found, exact).powi(2);
            }
            *count += 1;
        }
    }

    /// A row for all tensors of each kind, of a start: single errors are larger and smaller than PyTorch's by chance.
    fn add_together(&mut self, prefix: &str) {
        for (kind, (squares, count)) in std::mem::take(&mut self.together) {
            let Some((name, peers)) = kind.together().filter(|_| count > FEW) else { continue };
            let [ours, peer] = squares.map(|sum| (sum / count as f64).sqrt());
            let row = Row::new(format!("{prefix}all {name}"), self.bounds.dtype.name(), ours, peers * peer);
            self.rows.push(Row { peer: Some(peer), ..row });
        }
    }
}

/// A tensor as it is here, as it should be, and as PyTorch has it in the precision of the reference.
#[derive(Clone, Copy)]
struct Values<'a> {
    ours: &'a [f64],
    exact: &'a [f64],
    peer: Option<&'a [f64]>,
}

/// One start of the trained tensors: B = 0 as in training, or B ≠ 0 ("warm.").
#[derive(Clone, Copy)]
struct Start<'a> {
    reference: &'a Reference,
    prefix: &'static str,
}

impl Start<'_> {
    /// Adds a row comparing `ours` with what the reference has of this start under `name` in f64.
    fn compare(&self, rows: &mut Rows, kind: Kind, label: &str, name: &str, ours: &[f64]) -> Result<()> {
        let Start { reference, prefix } = self;
        let exact = reference.values(&format!("{prefix}f64.{name}"))?;
        let peer = reference.values(&format!("{prefix}{}.{name}", self.peer())).ok();
        let values = Values { ours, exact: &exact, peer: peer.as_deref() };
        rows.add(kind, format!("{prefix}{label}"), values, relative_error);
        Ok(())
    }

    /// The type that PyTorch's own errors are those of.
    fn peer(&self) -> DType {
        self.reference.meta.precision.into()
    }

    /// Makes sure that every adapter is there.
    fn check(&self, config: &ClipConfig) -> Result<()> {
        let meta = &self.reference.meta;
        for &tower in &meta.towers {
            let sizes = if tower == Tower::Text { &config.text.tower } else { &config.vision.tower };
            for (layer, &target) in (0..sizes.layers).flat_map(|l| meta.targets.iter().map(move |t| (l, t))) {
                let name = adapter(Site { tower, layer, target });
                for part in ["A", "B"] {
                    self.reference.tensor(&format!("{}init.{name}.{part}", self.prefix))?;
                }
            }
        }
        Ok(())
    }
}

impl LoraInit for Start<'_> {
    fn start(&mut self, site: Site, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let part = |part: &str, shape: [usize; 2]| {
            let name = format!("{}init.{}.{part}", self.prefix, adapter(site));
            // [`Start::check`] has made sure that every tensor is there.
            self.reference.tensor(&name).unwrap_or_else(|_| Tensor::zeros(shape, DType::F64))
        };
        let rank = self.reference.meta.r;
        (part("A", [rank, inputs]), part("B", [outputs, rank]))
    }
}

/// Largest error of a single prompt element after the last step, relative to the largest element; where
/// PyTorch's own f32 is farther off than that from its f64, as among the 150 000 elements of a full-size
/// model, so many times its error.
const PROMPT_BOUND: f64 = 2e-4;
const PROMPT_PEERS: f64 = 5.0;

/// Compares this engine on `backend` with the reference; one row per quantity. The bounds are those of
/// f32: features 1e-5, gradients 1e-4, losses 1e-5, trained tensors after the last step 1e-5; in bf16 see
/// the source, `Bounds::of_bf16`.
///
/// Errors are relative to the largest value of their tensor. Only after the last step each adapter, A and B
/// together, is measured as one vector, |error|/|adapter|: a B that started at zero is as small as the
/// learning rate then, and where its gradient is near zero AdamW turns rounding into whole steps, in
/// PyTorch's f32 as in any other. Prompts, whose steps are a quarter as large as themselves, are measured both
/// as a vector and, with a bound of 2e-4, by their worst element.
///
/// In bf16 what is trained is measured by the way it went, |error|/|after − before|: five steps move an adapter by
/// less than 1e-2 of itself, so that it would pass without any. And all tensors of a kind together, each by
/// |error|/|tensor|, may be no more than so many times as far off as PyTorch's own in bf16: `Kind::together`.
pub fn check<B: Backend>(backend: &B, model: &Path, reference: &Path) -> Result<Vec<Row>> {
    let reference = Reference::read(reference)?;
    let config = ClipConfig::load(model)?;
    let weights = Weights::open(model)?;
    weights.check(&config)?;
    let mut comparison = Comparison::of_text(backend, &reference, &config, &weights)?;
    let names = reference.names()?;
    for prefix in ["", "warm."] {
        if names.iter().any(|name| name.starts_with(&format!("{prefix}init."))) {
            comparison.of_start(Start { reference: &reference, prefix }, &names)?;
        }
    }
    Ok(comparison.rows.rows)
}

/// A model that stands beside a reference, with the text tower and what it makes of the reference's prompts.
struct Comparison<'a, B: Backend> {
    backend: &'a B,
    reference: &'a Reference,
    config: &'a ClipConfig,
    weights: &'a Weights,
    text_tower: Arc<TextTower<B>>,
    text_prompts: EmbeddedPrompts,
    text: TextClassifier,
    rows: Rows,
}

impl<'a, B: Backend> Comparison<'a, B> {
    /// Computes the class features of the frozen text tower and compares them.
    fn of_text(
        backend: &'a B,
        reference: &'a Reference,
        config: &'a ClipConfig,
        weights: &'a Weights,
    ) -> Result<Self> {
        let shape = reference.tensor("text.input_ids")?.shape();
        let ids = reference.indices("text.input_ids")?;
        let len = shape.columns();
        let eos_rows = ids.chunks_exact(len).map(|row| config.text.pooled_position(row)).collect();
        let tokens = TokenBatch { ids, len, rows: shape.rows(), eos_rows, cut: Vec::new() };
        let tower = TextTower::load(backend, weights, &config.text, config.projection)?;
        let features = tower.features(backend, weights, &tokens, &[], &Silent)?;
        let templates = reference.meta.templates;
        let classes = text::class_features(&features, templates)?;
        let layers = config.vision.tower.layers.max(config.text.tower.layers);
        let bounds = Bounds { dtype: backend.compute_dtype(), layers };
        let (start, mut rows) = (Start { reference, prefix: "" }, Rows::new(bounds));
        start.compare(
            &mut rows,
            Kind::Features,
            "text features",
            "text_features",
            classes.typed::<f64>()?,
        )?;
        let scale = text::logit_scale(weights)?;
        start.compare(&mut rows, Kind::Scale, "logit scale", "logit_scale", &[scale.ln()])?;
        Ok(Comparison {
            backend,
            reference,
            config,
            weights,
            text_tower: Arc::new(tower),
            text_prompts: EmbeddedPrompts::new(weights, &config.text, &tokens, templates)?,
            text: TextClassifier { features: classes, scale },
            rows,
        })
    }

    /// Compares the passes from `start`, and the steps where the reference, which has tensors of these `names`, has any.
    fn of_start(&mut self, start: Start<'_>, names: &[String]) -> Result<()> {
        let meta = &self.reference.meta;
        let batches = Batches::read(self.reference, self.config.vision.image_size)?;
        let mut learner = self.learner(start, batches.size())?;
        let batch = batches.first();
        self.of_evaluation(&mut learner, start, batch)?;
        learner.loss(batch)?;
        let rows = &mut self.rows;
        let features = features(&learner.features()?, meta.variant.mix(), batch.mix)?;
        start.compare(rows, Kind::Features, "features", "features", &features)?;
        let (head, text) = learner.logits()?;
        if meta.has_head() {
            start.compare(rows, Kind::Features, "head_logits", "head_logits", &f64s(&head)?)?;
        }
        start.compare(rows, Kind::Features, "text_logits", "text_logits", &f64s(&text)?)?;
        learner.gradients(batch)?;
        let stats = learner.stats()?;
        let mut losses = vec![(stats.loss, "loss"), (stats.parts.loss_text, "ce_text")];
        if meta.has_head() {
            losses.push((stats.parts.loss_head, "ce_head"));
        }
        if meta.variant == Variant::Triplet {
            losses.push((stats.parts.loss_triplet, "triplet"));
        }
        for (value, what) in losses {
            start.compare(rows, Kind::Loss, what, what, &[value])?;
        }
        // In f16 the gradients are computed as many times too large as the loss is scaled.
        let loss_scale = loss_scaling(self.backend).map_or(1.0, |scaling| scaling.start);
        for (tensor, mut values) in self.named(&learner, |p| &p.gradient)? {
            values.iter_mut().for_each(|value| *value /= loss_scale);
            let (label, name) = (format!("grad {tensor}"), format!("grad.{tensor}"));
            let kind = if tensor.starts_with("text_") { Kind::TextGradient } else { Kind::Gradient };
            start.compare(&mut self.rows, kind, &label, &name, &values)?;
        }
        if names.contains(&format!("{}f64.traj.loss", start.prefix)) {
            self.of_steps(&mut learner, start, &batches, names)?;
        }
        // Without a peer in bf16 there is nothing that they could be judged by.
        if [self.rows.bounds.dtype, meta.precision.into()] == [DType::BF16; 2] {
            self.rows.add_together(start.prefix);
        }
        Ok(())
    }

    /// Features and logits of evaluation, with the adapters folded into the weights, and without dropout.
    fn of_evaluation(&mut self, learner: &mut Learner<B>, start: Start<'_>, batch: Batch<'_>) -> Result<()> {
        let (meta, rows) = (&self.reference.meta, &mut self.rows);
        let on = meta.variant.mix();
        let name = |what: &str| format!("{}{what}", if meta.dropout > 0.0 { "eval." } else { "" });
        // Evaluation mixes nothing; features can be mixed behind it, pixels cannot.
        if on == Some(MixOn::Pixels) {
            return Ok(());
        }
        learner.evaluate(batch.input, batch.labels, Which::Tuned)?;
        let features = features(&learner.features()?, on, batch.mix)?;
        start.compare(rows, Kind::Features, "features, folded", &name("features"), &features)?;
        if on.is_some() {
            return Ok(());
        }
        let (head, text) = learner.logits()?;
        // A head that is not trained gives the logits of the text features.
        let of_head = name(if meta.has_head() { "head_logits" } else { "text_logits" });
        start.compare(rows, Kind::Features, "head_logits, folded", &of_head, &f64s(&head)?)?;
        start.compare(rows, Kind::Features, "text_logits, folded", &name("text_logits"), &f64s(&text)?)
    }

    /// The steps of the reference, from the start: losses and final tensors.
    fn of_steps(
        &mut self,
        learner: &mut Learner<B>,
        start: Start<'_>,
        batches: &Batches,
        names: &[String],
    ) -> Result<()> {
        let Start { reference, prefix } = start;
        let hp = &reference.meta.hp;
        let rate = |[learning_rate, weight_decay]: [f64; 2]| Rate { learning_rate, weight_decay };
        let rates = Rates { head: rate(hp.head), lora: rate(hp.lora), prompt: rate(hp.prompt) };
        let (steps, mut losses, mut norms) = (reference.meta.steps, Vec::new(), Vec::new());
        while norms.len() < steps {
            let (batch, micro) = batches.of(losses.len())?;
            learner.train(batch, micro, &rates, 1.0)?;
            let stats = learner.stats()?;
            losses.push(stats.loss);
            if micro.place.completes() {
                norms.push(stats.grad_norm);
            }
        }
        let rows = &mut self.rows;
        start.compare(rows, Kind::Loss, &format!("loss of {steps} steps"), "traj.loss", &losses)?;
        // Files of before have none.
        if names.contains(&format!("{prefix}f64.traj.grad_norm")) {
            let label = format!("gradient norm of {steps} steps");
            start.compare(rows, Kind::GradientNorm, &label, "traj.grad_norm", &norms)?;
        }
        for (name, tensors) in adapters(self.named(learner, |p| &p.value)?) {
            self.after_steps(start, &name, &tensors)?;
        }
        Ok(())
    }

    /// Compares the tensors of `name` after the last step.
    fn after_steps(&mut self, start: Start<'_>, name: &str, tensors: &[(String, Vec<f64>)]) -> Result<()> {
        let Start { reference, prefix } = start;
        let joined = |of: &str| -> Result<Vec<f64>> {
            let each = tensors.iter().map(|(tensor, _)| reference.values(&format!("{prefix}{of}.{tensor}")));
            Ok(each.collect::<Result<Vec<_>>>()?.concat())
        };
        let mut ours: Vec<f64> = tensors.iter().flat_map(|(_, values)| values).copied().collect();
        let mut exact = joined("f64.traj.final")?;
        let mut peer = joined(&format!("{}.traj.final", start.peer())).ok();
        let mut label = format!("{prefix}{name} after {} steps", reference.meta.steps);
        if self.rows.bounds.dtype == DType::BF16 {
            let before = joined("init")?;
            for after in [Some(&mut ours), Some(&mut exact), peer.as_mut()].into_iter().flatten() {
                after.iter_mut().zip(&before).for_each(|(after, before)| *after -= before);
            }
            label += ", of the way";
        } else if name == "prompt" {
            let peer = peer.as_ref().map(|peer| relative_error(peer, &exact));
            // PyTorch's bf16 is no measure of f32.
            let comparable = peer.filter(|&peer| peer > PROMPT_BOUND && start.peer() == DType::F32);
            let bound = PROMPT_BOUND.max(comparable.unwrap_or(0.0) * PROMPT_PEERS);
            let error = relative_error(&ours, &exact);
            let row =
                Row::new(format!("{label}, worst element"), self.rows.bounds.dtype.name(), error, bound);
            self.rows.rows.push(Row { peer, ..row });
        }
        let values = Values { ours: &ours, exact: &exact, peer: peer.as_deref() };
        self.rows.add(Kind::Trained, label, values, euclidean_error);
        Ok(())
    }

    /// A learner for batches of up to `batch` images, at `start`.
    fn learner(&self, start: Start<'_>, batch: usize) -> Result<Learner<B>> {
        let Comparison { backend, reference, config, weights, .. } = *self;
        let meta = &reference.meta;
        let vision = &config.vision;
        let pixels = Normalisation::CLIP;
        let tower = VisionTower::load(backend, weights, vision, config.projection, pixels, Savings::ALL)?;
        let [lora, text_lora] = if meta.has_lora() {
            let mut init = start;
            init.check(config)?;
            let spec = meta.lora();
            [tower.adapters(backend, &spec, &mut init)?, self.text_tower.adapters(backend, &spec, &mut init)?]
        } else {
            [Vec::new(), Vec::new()]
        };
        let trained = Trained { lora, text_lora, prompts: self.prompts(start)?, head: self.head(start)? };
        let dropout = (meta.dropout > 0.0).then_some(meta.dropout);
        let image = Shape::from([3, vision.image_size, vision.image_size]);
        let spec = LearnerSpec {
            mix: meta.variant.mix(),
            adamw: Adamw { beta1: meta.betas[0], beta2: meta.betas[1], eps: meta.eps },
            dropout: dropout.map(|probability| DropoutSpec { probability, seed: meta.dropout_seed }),
            clip: meta.clip_grad_norm,
            accumulate: meta.accumulate > 1,
            ..LearnerSpec::new(backend, batch, image, backend.compute_dtype(), meta.objective())
        };
        let learner = Learner::new(backend.clone(), Arc::new(tower), trained, &self.text, &spec)?;
        if !meta.trains_text() {
            return Ok(learner);
        }
        let part = if meta.text_chunk == 0 { usize::MAX } else { meta.text_chunk };
        Ok(learner.with_text_tower(self.text_tower.clone(), &self.text_prompts, part)?)
    }

    /// The head of the reference; one that is not trained where it has none.
    fn head(&self, start: Start<'_>) -> Result<Head<B>> {
        if !start.reference.meta.has_head() {
            let weight = &self.text.features;
            let bias = Tensor::zeros([weight.shape().rows()], DType::F64);
            return Ok(Head { trained: false, ..Head::new(self.backend, weight.view(), bias.view())? });
        }
        let part = |part: &str| start.reference.tensor(&format!("{}init.head.{part}", start.prefix));
        let head = Head::new(self.backend, part("weight")?.view(), part("bias")?.view())?;
        Ok(head.scaled(start.reference.meta.head_scale))
    }

    /// The prompts of the reference, if it has any.
    fn prompts(&self, start: Start<'_>) -> Result<Option<Prompts<B>>> {
        let Some((sharing, mode)) = start.reference.meta.variant.prompts() else { return Ok(None) };
        let initial = start.reference.tensor(&format!("{}init.prompt", start.prefix))?;
        let initial = match (sharing, initial.shape().dims()) {
            (PromptSharing::Shared, &[count, width]) => initial.reshape([1, count, width])?,
            (PromptSharing::PerLayer, [_, _, _]) => initial,
            (_, _) => {
                let problem = format!("tensor init.prompt has shape {}", initial.shape());
                return Err(start.reference.problem(problem));
            }
        };
        Ok(Some(Prompts::new(self.backend, mode, initial.view())?))
    }

    /// One tensor of every trained parameter under the reference's names, those of each adapted layer apart.
    fn named(
        &self,
        learner: &Learner<B>,
        of: impl Fn(&Param<B>) -> &B::Tensor,
    ) -> Result<Vec<(String, Vec<f64>)>> {
        let values = |param: &Param<B>| f64s(&self.backend.download(of(param))?);
        let (head, mut named) = (learner.head(), Vec::new());
        if head.trained {
            named.push(("head.weight".to_string(), values(&head.weight)?));
            named.push(("head.bias".to_string(), values(&head.bias)?));
        }
        if let Some(prompts) = learner.prompts() {
            named.push(("prompt".to_string(), values(&prompts.param)?));
        }
        for (tower, blocks) in [(Tower::Vision, learner.lora()), (Tower::Text, learner.text_lora())] {
            let layers = blocks.iter().enumerate();
            for (layer, lora) in layers.flat_map(|(layer, block)| block.adapters().map(move |l| (layer, l))) {
                for (param, part) in [(&lora.a, "A"), (&lora.b, "B")] {
                    let values = values(param)?;
                    let each = param.value.shape().elements() / lora.targets.len();
                    for (&target, values) in lora.targets.iter().zip(values.chunks_exact(each)) {
                        let name = adapter(Site { tower, layer, target });
                        named.push((format!("{name}.{part}"), values.to_vec()));
                    }
                }
            }
        }
        Ok(named)
    }
}

/// Trained tensors by what they belong to: A and B of an adapter together, the others alone.
fn adapters(tensors: Vec<(String, Vec<f64>)>) -> BTreeMap<String, Vec<(String, Vec<f64>)>> {
    let mut groups = BTreeMap::<String, Vec<_>>::new();
    for (tensor, values) in tensors {
        let name = tensor.strip_suffix(".A").or(tensor.strip_suffix(".B")).unwrap_or(&tensor);
        groups.entry(name.to_string()).or_default().push((tensor, values));
    }
    groups
}
