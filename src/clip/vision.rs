//! The vision tower: pixels to normalised features, and back to the first trained tensor.

use super::ClipError;
use super::block::{Adapters, Block, BlockActivations, BlockSizes, FoldedBlock, Rows, Scratch};
use super::config::VisionConfig;
use super::source::{Loader, WeightSource};
use crate::backend::{Backend, DeviceTensor, LayerNorm, Linear, PatchEmbedding, Result};
use crate::data::preprocess::{CLIP_MEAN, CLIP_STD};
use crate::tensor::{DType, Tensor};
use crate::tune::{BlockLora, LoraSpec, lora::LoraInit};

/// How u8 pixels become numbers: (v/255 − mean)/std per channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Normalisation {
    /// CLIP's own constants.
    pub const CLIP: Normalisation = Normalisation { mean: CLIP_MEAN, std: CLIP_STD };
}

/// The exact savings, which can be switched off to compare with the full computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Savings {
    /// The last block computes queries, output projection and MLP for the class token only.
    pub class_token_only: bool,
    /// The backward pass stops at the first trained tensor.
    pub stop_at_first_trained: bool,
}

impl Savings {
    pub const ALL: Savings = Savings { class_token_only: true, stop_at_first_trained: true };
    pub const NONE: Savings = Savings { class_token_only: false, stop_at_first_trained: false };
}

/// The frozen vision tower.
pub struct VisionTower<B: Backend> {
    embedding: PatchEmbedding<B>,
    blocks: Vec<Block<B>>,
    post_norm: LayerNorm<B>,
    projection: Linear<B>,
    config: VisionConfig,
    features: usize,
    savings: Savings,
}

impl<B: Backend> VisionTower<B> {
    /// Loads the tower from `source`; `features` is the width E of the shared feature space.
    pub fn load(
        backend: &B,
        source: &dyn WeightSource,
        config: &VisionConfig,
        features: usize,
        pixels: Normalisation,
        savings: Savings,
    ) -> std::result::Result<Self, ClipError> {
        let loader = Loader { backend, source };
        let (d, p, eps) = (config.tower.width, config.patch_size, config.tower.norm_eps);
        let last = config.tower.layers.saturating_sub(1);
        let blocks = (0..config.tower.layers)
            .map(|layer| {
                let prefix = format!("vision_model.encoder.layers.{layer}");
                let one = layer == last && savings.class_token_only;
                let rows = if one { Rows::One } else { Rows::All };
                Block::load(&loader, &prefix, &config.tower, false, rows)
            })
            .collect::<std::result::Result<_, _>>()?;
        let embedding = PatchEmbedding {
            weight: {
                let name = "vision_model.embeddings.patch_embedding.weight";
                let weight = source.tensor(name, &[d, 3, p, p])?.view().to_tensor(loader.host_dtype())?;
                backend.upload(weight.reshape([d, 3 * p * p])?.view(), backend.compute_dtype())?
            },
            class: loader.master("vision_model.embeddings.class_embedding", &[d])?,
            position: loader
                .master("vision_model.embeddings.position_embedding.weight", &[config.tokens(), d])?,
            norm: loader.layer_norm("vision_model.pre_layrnorm", d, eps)?,
            patch: p,
            mean: pixels.mean,
            std: pixels.std,
        };
        Ok(VisionTower {
            embedding,
            blocks,
            post_norm: loader.layer_norm("vision_model.post_layernorm", d, eps)?,
            projection: Linear {
                weight: loader.tensor("visual_projection.weight", &[features, d])?,
                bias: None,
            },
            config: config.clone(),
            features,
            savings,
        })
    }

    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Width E of the features.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Adapters for every block, starting where `init` says.
    pub fn adapters(
        &self,
        backend: &B,
        spec: &LoraSpec,
        init: &mut dyn LoraInit,
    ) -> Result<Vec<BlockLora<B>>> {
        let width = self.config.tower.width;
        let blocks = self.blocks.iter().enumerate();
        blocks
            .map(|(l, block)| BlockLora::new(backend, spec, l, width, block.rows() == Rows::One, init))
            .collect()
    }

    /// Memory for the layers that `lora` adapts, with the adapters folded in.
    pub fn folded(&self, backend: &B, lora: &[BlockLora<B>]) -> Result<Vec<FoldedBlock<B>>> {
        self.blocks.iter().zip(lora).map(|(block, lora)| block.folded(backend, lora)).collect()
    }

    /// Folds the adapters into `folded`.
    pub fn fold(&self, backend: &B, lora: &[BlockLora<B>], folded: &mut [FoldedBlock<B>]) -> Result<()> {
        let blocks = self.blocks.iter().zip(lora).zip(folded);
        blocks.into_iter().try_for_each(|((block, lora), folded)| block.fold(backend, lora, folded))
    }

