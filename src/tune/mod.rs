//! What is trained: low-rank adapters beside the frozen linear layers, prompts beside the patches, and the
//! head.

pub(crate) mod adapted;
pub(crate) mod dropout;
pub(crate) mod head;
pub(crate) mod lora;
pub(crate) mod prompts;

use crate::backend::{Backend, DeviceTensor, Result, copyable};
use crate::tensor::View;

pub use adapted::BlockLayers;
pub use dropout::{DropoutSpec, TowerDropout};
pub use head::{Head, HeadScale, HeadScaleRule, initial_head};
pub(crate) use lora::LoraLayer;
pub use lora::{KaimingInit, LoraInit, LoraSpec, Site, Target, Tower};
pub use prompts::{PromptMode, PromptSharing, PromptSpec, Prompts, initial_prompts};

/// Trained tensors with the same learning rate and weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// Weight and bias of the head.
    Head,
    /// A and B of the adapters in both towers.
    Lora,
    /// Visual prompts.
    Prompt,
}

/// A trained tensor: its value, its gradient and AdamW's two moments, all of one shape, in the backend's
/// parameter dtype. Nothing else in the model has a gradient; where nothing is trained these have no elements.
pub struct Param<B: Backend> {
    /// Group whose learning rate and weight decay the tensor moves by.
    pub group: Group,
    /// See [`AdamwTensor::scale`](crate::backend::AdamwTensor::scale).
    pub scale: f64,
    /// Current value, as the forward pass uses it.
    pub value: B::Tensor,
    /// Gradient of the last micro-batch; of the whole step once [`add_up`] has had the micro-batch that completes it.
    pub gradient: B::Tensor,
    /// The running mean of the gradient; 0 before the first step.
    pub first_moment: B::Tensor,
    /// The running mean of the gradient's square; 0 before the first step.
    pub second_moment: B::Tensor,
}

impl<B: Backend> Param<B> {
    /// A tensor of the value `initial`, without memory for its training.
    pub fn new(backend: &B, group: Group, initial: View<'_>) -> Result<Self> {
        let dtype = backend.parameter_dtype();
        let zeros = || backend.zeros([0], dtype);
        Ok(Param {
            group,
            scale: 1.0,
            value: backend.upload(initial, dtype)?,
            gradient: zeros()?,
            first_moment: zeros()?,
            second_moment: zeros()?,
        })
    }

    /// Memory for gradient and moments, if there is none yet.
    fn prepare_to_train(&mut self, backend: &B) -> Result<()> {
        let shape = self.value.shape();
        for tensor in [&mut self.gradient, &mut self.first_moment, &mut self.second_moment] {
            if tensor.shape() != shape {
                *tensor = backend.zeros(shape, backend.parameter_dtype())?;
            }
        }
        Ok(())
    }
}

/// Where a micro-batch stands among those whose gradients add up to the step (gradient accumulation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// There is no other.
    Alone,
    /// The one that begins the sum.
    First,
    /// Neither the first nor the last.
    Middle,
    /// The one that completes the sum.
    Last,
}

impl Place {
    /// Place of micro-batch `index`, counted from 0, among `count`.
    pub fn of(index: usize, count: usize) -> Self {
        match (index, index + 1 == count) {
            (0, true) => Place::Alone,
            (0, false) => Place::First,
            (_, false) => Place::Middle,
            (_, true) => Place::Last,
        }
    }

    /// Whether the step is complete with it.
    pub fn completes(self) -> bool {
        matches!(self, Place::Alone | Place::Last)
    }
}

/// Adds the gradients of a micro-batch to the `sums` of those before; with the last one they hold the sum.
pub fn add_up<'a, B: Backend>(
    backend: &B,
    gradients: impl Iterator<Item = &'a mut B::Tensor>,
    sums: &mut [B::Tensor],
    place: Place,
) -> Result<()> {
    let pairs = gradients.zip(sums);
    match place {
        Place::Alone => Ok(()),
        Place::First | Place::Middle => {
            let mut pairs: Vec<(&B::Tensor, &mut B::Tensor)> = pairs.map(|(g, sum)| (&*g, sum)).collect();
            backend.accumulate(&mut pairs, place == Place::First)
        }
        Place::Last => {
            let mut pairs: Vec<(&B::Tensor, &mut B::Tensor)> = pairs.map(|(g, sum)| (&*sum, g)).collect();
            backend.accumulate(&mut pairs, false)
        }
    }
}

