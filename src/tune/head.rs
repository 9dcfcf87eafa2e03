//! The linear classifier on normalised features.

use super::{Group, Param};
use crate::backend::{Backend, Result};
use crate::tensor::{Tensor, View};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// `weight` \[C, E\] and `bias` \[C\].
pub struct Head<B: Backend> {
    /// A row for each class.
    pub weight: Param<B>,
    /// An element for each class.
    pub bias: Param<B>,
    /// False where the head only mirrors the text features of the classes.
    pub trained: bool,
}

impl<B: Backend> Head<B> {
    /// A head that starts from the given values.
    pub fn new(backend: &B, weight: View<'_>, bias: View<'_>) -> Result<Self> {
        Ok(Head {
            weight: Param::new(backend, Group::Head, weight)?,
            bias: Param::new(backend, Group::Head, bias)?,
            trained: true,
        })
    }

    /// Trains as a layer that sees its features `scale` times as long, as [`HeadScale`] says.
    pub fn scaled(mut self, scale: f64) -> Self {
        self.weight.scale = scale;
        self
    }
}

/// How much longer than 1 the features are that the head is trained on: logits = c·f·Hᵀ + h, where AdamW moves
/// H and h. At a given learning rate a larger c lets the logits move faster; c = 1 is `torch.nn.Linear` on f.
/// [`Head::weight`] is c·H, whatever c, and acts on f.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeadScale {
    /// c itself.
    Of(f64),
    /// c from the sizes.
    By(HeadScaleRule),
}

/// A rule for c.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadScaleRule {
    /// √E for features of width E, whose elements are then about 1 in size.
    SqrtWidth,
}

impl HeadScale {
    /// c for features of width `width`.
    pub fn value(self, width: usize) -> f64 {
        match self {
            HeadScale::Of(scale) => scale,
            HeadScale::By(HeadScaleRule::SqrtWidth) => (width as f64).sqrt(),
        }
    }
}

impl std::str::FromStr for HeadScale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("sqrt-width", _) => Ok(HeadScale::By(HeadScaleRule::SqrtWidth)),
            (_, Ok(scale)) => Ok(HeadScale::Of(scale)),
            (_, Err(_)) => Err(format!("{text:?} is neither a number nor \"sqrt-width\"")),
        }
    }
}

/// The start of `torch.nn.Linear`: both tensors uniform in ±1/√E. Returns weight \[C, E\] and bias \[C\], f32.
pub fn initial_head(classes: usize, width: usize, rng: &mut impl Rng) -> (Tensor, Tensor) {
    let bound = 1.0 / (width as f32).sqrt();
    let weight = uniform([classes, width], bound, rng);
    let bias = uniform([classes], bound, rng);
    (weight, bias)
}

/// An f32 tensor uniform in ±`bound`.
pub(super) fn uniform<const N: usize>(shape: [usize; N], bound: f32, rng: &mut impl Rng) -> Tensor {
    let mut tensor = Tensor::zeros(shape, crate::tensor::DType::F32);
    for bytes in tensor.bytes_mut().chunks_exact_mut(4) {
        bytes.copy_from_slice(&rng.random_range(-bound..=bound).to_ne_bytes());
    }
    tensor
}