    /// Pixels to features for training: `a.features` \[B, E\]; every block's activations are kept.
    pub fn forward(
        &self,
        backend: &B,
        pixels: &B::Tensor,
        lora: &[BlockLora<B>],
        a: &mut VisionActivations<B>,
    ) -> Result<()> {
        self.embed(backend, pixels, a)?;
        for (l, block) in self.blocks.iter().enumerate() {
            let adapters = lora.get(l).map_or(Adapters::None, Adapters::Lora);
            let (current, next) = a.blocks.split_at_mut(l + 1);
            let output = match (block.rows(), next.first_mut()) {
                (Rows::All, Some(next)) => &mut next.input,
                (Rows::All, None) => &mut a.full_output,
                (Rows::One, _) => &mut a.class_output,
            };
            let scratch = if block.rows() == Rows::One { &mut a.class_scratch } else { &mut a.scratch };
            block.forward(backend, adapters, &a.class_rows, &mut current[l], scratch, output)?;
        }
        self.project(backend, a)
    }

    /// Pixels to features without keeping anything: one block's memory serves all. `folded`: the linear
    /// layers to use instead of the frozen ones, or none.
    pub fn infer(
        &self,
        backend: &B,
        pixels: &B::Tensor,
        folded: &[FoldedBlock<B>],
        a: &mut VisionActivations<B>,
    ) -> Result<()> {
        self.embed(backend, pixels, a)?;
        for (l, block) in self.blocks.iter().enumerate() {
            let adapters = folded.get(l).map_or(Adapters::None, Adapters::Folded);
            if block.rows() == Rows::One {
                let kept = a.blocks.len() - 1;
                if kept > 0 && l > 0 {
                    std::mem::swap(&mut a.blocks[kept].input, &mut a.full_output);
                }
                let (rows, scratch) = (&a.class_rows, &mut a.class_scratch);
                let (block_activations, output) = (&mut a.blocks[kept], &mut a.class_output);
                block.forward(backend, adapters, rows, block_activations, scratch, output)?;
            } else {
                if l > 0 {
                    std::mem::swap(&mut a.blocks[0].input, &mut a.full_output);
                }
                let (block_activations, output) = (&mut a.blocks[0], &mut a.full_output);
                block.forward(backend, adapters, &a.class_rows, block_activations, &mut a.scratch, output)?;
            }
        }
        self.project(backend, a)
    }

    /// Tokens in front of the first block.
    fn embed(&self, backend: &B, pixels: &B::Tensor, a: &mut VisionActivations<B>) -> Result<()> {
        let first = match a.blocks.first_mut() {
            Some(block) => &mut block.input,
            None => &mut a.full_output,
        };
        backend.patch_embed(pixels, None, &self.embedding, &mut a.patches, &mut a.products, first)
    }

    /// From the class token behind the last block to the normalised features.
    fn project(&self, backend: &B, a: &mut VisionActivations<B>) -> Result<()> {
        if self.blocks.last().is_none_or(|block| block.rows() == Rows::All) {
            backend.take_rows(&a.full_output, &a.class_rows, &mut a.class_output)?;
        }
        backend.layer_norm(&a.class_output, &self.post_norm, &mut a.class_normed, &mut a.class_stats)?;
        backend.linear(&a.class_normed, &self.projection, None, &mut a.projected)?;
        backend.l2_norm(&a.projected, &mut a.features, &mut a.norms)
    }

    /// From the gradient of the features, in `a.d_features`, to the gradients of all adapters. It stops at
    /// the first trained tensor and computes nothing that only frozen ones would need.
    pub fn backward(
        &self,
        backend: &B,
        lora: &mut [BlockLora<B>],
        a: &mut VisionActivations<B>,
    ) -> Result<()> {
        let first_trained = lora.iter().position(|l| l.layers().next().is_some());
        let stop = match (first_trained, self.savings.stop_at_first_trained) {
            (None, true) => return Ok(()),
            (Some(layer), true) => layer,
            (_, false) => 0,
        };
        backend.l2_norm_backward(&a.d_features, &a.features, &a.norms, &mut a.d_projected)?;
        backend.linear_backward(&a.d_projected, &self.projection, &mut a.d_normed)?;
        backend.clear(&mut a.d_class)?;
        let (d_normed, x) = (&a.d_normed, &a.class_output);
        backend.layer_norm_backward(d_normed, x, &self.post_norm, &a.class_stats, &mut a.d_class)?;
        if self.blocks.last().is_some_and(|block| block.rows() == Rows::All) {
            backend.clear(&mut a.full_output)?;
            backend.take_rows_backward(&a.d_class, &a.class_rows, &mut a.full_output)?;
        }
        for l in (stop..self.blocks.len()).rev() {
            let wanted = l > stop || !self.savings.stop_at_first_trained;
            let (block, kept) = (&self.blocks[l], &a.blocks[l]);
            // Behind the blocks `full_output` is free: it carries the gradient of the token sequence.
            let (scratch, d, d_input) = match block.rows() {
                Rows::One => (&mut a.class_scratch, &mut a.d_class, Some(&mut a.full_output)),
                Rows::All => (&mut a.scratch, &mut a.full_output, None),
            };
            block.backward(backend, lora.get_mut(l), &a.class_rows, kept, scratch, d, d_input, wanted)?;
        }
        Ok(())
    }
}

