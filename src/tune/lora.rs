//! Low-rank adaptation (Hu et al. 2021) of the attention's linear layers: W + (α/r)·B·A with A and B
//! trained.
//!
//! Layers whose products are computed together keep their A and B stacked in one tensor each, so that the
//! low-rank products are shared too; on disk every layer has its own, under the names that PEFT uses.

use super::{Group, Param, head::uniform};
use crate::backend::{Backend, Lora, Result};
use crate::tensor::{DType, Tensor};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// A linear layer of an attention block that can carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    #[serde(rename = "q_proj")]
    Query,
    #[serde(rename = "k_proj")]
    Key,
    #[serde(rename = "v_proj")]
    Value,
    #[serde(rename = "out_proj")]
    Output,
}

impl Target {
    pub const ALL: [Target; 4] = [Target::Query, Target::Key, Target::Value, Target::Output];

    /// The layer's name in the checkpoint.
    pub const fn name(self) -> &'static str {
        match self {
            Target::Query => "q_proj",
            Target::Key => "k_proj",
            Target::Value => "v_proj",
            Target::Output => "out_proj",
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Target::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| format!("{name:?} is none of q_proj, k_proj, v_proj, out_proj"))
    }
}

/// Which layers are adapted, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    pub rank: usize,
    pub alpha: f64,
    pub targets: Vec<Target>,
}

impl LoraSpec {
    /// α/r.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// Where one block's adapters start: A \[r, in\] and B \[out, r\] of a target, f32.
pub trait LoraInit {
    fn start(&mut self, layer: usize, target: Target, inputs: usize, outputs: usize) -> (Tensor, Tensor);
}

/// The usual start: A Kaiming-uniform with a = √5, which is uniform in ±1/√in; B zero.
pub struct KaimingInit<'a, R: Rng> {
    pub rank: usize,
    pub rng: &'a mut R,
}

impl<R: Rng> LoraInit for KaimingInit<'_, R> {
    fn start(&mut self, _: usize, _: Target, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let a = uniform([self.rank, inputs], 1.0 / (inputs as f32).sqrt(), self.rng);
        (a, Tensor::zeros([outputs, self.rank], DType::F32))
    }
}

/// The adapters of layers that are computed as one product.
pub struct LoraLayer<B: Backend> {
    /// \[n·r, in\]
    pub a: Param<B>,
    /// \[n, out, r\]
    pub b: Param<B>,
    /// The layers, in the order in which they are stacked.
    pub targets: Vec<Target>,
    /// First output column of each within the product.
    pub columns: Vec<usize>,
    pub scale: f64,
}

impl<B: Backend> LoraLayer<B> {
    /// Adapters for those of `members` that `spec` names; `None` when it names none. `members` are the
    /// layers of the product in column order, each `width` wide on both sides.
    pub fn new(
        backend: &B,
        spec: &LoraSpec,
        members: &[Target],
        layer: usize,
        width: usize,
        init: &mut dyn LoraInit,
    ) -> Result<Option<Self>> {
        let chosen = members.iter().copied().enumerate().filter(|(_, t)| spec.targets.contains(t));
        let (columns, targets): (Vec<usize>, Vec<Target>) =
            chosen.map(|(index, target)| (index * width, target)).unzip();
        if targets.is_empty() {
            return Ok(None);
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for &target in &targets {
            let (part_a, part_b) = init.start(layer, target, width, width);
            a.extend_from_slice(part_a.view().to_tensor(DType::F32)?.typed::<f32>()?);
            b.extend_from_slice(part_b.view().to_tensor(DType::F32)?.typed::<f32>()?);
        }
        let n = targets.len();
        let a = Tensor::from_slice([n * spec.rank, width], &a)?;
        let b = Tensor::from_slice([n, width, spec.rank], &b)?;
        Ok(Some(LoraLayer {
            a: Param::new(backend, Group::Lora, a.view())?,
            b: Param::new(backend, Group::Lora, b.view())?,
            targets,
            columns,
            scale: spec.scale(),
        }))
    }

    /// What the backend's operations take.
    pub fn as_lora(&self) -> Lora<'_, B> {
        Lora { a: &self.a.value, b: &self.b.value, columns: &self.columns, scale: self.scale }
    }

    /// n·r: the width of the low-rank product.
    pub fn width(&self) -> usize {
        use crate::backend::DeviceTensor;
        self.a.value.shape().rows()
    }
}

/// Adapters of queries, keys and values, grouped as the block computes them.
pub enum ProjectionLora<B: Backend> {
    Packed(Option<LoraLayer<B>>),
    Split { q: Option<LoraLayer<B>>, kv: Option<LoraLayer<B>> },
}

impl<B: Backend> ProjectionLora<B> {
    pub fn is_empty(&self) -> bool {
        self.layers().next().is_none()
    }

    fn layers(&self) -> impl Iterator<Item = &LoraLayer<B>> {
        let (a, b) = match self {
            ProjectionLora::Packed(qkv) => (qkv, &None),
            ProjectionLora::Split { q, kv } => (q, kv),
        };
        a.iter().chain(b)
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = &mut LoraLayer<B>> {
        let (a, b) = match self {
            ProjectionLora::Packed(qkv) => (qkv.as_mut(), None),
            ProjectionLora::Split { q, kv } => (q.as_mut(), kv.as_mut()),
        };
        a.into_iter().chain(b)
    }
}

/// All adapters of one block.
pub struct BlockLora<B: Backend> {
    pub projections: ProjectionLora<B>,
    pub out: Option<LoraLayer<B>>,
}

impl<B: Backend> BlockLora<B> {
    /// Adapters for block `layer` of width `width`; `split` where the block computes its queries apart.
    pub fn new(
        backend: &B,
        spec: &LoraSpec,
        layer: usize,
        width: usize,
        split: bool,
        init: &mut dyn LoraInit,
    ) -> Result<Self> {
        use Target::{Key, Output, Query, Value};
        let mut part = |members: &[Target]| LoraLayer::new(backend, spec, members, layer, width, init);
        let projections = if split {
            ProjectionLora::Split { q: part(&[Query])?, kv: part(&[Key, Value])? }
        } else {
            ProjectionLora::Packed(part(&[Query, Key, Value])?)
        };
        Ok(BlockLora { projections, out: part(&[Output])? })
    }

    pub fn layers(&self) -> impl Iterator<Item = &LoraLayer<B>> {
        self.projections.layers().chain(&self.out)
    }

    pub fn layers_mut(&mut self) -> impl Iterator<Item = &mut LoraLayer<B>> {
        self.projections.layers_mut().chain(&mut self.out)
    }
}
