//! The linear classifier on normalised features.

use super::{Group, Param};
use crate::backend::{Backend, Result};
use crate::tensor::{Tensor, View};
use rand::{Rng, RngExt};

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
