//! Comparison with what PyTorch computed: a reference file from `tools/reference.py` and its model.
//!
//! The values to meet are the reference's f64 ones, so that the error is this engine's own and not that of
//! two f32 computations; next to it stands PyTorch's own f32 error on the same numbers.

use super::{CheckError, Row, euclidean_error, relative_error};
use crate::backend::{Backend, DeviceTensor};
use crate::clip::config::ClipConfig;
use crate::clip::text::{self, TextTower};
use crate::clip::tokenizer::TokenBatch;
use crate::clip::vision::{Normalisation, Purpose, Savings, VisionTower};
use crate::clip::weights::Weights;
use crate::objective::Objective;
use crate::optim::{Adamw, Rate, Rates};
use crate::progress::Silent;
use crate::tensor::{DType, Shape, Tensor, TensorError};
use crate::train::learner::{Batch, Learner, LearnerSpec, TextClassifier, loss_scaling};
use crate::tune::{Head, LoraSpec, Param, Target, Trained, lora::LoraInit};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The settings a reference was made with.
#[derive(Debug, Deserialize)]
struct Meta {
    variant: String,
    targets: Vec<Target>,
    r: usize,
    alpha: f64,
    text_weight: f64,
    templates: usize,
    steps: usize,
    betas: [f64; 2],
    eps: f64,
    hp: Hyper,
}

/// Learning rate and weight decay per group.
#[derive(Debug, Deserialize)]
struct Hyper {
    head: [f64; 2],
    lora: [f64; 2],
}

/// A reference file in memory.
struct Reference {
    path: PathBuf,
    bytes: Vec<u8>,
    meta: Meta,
}

type Result<T> = std::result::Result<T, CheckError>;

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
        if !matches!(meta.variant.as_str(), "lora" | "linear") {
            return Err(problem(format!("variant {:?} is not one of lora, linear", meta.variant)));
        }
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
        let shape = Shape::try_from(view.shape())
            .map_err(|rank| self.problem(format!("tensor {name} has {rank} dimensions")))?;
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
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

/// One start of the trained tensors: B = 0 as in training, or B ≠ 0 ("warm.").
struct Start<'a> {
    reference: &'a Reference,
    prefix: &'static str,
}

impl LoraInit for Start<'_> {
    fn start(&mut self, layer: usize, target: Target, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let part = |part: &str, shape: [usize; 2]| {
            let name = format!("{}init.lora.{layer}.{target}.{part}", self.prefix);
            // Asked for before: `starts` has made sure that every tensor is there.
            self.reference.tensor(&name).unwrap_or_else(|_| Tensor::zeros(shape, DType::F64))
        };
        let rank = self.reference.meta.r;
        (part("A", [rank, inputs]), part("B", [outputs, rank]))
    }
}

/// Compares this engine on `backend` with the reference; one row per quantity. The bounds are those of
/// f32: features 1e-5, gradients 1e-4, losses 1e-5, trained tensors after the last step 1e-5.
///
/// Errors are relative to the largest value of their tensor. Only after the last step each adapter, A and B
/// together, is measured as one vector, |error|/|adapter|: a B that started at zero is as small as the
/// learning rate then, and where its gradient is near zero AdamW turns rounding into whole steps, in
/// PyTorch's f32 as in any other.
pub fn check<B: Backend>(backend: &B, model: &Path, reference: &Path) -> Result<Vec<Row>> {
    let reference = Reference::read(reference)?;
    let config = ClipConfig::load(model)?;
    let weights = Weights::open(model)?;
    weights.check(&config)?;
    let mut rows = Vec::new();
    let text = text_features(backend, &reference, &config, &weights, &mut rows)?;
    let names = reference.names()?;
    for prefix in ["", "warm."] {
        if names.iter().any(|name| name.starts_with(&format!("{prefix}init."))) {
            let start = Start { reference: &reference, prefix };
            compare_start(backend, &start, &config, &weights, &text, &names, &mut rows)?;
        }
    }
    Ok(rows)
}

/// Adds a row comparing `ours` with the reference's f64 `name`; where the reference also has f32, its own
/// error is shown.
fn row(
    rows: &mut Vec<Row>,
    reference: &Reference,
    label: String,
    name: &str,
    ours: &[f64],
    bound: f64,
) -> Result<()> {
    let (prefix, quantity) = name.split_once("f64.").unwrap_or(("", name));
    let exact = reference.values(name)?;
    let peer = reference.values(&format!("{prefix}f32.{quantity}"));
    let peer = peer.ok().map(|peer| relative_error(&peer, &exact));
    rows.push(Row { name: label, at: "f32".into(), error: relative_error(ours, &exact), bound, peer });
    Ok(())
}

