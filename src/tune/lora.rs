//! Low-rank adaptation (Hu et al. 2021) of a tower's linear layers: W + (α/r)·B·A with A and B trained.
//!
//! Layers whose products are computed together keep their A and B stacked in one tensor each, so that the
//! low-rank products are shared too; on disk every layer has its own, under the names that PEFT uses.

use super::{Group, Param, head::uniform};
use crate::backend::{Backend, Lora, LoraGradients, Result};
use crate::tensor::{DType, Tensor};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// A linear layer of a transformer block that can carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// Queries of attention.
    #[serde(rename = "q_proj")]
    Query,
    /// Keys of attention.
    #[serde(rename = "k_proj")]
    Key,
    /// Values of attention.
    #[serde(rename = "v_proj")]
    Value,
    /// The projection behind attention.
    #[serde(rename = "out_proj")]
    Output,
    /// The first layer of the MLP, from D elements to its own width.
    #[serde(rename = "fc1")]
    Expand,
    /// The second layer of the MLP, back to D elements.
    #[serde(rename = "fc2")]
    Contract,
}

impl Target {
    /// Every layer that can have an adapter, in the order of a block's computation.
    pub const ALL: [Target; 6] =
        [Target::Query, Target::Key, Target::Value, Target::Output, Target::Expand, Target::Contract];

    /// The layers of attention.
    pub const ATTENTION: [Target; 4] = [Target::Query, Target::Key, Target::Value, Target::Output];

    /// The layer's name in the checkpoint.
    pub const fn name(self) -> &'static str {
        match self {
            Target::Query => "q_proj",
            Target::Key => "k_proj",
            Target::Value => "v_proj",
            Target::Output => "out_proj",
            Target::Expand => "fc1",
            Target::Contract => "fc2",
        }
    }

    /// The part of the block that holds it.
    pub const fn module(self) -> &'static str {
        match self {
            Target::Expand | Target::Contract => "mlp",
            _ => "self_attn",
        }
    }

    /// Inputs and outputs in a tower of this width and MLP width.
    pub const fn sizes(self, width: usize, mlp: usize) -> (usize, usize) {
        match self {
            Target::Expand => (width, mlp),
            Target::Contract => (mlp, width),
            _ => (width, width),
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

    fn from_str(name: &str) -> Result<Self, String> {
        Target::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| {
            let names = Target::ALL.map(Target::name).join(", ");
            format!("{name:?} is none of {names}")
        })
    }
}

/// One of CLIP's two transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tower {
    /// The image side.
    Vision,
    /// The text side.
    Text,
}

impl Tower {
    /// Both towers, vision first.
    pub const ALL: [Tower; 2] = [Tower::Vision, Tower::Text];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Tower::Vision => "vision",
            Tower::Text => "text",
        }
    }

    /// The name in front of its blocks' numbers in the checkpoint.
    pub const fn layers(self) -> &'static str {
        match self {
            Tower::Vision => "vision_model.encoder.layers",
            Tower::Text => "text_model.encoder.layers",
        }
    }
}

impl std::fmt::Display for Tower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Tower {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Tower::ALL.into_iter().find(|tower| tower.name() == name);
        found.ok_or_else(|| format!("{name:?} is neither vision nor text"))
    }
}

/// One linear layer of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The transformer with the block.
    pub tower: Tower,
    /// The block's number.
    pub layer: usize,
    /// The layer in the block.
    pub target: Target,
}

impl Site {
    /// The layer's name in the checkpoint.
    pub fn name(&self) -> String {
        let Site { tower, layer, target } = self;
        format!("{}.{layer}.{}.{target}", tower.layers(), target.module())
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Which layers are adapted, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// Rows r of every A and columns of every B.
    pub rank: usize,
    /// α of [`LoraSpec::scale`].
    pub alpha: f64,
    /// Rank-stabilised: scaled by α/√r instead of α/r.
    pub rslora: bool,
    /// The layers that have an adapter, in every block.
    pub targets: Vec<Target>,
    /// The towers whose blocks have them.
    pub towers: Vec<Tower>,
    /// Share of an adapter's inputs that training sets to zero.
    pub dropout: f64,
}

impl LoraSpec {
    /// Adapters of the vision tower, scaled by α/r, without dropout.
    pub fn new(rank: usize, alpha: f64, targets: &[Target]) -> Self {
        let targets = targets.to_vec();
        LoraSpec { rank, alpha, rslora: false, targets, towers: vec![Tower::Vision], dropout: 0.0 }
    }

