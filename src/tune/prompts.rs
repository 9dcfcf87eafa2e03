//! Deep visual prompt tuning (Jia et al. 2022): trained tokens beside the patches in front of every block.

use super::{Group, Param};
use crate::backend::{Backend, DeviceTensor, Result};
use crate::tensor::{DType, Tensor, View};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

/// Which blocks have the same prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptSharing {
    /// One set of prompts for all blocks.
    Shared,
    /// Every block its own.
    PerLayer,
}

/// Whether a block's prompts are replaced or kept in front of the next block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptMode {
    /// The next block's prompts take their place, as in the paper: the sequence keeps its length.
    Replace,
    /// They stay, and the next block's are put in front of them: the sequence grows from block to block.
    Accumulate,
}

impl PromptMode {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            PromptMode::Replace => "replace",
            PromptMode::Accumulate => "accumulate",
        }
    }

    /// The mode of that [`name`](PromptMode::name); `None` for any other word.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [PromptMode::Replace, PromptMode::Accumulate].into_iter().find(|mode| mode.name() == name)
    }
}

/// Prompts that are to be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSpec {
    /// Prompts of a block.
    pub count: usize,
    /// Whether the blocks share them.
    pub sharing: PromptSharing,
    /// Whether a block's prompts are replaced or kept in front of the next block.
    pub mode: PromptMode,
}

impl PromptSpec {
    /// Sets of prompts in a tower of `layers` blocks.
    pub fn sets(&self, layers: usize) -> usize {
        match self.sharing {
            PromptSharing::Shared => 1,
            PromptSharing::PerLayer => layers,
        }
    }

    /// Tokens of block `layer`, where there would be `tokens` without prompts.
    pub fn tokens(&self, layer: usize, tokens: usize) -> usize {
        tokens_with(self.mode, self.count, layer, tokens)
    }
}

fn tokens_with(mode: PromptMode, count: usize, layer: usize, tokens: usize) -> usize {
    match mode {
        PromptMode::Replace => tokens + count,
        PromptMode::Accumulate => tokens + (layer + 1) * count,
    }
}

/// Standard deviation of prompts before training.
const DEVIATION: f32 = 0.02;

/// Prompts before training, N(0, 0.02²): \[sets, m, D\], f32.
pub fn initial_prompts(spec: &PromptSpec, layers: usize, width: usize, rng: &mut impl Rng) -> Tensor {
    let mut tensor = Tensor::zeros([spec.sets(layers), spec.count, width], DType::F32);
    for bytes in tensor.bytes_mut().chunks_exact_mut(4) {
        let value: f32 = StandardNormal.sample(rng);
        bytes.copy_from_slice(&(DEVIATION * value).to_ne_bytes());
    }
    tensor
}

/// The prompts of a vision tower.
pub struct Prompts<B: Backend> {
    /// \[sets, m, D\]: one set for all blocks, or one for each.
    pub param: Param<B>,
    /// Whether a block's prompts are replaced or kept in front of the next block.
    pub mode: PromptMode,
}

impl<B: Backend> Prompts<B> {
    /// Prompts that start from `initial` \[sets, m, D\].
    pub fn new(backend: &B, mode: PromptMode, initial: View<'_>) -> Result<Self> {
        Ok(Prompts { param: Param::new(backend, Group::Prompt, initial)?, mode })
    }

    /// Prompts of a block.
    pub fn count(&self) -> usize {
        self.param.value.shape().dims().get(1).copied().unwrap_or(0)
    }

    /// The set that block `layer` uses.
    pub fn set(&self, layer: usize) -> usize {
        if self.param.value.shape().rows() == 1 { 0 } else { layer }
    }

    /// Tokens of block `layer`, where there would be `tokens` without prompts.
    pub fn tokens(&self, layer: usize, tokens: usize) -> usize {
        tokens_with(self.mode, self.count(), layer, tokens)
    }
}