fn to_f64<B: Backend>(backend: &B, tensor: &B::Tensor) -> Result<Vec<f64>> {
    Ok(backend.download(tensor)?.view().to_tensor(DType::F64)?.typed::<f64>()?.to_vec())
}

fn text_features<B: Backend>(
    backend: &B,
    reference: &Reference,
    config: &ClipConfig,
    weights: &Weights,
    rows: &mut Vec<Row>,
) -> Result<TextClassifier> {
    let shape = reference.tensor("text.input_ids")?.shape();
    let ids = reference.indices("text.input_ids")?;
    let len = shape.columns();
    let eos_rows = ids.chunks_exact(len).map(|row| config.text.pooled_position(row)).collect();
    let tokens = TokenBatch { ids, len, rows: shape.rows(), eos_rows };
    let tower = TextTower::load(backend, weights, &config.text, config.projection)?;
    let features = tower.features(backend, weights, &tokens, &Silent)?;
    let classes = text::class_features(&features, reference.meta.templates)?;
    row(rows, reference, "text features".into(), "f64.text_features", classes.typed::<f64>()?, 1e-5)?;
    let scale = text::logit_scale(weights)?;
    row(rows, reference, "logit scale".into(), "f64.logit_scale", &[scale.ln()], 1e-6)?;
    Ok(TextClassifier { features: classes, scale })
}

fn compare_start<B: Backend>(
    backend: &B,
    start: &Start<'_>,
    config: &ClipConfig,
    weights: &Weights,
    text: &TextClassifier,
    names: &[String],
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (reference, prefix) = (start.reference, start.prefix);
    let pixels = reference.tensor("batch.pixel_values")?;
    let labels = reference.indices("batch.labels")?;
    let batch = labels.len() / pixels.shape().rows();
    let side = config.vision.image_size;
    let mut learner = build(backend, start, config, weights, text, batch)?;
    let image = |t: usize| -> std::result::Result<Tensor, TensorError> {
        pixels
            .view()
            .rows(t % pixels.shape().rows(), 1)?
            .to_tensor(DType::F64)?
            .reshape([batch, 3, side, side])
    };
    let labels_of = |t: usize| &labels[t % pixels.shape().rows() * batch..][..batch];

    learner.evaluate(image(0)?.view(), labels_of(0))?;
    let features = learner.features()?.view().to_tensor(DType::F64)?;
    let label = |what: &str| format!("{prefix}{what}");
    let name = |what: &str| format!("{prefix}f64.{what}");
    let features = features.typed::<f64>()?;
    row(rows, reference, label("features, folded"), &name("features"), features, 1e-5)?;
    let (head, text_logits) = learner.logits()?;
    for (logits, what) in [(head, "head_logits"), (text_logits, "text_logits")] {
        let logits = logits.view().to_tensor(DType::F64)?;
        row(rows, reference, label(what), &name(what), logits.typed::<f64>()?, 1e-5)?;
    }
    learner.gradients(Batch::new(image(0)?.view(), labels_of(0)))?;
    let features = learner.features()?.view().to_tensor(DType::F64)?;
    row(rows, reference, label("features"), &name("features"), features.typed::<f64>()?, 1e-5)?;
    let stats = learner.stats()?;
    for (value, what) in [(stats.loss, "loss"), (stats.loss_head, "ce_head"), (stats.loss_text, "ce_text")] {
        row(rows, reference, label(what), &name(what), &[value], 1e-5)?;
    }
    // In f16 the gradients are computed as many times too large as the loss is scaled.
    let loss_scale = loss_scaling(learner.backend()).map_or(1.0, |scaling| scaling.start);
    for (tensor, mut values) in named(&learner, |p| &p.gradient)? {
        values.iter_mut().for_each(|value| *value /= loss_scale);
        let gradient = label(&format!("grad {tensor}"));
        row(rows, reference, gradient, &name(&format!("grad.{tensor}")), &values, 1e-4)?;
    }
    if names.contains(&name("traj.loss")) {
        run(&mut learner, reference, prefix, |t| Ok((image(t)?, labels_of(t))), rows)?;
    }
    Ok(())
}