    /// Factor on B·A: α/r, or α/√r where rank-stabilised.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// Where adapters start: A \[r, in\] and B \[out, r\] of a layer, f32.
pub trait LoraInit {
    /// A and B of the layer at `site`, which has so many `inputs` and `outputs`.
    fn start(&mut self, site: Site, inputs: usize, outputs: usize) -> (Tensor, Tensor);
}

/// The usual start: A Kaiming-uniform with a = √5, which is uniform in ±1/√in; B zero.
pub struct KaimingInit<'a, R: Rng> {
    /// r, that of the [`LoraSpec`].
    pub rank: usize,
    /// Generator that A is drawn from, layer by layer as they are asked for.
    pub rng: &'a mut R,
}

impl<R: Rng> LoraInit for KaimingInit<'_, R> {
    fn start(&mut self, _: Site, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
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
    /// First output column of each layer within the product.
    pub columns: Vec<usize>,
    /// Factor on every B·A: [`LoraSpec::scale`].
    pub scale: f64,
}

impl<B: Backend> LoraLayer<B> {
    /// Adapters for those of `members` that `spec` names; `None` when it names none. `members` are the
    /// layers of the product in column order, all with `inputs` inputs and `outputs` outputs.
    pub fn new(
        backend: &B,
        spec: &LoraSpec,
        members: &[Site],
        (inputs, outputs): (usize, usize),
        init: &mut dyn LoraInit,
    ) -> Result<Option<Self>> {
        let chosen = members.iter().copied().enumerate().filter(|(_, s)| spec.targets.contains(&s.target));
        let (columns, sites): (Vec<usize>, Vec<Site>) =
            chosen.map(|(index, site)| (index * outputs, site)).unzip();
        if sites.is_empty() {
            return Ok(None);
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for &site in &sites {
            let (part_a, part_b) = init.start(site, inputs, outputs);
            a.extend_from_slice(part_a.view().to_tensor(DType::F32)?.typed::<f32>()?);
            b.extend_from_slice(part_b.view().to_tensor(DType::F32)?.typed::<f32>()?);
        }
        let n = sites.len();
        let a = Tensor::from_slice([n * spec.rank, inputs], &a)?;
        let b = Tensor::from_slice([n, outputs, spec.rank], &b)?;
        Ok(Some(LoraLayer {
            a: Param::new(backend, Group::Lora, a.view())?,
            b: Param::new(backend, Group::Lora, b.view())?,
            targets: sites.into_iter().map(|site| site.target).collect(),
            columns,
            scale: spec.scale(),
        }))
    }

    /// The adapters as the backend's operations take them.
    pub fn as_lora(&self) -> Lora<'_, B> {
        Lora { a: &self.a.value, b: &self.b.value, columns: &self.columns, scale: self.scale }
    }

    /// The adapters with room for their gradients, for an input `x` and the gradient `dy` of the output.
    pub(crate) fn gradients<'a>(&'a mut self, x: &'a B::Tensor, dy: &'a B::Tensor) -> LoraGradients<'a, B> {
        let LoraLayer { a, b, columns, scale, .. } = self;
        let lora = Lora { a: &a.value, b: &b.value, columns, scale: *scale };
        LoraGradients { x, dy, lora, da: &mut a.gradient, db: &mut b.gradient }
    }

    /// n·r: the width of the low-rank product.
    pub fn width(&self) -> usize {
        use crate::backend::DeviceTensor;
        self.a.value.shape().rows()
    }
}
