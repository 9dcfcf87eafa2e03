//! What is trained: low-rank adapters beside the frozen linear layers, prompts beside the patches, and the
//! head.

pub mod head;
pub mod lora;
pub mod prompts;

use crate::backend::{Backend, DeviceTensor, Result};
use crate::tensor::View;

pub use head::Head;
pub use lora::{BlockLora, LoraLayer, LoraSpec, ProjectionLora, Target};
pub use prompts::{PromptMode, PromptSharing, PromptSpec, Prompts};

/// Trained tensors with the same learning rate and weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    Head,
    Lora,
    Prompt,
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

/// Everything that is trained in and behind a vision tower.
pub struct Trained<B: Backend> {
    /// Empty where the tower's layers stay as they are, else one entry for each block.
    pub lora: Vec<BlockLora<B>>,
    pub prompts: Option<Prompts<B>>,
    pub head: Head<B>,
}

impl<B: Backend> Trained<B> {
    /// The head alone.
    pub fn head(head: Head<B>) -> Self {
        Trained { lora: Vec::new(), prompts: None, head }
    }

    /// What is trained inside the tower.
    pub fn tower(&self) -> TowerTuning<'_, B> {
        TowerTuning { lora: &self.lora, prompts: self.prompts.as_ref() }
    }

    /// Every trained tensor, in a fixed order.
    pub fn params(&self) -> Vec<&Param<B>> {
        let lora = self.lora.iter().flat_map(|l| l.layers()).flat_map(|l| [&l.a, &l.b]);
        let prompts = self.prompts.as_ref().map(|p| &p.param);
        [&self.head.weight, &self.head.bias].into_iter().chain(prompts).chain(lora).collect()
    }

    /// The same for writing, in the same order.
    pub fn params_mut(&mut self) -> Vec<&mut Param<B>> {
        let lora = self.lora.iter_mut().flat_map(|l| l.layers_mut()).flat_map(|l| [&mut l.a, &mut l.b]);
        let prompts = self.prompts.as_mut().map(|p| &mut p.param);
        [&mut self.head.weight, &mut self.head.bias].into_iter().chain(prompts).chain(lora).collect()
    }

    /// Trained parameters.
    pub fn elements(&self) -> usize {
        self.params().into_iter().map(|p| p.value.shape().elements()).sum()
    }

    /// A name for each of [`Trained::params`], in the same order.
    pub fn names(&self) -> Vec<String> {
        let lora = self.lora.iter().enumerate().flat_map(|(l, block)| {
            block.layers().flat_map(move |layer| {
                let targets: Vec<&str> = layer.targets.iter().map(|t| t.name()).collect();
                ["lora_A", "lora_B"].map(|part| format!("layers.{l}.{}.{part}", targets.join("+")))
            })
        });
        let prompts = self.prompts.as_ref().map(|_| "prompts".to_string());
        ["head.weight", "head.bias"].map(String::from).into_iter().chain(prompts).chain(lora).collect()
    }
}

/// What is trained inside a vision tower.
pub struct TowerTuning<'a, B: Backend> {
    pub lora: &'a [BlockLora<B>],
    pub prompts: Option<&'a Prompts<B>>,
}

impl<B: Backend> TowerTuning<'_, B> {
    /// The tower as it is.
    pub const NONE: Self = TowerTuning { lora: &[], prompts: None };

    pub fn is_none(&self) -> bool {
        self.lora.is_empty() && self.prompts.is_none()
    }
}

impl<B: Backend> Clone for TowerTuning<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for TowerTuning<'_, B> {}