/// Everything that is trained in and behind the towers.
pub struct Trained<B: Backend> {
    /// Adapters in the vision tower: empty where its layers stay as they are, else one entry for each block.
    pub lora: Vec<BlockLayers<B>>,
    /// Adapters in the text tower: empty where its layers stay as they are, else one entry for each block.
    pub text_lora: Vec<BlockLayers<B>>,
    /// Visual prompts in the vision tower, if there are any.
    pub prompts: Option<Prompts<B>>,
    /// Head behind the towers.
    pub head: Head<B>,
}

impl<B: Backend> Trained<B> {
    /// The head alone.
    pub fn head(head: Head<B>) -> Self {
        Trained { lora: Vec::new(), text_lora: Vec::new(), prompts: None, head }
    }

    /// Memory for the gradients and the optimizer, if there is none yet. A head that is not trained has a gradient too,
    /// as the operation behind the towers computes one.
    pub fn prepare_to_train(&mut self, backend: &B) -> Result<()> {
        let Head { weight, bias, .. } = &mut self.head;
        [weight, bias].into_iter().try_for_each(|param| param.prepare_to_train(backend))?;
        self.params_mut().into_iter().try_for_each(|param| param.prepare_to_train(backend))
    }

    /// The trained parts inside the vision tower, without dropout.
    pub fn tower(&self) -> TowerTuning<'_, B> {
        TowerTuning { lora: &self.lora, prompts: self.prompts.as_ref(), dropout: None }
    }

    /// Every trained tensor, in a fixed order.
    pub fn params(&self) -> Vec<&Param<B>> {
        let lora =
            self.lora.iter().chain(&self.text_lora).flat_map(|l| l.adapters()).flat_map(|l| [&l.a, &l.b]);
        let prompts = self.prompts.as_ref().map(|p| &p.param);
        let head = [&self.head.weight, &self.head.bias].into_iter().filter(|_| self.head.trained);
        head.chain(prompts).chain(lora).collect()
    }

    /// The tensors of [`Trained::params`], for writing, in the same order.
    pub fn params_mut(&mut self) -> Vec<&mut Param<B>> {
        let blocks = self.lora.iter_mut().chain(&mut self.text_lora);
        let lora = blocks.flat_map(|l| l.adapters_mut()).flat_map(|l| [&mut l.a, &mut l.b]);
        let prompts = self.prompts.as_mut().map(|p| &mut p.param);
        let trained = self.head.trained;
        let head = [&mut self.head.weight, &mut self.head.bias].into_iter().filter(|_| trained);
        head.chain(prompts).chain(lora).collect()
    }

    /// Trained parameters.
    pub fn elements(&self) -> usize {
        self.params().into_iter().map(|p| p.value.shape().elements()).sum()
    }

    /// A name for each of [`Trained::params`], in the same order.
    pub fn names(&self) -> Vec<String> {
        let lora = Self::names_of(&self.lora, "").chain(Self::names_of(&self.text_lora, "text."));
        let prompts = self.prompts.as_ref().map(|_| "prompts".to_string());
        let head = ["head.weight", "head.bias"].map(String::from).into_iter().filter(|_| self.head.trained);
        head.chain(prompts).chain(lora).collect()
    }

    /// A name for each tensor of a tower's adapters.
    fn names_of(lora: &[BlockLayers<B>], prefix: &str) -> impl Iterator<Item = String> {
        lora.iter().enumerate().flat_map(move |(l, block)| {
            block.adapters().flat_map(move |layer| {
                let targets: Vec<&str> = layer.targets.iter().map(|t| t.name()).collect();
                ["lora_A", "lora_B"].map(|part| format!("{prefix}layers.{l}.{}.{part}", targets.join("+")))
            })
        })
    }
}

/// The trained parts inside a vision tower.
pub struct TowerTuning<'a, B: Backend> {
    /// Adapters, one entry for each block; empty where the tower's layers stay as they are.
    pub lora: &'a [BlockLayers<B>],
    /// Prompts in front of the tower's blocks, if there are any.
    pub prompts: Option<&'a Prompts<B>>,
    /// Dropout in front of the adapters, in training.
    pub dropout: Option<TowerDropout<'a, B>>,
}

copyable!(Backend: TowerTuning);

impl<B: Backend> TowerTuning<'_, B> {
    /// The tower as it is.
    pub const NONE: Self = TowerTuning { lora: &[], prompts: None, dropout: None };

    /// True where nothing in the tower is trained; dropout alone does not count.
    pub(crate) fn is_none(&self) -> bool {
        self.lora.is_empty() && self.prompts.is_none()
    }
}
