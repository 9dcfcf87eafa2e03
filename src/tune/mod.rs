//! What is trained: low-rank adapters beside the frozen linear layers, and the head.

pub mod head;
pub mod lora;

use crate::backend::{Backend, Result};
use crate::tensor::View;

pub use head::Head;
pub use lora::{BlockLora, LoraLayer, LoraSpec, ProjectionLora, Target};

/// Trained tensors with the same learning rate and weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    Head,
    Lora,
}

/// A trained tensor: its value, its gradient and AdamW's two moments, all of one shape, in the backend's
/// master type. Nothing else in the model has a gradient.
pub struct Param<B: Backend> {
    pub group: Group,
    pub value: B::Tensor,
    pub gradient: B::Tensor,
    pub first_moment: B::Tensor,
    pub second_moment: B::Tensor,
}

impl<B: Backend> Param<B> {
    /// A trained tensor that starts at `initial`.
    pub fn new(backend: &B, group: Group, initial: View<'_>) -> Result<Self> {
        let dtype = backend.master_dtype();
        let zeros = || backend.zeros(initial.shape(), dtype);
        Ok(Param {
            group,
            value: backend.upload(initial, dtype)?,
            gradient: zeros()?,
            first_moment: zeros()?,
            second_moment: zeros()?,
        })
    }
}