/// The steps of the reference, from the start: losses and final tensors.
fn run<'a, B: Backend>(
    learner: &mut Learner<B>,
    reference: &Reference,
    prefix: &str,
    batch: impl Fn(usize) -> Result<(Tensor, &'a [u32])>,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let hp = &reference.meta.hp;
    let rate = |[learning_rate, weight_decay]: [f64; 2]| Rate { learning_rate, weight_decay };
    let rates = Rates { head: rate(hp.head), lora: rate(hp.lora), prompt: rate([5e-3, 0.0]) };
    let mut losses = Vec::new();
    for t in 0..reference.meta.steps {
        let (images, labels) = batch(t)?;
        learner.train_step(Batch::new(images.view(), labels), &rates, 1.0)?;
        losses.push(learner.stats()?.loss);
    }
    let steps = reference.meta.steps;
    let label = format!("{prefix}loss of {steps} steps");
    row(rows, reference, label, &format!("{prefix}f64.traj.loss"), &losses, 1e-5)?;
    for (name, values) in adapters(named(learner, |p| &p.value)?) {
        let of = |precision: &str| -> Result<Vec<f64>> {
            let mut all = Vec::new();
            for (tensor, _) in &values {
                all.extend(reference.values(&format!("{prefix}{precision}.traj.final.{tensor}"))?);
            }
            Ok(all)
        };
        let ours: Vec<f64> = values.iter().flat_map(|(_, values)| values).copied().collect();
        let exact = of("f64")?;
        let peer = of("f32").ok().map(|peer| euclidean_error(&peer, &exact));
        let (label, error) = (format!("{prefix}{name} after {steps} steps"), euclidean_error(&ours, &exact));
        rows.push(Row { name: label, at: "f32".into(), error, bound: 1e-5, peer });
    }
    Ok(())
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

fn build<B: Backend>(
    backend: &B,
    start: &Start<'_>,
    config: &ClipConfig,
    weights: &Weights,
    text: &TextClassifier,
    batch: usize,
) -> Result<Learner<B>> {
    let (reference, meta) = (start.reference, &start.reference.meta);
    let vision = &config.vision;
    let pixels = Normalisation::CLIP;
    let tower = VisionTower::load(backend, weights, vision, config.projection, pixels, Savings::ALL)?;
    let lora = if meta.variant == "lora" {
        for (layer, target) in (0..vision.tower.layers).flat_map(|l| meta.targets.iter().map(move |t| (l, t)))
        {
            reference.tensor(&format!("{}init.lora.{layer}.{target}.A", start.prefix))?;
            reference.tensor(&format!("{}init.lora.{layer}.{target}.B", start.prefix))?;
        }
        let spec = LoraSpec { rank: meta.r, alpha: meta.alpha, targets: meta.targets.clone() };
        tower.adapters(backend, &spec, &mut Start { reference, prefix: start.prefix })?
    } else {
        Vec::new()
    };
    let head = |part: &str| reference.tensor(&format!("{}init.head.{part}", start.prefix));
    let head = Head::new(backend, head("weight")?.view(), head("bias")?.view())?;
    let spec = LearnerSpec {
        batch,
        image: Shape::from([3, vision.image_size, vision.image_size]),
        image_dtype: backend.compute_dtype(),
        objective: Objective::new(1.0, meta.text_weight),
        mix: None,
        crops_of: None,
        adamw: Adamw { beta1: meta.betas[0], beta2: meta.betas[1], eps: meta.eps },
        purpose: if lora.is_empty() { Purpose::Inference } else { Purpose::Training },
        scaling: loss_scaling(backend),
    };
    let trained = Trained { lora, prompts: None, head };
    Ok(Learner::new(backend.clone(), Arc::new(tower), trained, text, &spec)?)
}

/// One tensor of every trained parameter under the reference's names.
fn named<B: Backend>(
    learner: &Learner<B>,
    of: impl Fn(&Param<B>) -> &B::Tensor,
) -> Result<Vec<(String, Vec<f64>)>> {
    let backend = learner.backend();
    let head = learner.head();
    let mut named = vec![
        ("head.weight".to_string(), to_f64(backend, of(&head.weight))?),
        ("head.bias".to_string(), to_f64(backend, of(&head.bias))?),
    ];
    for (l, block) in learner.lora().iter().enumerate() {
        for layer in block.layers() {
            for (param, part) in [(&layer.a, "A"), (&layer.b, "B")] {
                let values = to_f64(backend, of(param))?;
                let each = param.value.shape().elements() / layer.targets.len();
                for (target, values) in layer.targets.iter().zip(values.chunks_exact(each)) {
                    named.push((format!("lora.{l}.{target}.{part}"), values.to_vec()));
                }
            }
        }
    }
    Ok(named)
}