/// What the memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Forward passes that keep nothing: the memory of two blocks.
    Inference,
    /// Also training steps: every block's activations and gradients.
    Training,
}

/// All memory of the vision tower, allocated once for the largest batch.
pub struct VisionActivations<B: Backend> {
    patches: B::Tensor,
    products: B::Tensor,
    blocks: Vec<BlockActivations<B>>,
    scratch: Scratch<B>,
    class_scratch: Scratch<B>,
    /// Row 0 of every sequence: the class token.
    class_rows: B::Tensor,
    /// The tokens behind a block; in the backward pass the gradient there.
    full_output: B::Tensor,
    class_output: B::Tensor,
    class_normed: B::Tensor,
    class_stats: B::Tensor,
    projected: B::Tensor,
    norms: B::Tensor,
    /// The normalised features \[B, E\].
    pub features: B::Tensor,
    /// The gradient of the features \[B, E\], for the backward pass to start from.
    pub d_features: B::Tensor,
    d_projected: B::Tensor,
    d_normed: B::Tensor,
    d_class: B::Tensor,
}

impl<B: Backend> VisionActivations<B> {
    /// Memory for batches of up to `batch` images; `lora` as the tower's forward pass will get it.
    pub fn new(
        backend: &B,
        tower: &VisionTower<B>,
        batch: usize,
        lora: &[BlockLora<B>],
        purpose: Purpose,
    ) -> Result<Self> {
        let config = &tower.config;
        let (t, e, p) = (&config.tower, tower.features, config.patch_size);
        let (tokens, d, count) = (config.tokens(), t.width, config.patches());
        let sizes = |rows| BlockSizes { batch, tokens, width: d, mlp: t.mlp, heads: t.heads, rows };
        let training = purpose == Purpose::Training;
        let (compute, master) = (backend.compute_dtype(), backend.master_dtype());
        let make = |dims: [usize; 3]| backend.empty(dims, compute);
        let flat = |dtype| backend.empty([batch, e], dtype);
        let stats = |rows| backend.empty([batch, rows, 2], master);
        let kept = tower
            .blocks
            .iter()
            .enumerate()
            .filter(|(l, block)| training || *l == 0 || block.rows() == Rows::One);
        let blocks = kept
            .map(|(l, block)| BlockActivations::new(backend, sizes(block.rows()), lora.get(l)))
            .collect::<Result<_>>()?;
        let of = |rows| {
            let lora = tower.blocks.iter().zip(lora).filter(|(block, _)| block.rows() == rows);
            let lora: Vec<_> = lora.map(|(_, lora)| lora).collect();
            let any = tower.blocks.iter().any(|block| block.rows() == rows);
            let sizes = if any { sizes(rows) } else { BlockSizes { tokens: 0, ..sizes(rows) } };
            Scratch::new(backend, sizes, &lora, training && any)
        };
        let rows = Tensor::zeros([batch], DType::U32);
        Ok(VisionActivations {
            patches: make([batch, count, 3 * p * p])?,
            products: make([batch, count, d])?,
            blocks,
            scratch: of(Rows::All)?,
            class_scratch: of(Rows::One)?,
            class_rows: backend.upload(rows.view(), DType::U32)?,
            full_output: make([batch, tokens, d])?,
            class_output: make([batch, 1, d])?,
            class_normed: make([batch, 1, d])?,
            class_stats: stats(1)?,
            projected: flat(compute)?,
            norms: backend.empty([batch], master)?,
            features: flat(master)?,
            d_features: flat(master)?,
            d_projected: flat(compute)?,
            d_normed: make([batch, 1, d])?,
            d_class: make([batch, 1, d])?,
        })
    }

    /// Sets the number of images, up to the number that the memory was made for.
    pub fn set_batch(&mut self, batch: usize) -> Result<()> {
        for tensor in [
            &mut self.patches,
            &mut self.products,
            &mut self.class_rows,
            &mut self.full_output,
            &mut self.class_output,
            &mut self.class_normed,
            &mut self.class_stats,
            &mut self.projected,
            &mut self.norms,
            &mut self.features,
            &mut self.d_features,
            &mut self.d_projected,
            &mut self.d_normed,
            &mut self.d_class,
        ] {
            tensor.set_rows(batch)?;
        }
        self.blocks.iter_mut().try_for_each(|block| block.set_batch(batch))?;
        self.scratch.set_batch(batch)?;
        self.class_scratch.set_batch(batch)
    }
}
