//! The vision tower: pixels to normalised features, and back to the first trained tensor.

use super::ClipError;
use super::block::{self, Block, BlockActivations, BlockMemory, BlockSizes, Gradient, Pass, Rows, Scratch};
use super::config::VisionConfig;
use super::end::{End, EndGradients, Ends};
use super::weight_source::{Loader, WeightSource};
use crate::backend::{Backend, DeviceTensor, Linear, Mix, PatchEmbed, PatchEmbedding, Result};
use crate::data::preprocess::{CLIP_MEAN, CLIP_STD};
use crate::tensor::{DType, Tensor};
use crate::tune::adapted::Form;
use crate::tune::{BlockLayers, LoraInit, LoraSpec, PromptMode, Prompts, Tower, TowerDropout, TowerTuning};

/// How u8 pixels become numbers: (v/255 − mean)/std per channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    /// Means of red, green and blue, of values from 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviations of red, green and blue, of values from 0 to 1.
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
    /// Both, as every run has them.
    pub const ALL: Savings = Savings { class_token_only: true, stop_at_first_trained: true };
    /// Neither: the full computation.
    pub const NONE: Savings = Savings { class_token_only: false, stop_at_first_trained: false };
}

/// The frozen vision tower.
pub struct VisionTower<B: Backend> {
    embedding: PatchEmbedding<B>,
    blocks: Vec<Block<B>>,
    end: End<B>,
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
    ) -> Result<Self, ClipError> {
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
            .collect::<Result<_, _>>()?;
        let embedding = PatchEmbedding {
            projection: {
                let name = "vision_model.embeddings.patch_embedding.weight";
                let weight = source.tensor(name, &[d, 3, p, p])?.view().to_tensor(loader.host_dtype())?;
                let weight = widened(weight.reshape([d, 3 * p * p])?, backend.patch_columns(3 * p * p));
                Linear { weight: backend.weight(weight.view())?, bias: None }
            },
            class: loader.parameter("vision_model.embeddings.class_embedding", &[d])?,
            position: loader
                .parameter("vision_model.embeddings.position_embedding.weight", &[config.tokens(), d])?,
            norm: loader.layer_norm("vision_model.pre_layrnorm", d, eps)?,
            patch: p,
            mean: pixels.mean,
            std: pixels.std,
        };
        let names = ["vision_model.post_layernorm", "visual_projection.weight"];
        Ok(VisionTower {
            embedding,
            blocks,
            end: End::load(&loader, names, &config.tower, features)?,
            config: config.clone(),
            features,
            savings,
        })
    }

    /// The sizes that the tower was loaded with.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Bytes that the weights will take besides once gradients have gone through all blocks.
    pub(crate) fn bytes_to_come(&self, backend: &B) -> usize {
        self.blocks.iter().map(|block| block.bytes_to_come(backend)).sum()
    }

    /// Width E of the features.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Layers with adapters for every block, starting where `init` says; none where `spec` leaves the tower as it is.
    pub fn adapters(
        &self,
        backend: &B,
        spec: &LoraSpec,
        init: &mut dyn LoraInit,
    ) -> Result<Vec<BlockLayers<B>>> {
        block::adapted(backend, &self.blocks, (Tower::Vision, &self.config.tower), spec, init)
    }

    /// Whether training steps can have the adapters of `tuning` folded into the weights.
    pub(crate) fn can_train_folded(&self, backend: &B, tuning: TowerTuning<'_, B>) -> bool {
        backend.can_train_folded() && tuning.dropout.is_none() && !tuning.lora.is_empty()
    }

    /// Whether training steps of so many images have the adapters of `tuning` folded into the weights.
    pub fn trains_folded(&self, backend: &B, tuning: TowerTuning<'_, B>, batch: usize) -> Result<bool> {
        if !self.can_train_folded(backend, tuning) {
            return Ok(false);
        }
        let layers = tuning.lora.iter().enumerate();
        let sites = layers.flat_map(|(l, layers)| block::sites(layers, self.sizes(l, tuning.prompts, batch)));
        backend.trains_folded(&sites.collect::<Vec<_>>())
    }

    /// Tokens in block `layer`.
    fn tokens(&self, layer: usize, prompts: Option<&Prompts<B>>) -> usize {
        let tokens = self.config.tokens();
        prompts.map_or(tokens, |prompts| prompts.tokens(layer, tokens))
    }

    /// Tokens of the longest sequence: that in front of the last block.
    pub fn longest(&self, prompts: Option<&Prompts<B>>) -> usize {
        self.tokens(self.blocks.len().saturating_sub(1), prompts)
    }

    /// The sizes of block `layer`.
    fn sizes(&self, layer: usize, prompts: Option<&Prompts<B>>, batch: usize) -> BlockSizes {
        let t = &self.config.tower;
        let (tokens, rows) = (self.tokens(layer, prompts), self.blocks[layer].rows());
        BlockSizes { batch, tokens, width: t.width, mlp: t.mlp, heads: t.heads, rows }
    }

    /// Pixels to [`VisionActivations::features`] for training: every block's activations are kept. Where `a` was made for
    /// training with the adapters folded, they must have been folded as they are now.
    pub fn forward(
        &self,
        backend: &B,
        pixels: &B::Tensor,
        mix: Option<&Mix<B>>,
        tuning: TowerTuning<'_, B>,
        a: &mut VisionActivations<B>,
    ) -> Result<()> {
        let prompts = tuning.prompts;
        for l in 0..self.blocks.len() {
            a.blocks[l].set_extent(backend, self.sizes(l, prompts, a.batch))?;
        }
        self.embed(backend, pixels, mix, prompts, 0, a)?;
        for (l, block) in self.blocks.iter().enumerate() {
            let (sizes, form) = (self.sizes(l, prompts, a.batch), a.form(tuning.dropout, l));
            let (current, next) = a.blocks.split_at_mut(l + 1);
            let grows = prompts.is_some_and(|p| p.mode == PromptMode::Accumulate);
            let scratch = if block.rows() == Rows::One { &mut a.class_scratch } else { &mut a.scratch };
            scratch.set_extent(backend, sizes)?;
            let pass = Pass { form, rows: &a.class_rows };
            let memory = BlockMemory { own: &mut current[l], scratch };
            let output = match (block.rows(), next.first_mut()) {
                (Rows::One, _) => {
                    let end = (&self.end, &mut a.ends);
                    block.forward_to_features(backend, tuning.lora.get(l), pass, memory, end)?;
                    continue;
                }
                (Rows::All, Some(next)) if !grows => &mut next.input,
                (Rows::All, _) => {
                    a.full_output.set_shape([sizes.batch, sizes.tokens, sizes.width].into())?;
                    &mut a.full_output
                }
            };
            block.forward(backend, tuning.lora.get(l), pass, memory, output)?;
            if let Some(next) = next.first_mut() {
                Self::add_prompts(backend, prompts, l + 1, &a.full_output, &mut next.input)?;
            }
        }
        self.project(backend, a)
    }

    /// Pixels to features without keeping anything: one block's memory serves all, and has room for x·Aᵀ where adapters
    /// stay beside the weights. Adapters that were folded are taken as they were then; there is no dropout.
    pub fn infer(
        &self,
        backend: &B,
        pixels: &B::Tensor,
        mix: Option<&Mix<B>>,
        tuning: TowerTuning<'_, B>,
        a: &mut VisionActivations<B>,
    ) -> Result<()> {
        let prompts = tuning.prompts;
        // The memory of the last block that computes all rows has room for the sequences of every such block.
        let last = a.blocks.len().saturating_sub(1);
        let wide = match self.blocks.last().map(Block::rows) {
            Some(Rows::One) => last.saturating_sub(1),
            _ => last,
        };
        let memory_of = |l: usize| if self.blocks[l].rows() == Rows::One { last } else { wide };
        if !self.blocks.is_empty() {
            a.blocks[memory_of(0)].set_extent(backend, self.sizes(0, prompts, a.batch))?;
        }
        let first = if self.blocks.is_empty() { 0 } else { memory_of(0) };
        self.embed(backend, pixels, mix, prompts, first, a)?;
        let mut exchanged = vec![false; self.blocks.len()];
        for (l, block) in self.blocks.iter().enumerate() {
            let sizes = self.sizes(l, prompts, a.batch);
            let current = &mut a.blocks[memory_of(l)];
            if l > 0 {
                current.set_extent(backend, sizes)?;
                // Where there are as many tokens as behind the block before, the two buffers change places.
                exchanged[l] = prompts.is_none_or(|prompts| prompts.mode == PromptMode::Replace);
                if exchanged[l] {
                    std::mem::swap(&mut a.full_output, &mut current.input);
                }
                Self::add_prompts(backend, prompts, l, &a.full_output, &mut current.input)?;
            }
            let scratch = if block.rows() == Rows::One { &mut a.class_scratch } else { &mut a.scratch };
            scratch.set_extent(backend, sizes)?;
            let pass = Pass { form: Form::Folded, rows: &a.class_rows };
            let (memory, layers) = (BlockMemory { own: current, scratch }, tuning.lora.get(l));
            if block.rows() == Rows::One {
                let end = (&self.end, &mut a.ends);
                block.forward_to_features(backend, layers, pass, memory, end)?;
            } else {
                a.full_output.set_shape([sizes.batch, sizes.tokens, sizes.width].into())?;
                block.forward(backend, layers, pass, memory, &mut a.full_output)?;
            }
        }
        self.project(backend, a)?;
        // What comes next finds every tensor in its place.
        for l in (0..self.blocks.len()).rev().filter(|l| exchanged[*l]) {
            std::mem::swap(&mut a.full_output, &mut a.blocks[memory_of(l)].input);
        }
        Ok(())
    }

    /// Tokens in front of the first block, whose memory is `a.blocks[first]`.
    fn embed(
        &self,
        backend: &B,
        pixels: &B::Tensor,
        mix: Option<&Mix<B>>,
        prompts: Option<&Prompts<B>>,
        first: usize,
        a: &mut VisionActivations<B>,
    ) -> Result<()> {
        let (embedding, patches, products) = (&self.embedding, &mut a.patches, &mut a.products);
        let mut to = |x| backend.patch_embed(PatchEmbed { pixels, mix, embedding, patches, products, x });
        match (a.blocks.get_mut(first), prompts) {
            (Some(block), None) => to(&mut block.input),
            (block, prompts) => {
                let (tokens, width) = (self.config.tokens(), self.config.tower.width);
                a.full_output.set_shape([a.batch, tokens, width].into())?;
                to(&mut a.full_output)?;
                match (block, prompts) {
                    (Some(block), Some(prompts)) => {
                        let values = &prompts.param.value;
                        backend.insert_prompts(&a.full_output, values, prompts.set(0), &mut block.input)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Makes the tokens in front of block `l` of those behind the block before: prompts in the place of those that are
    /// there, in `input`, or beside all of `output`.
    fn add_prompts(
        backend: &B,
        prompts: Option<&Prompts<B>>,
        l: usize,
        output: &B::Tensor,
        input: &mut B::Tensor,
    ) -> Result<()> {
        let Some(prompts) = prompts else { return Ok(()) };
        let (values, set) = (&prompts.param.value, prompts.set(l));
        match prompts.mode {
            PromptMode::Replace => backend.replace_prompts(values, set, input),
            PromptMode::Accumulate => backend.insert_prompts(output, values, set, input),
        }
    }

    /// From the tokens behind the last block to the normalised features, unless that block has computed them.
    fn project(&self, backend: &B, a: &mut VisionActivations<B>) -> Result<()> {
        if self.blocks.last().is_some_and(|block| block.rows() == Rows::One) {
            return Ok(());
        }
        backend.take_rows(&a.full_output, &a.class_rows, &mut a.ends.last)?;
        self.end.forward(backend, &mut a.ends)
    }

    /// From the gradient of the features, in `a.d_ends`, to the gradients of all adapters and prompts.
    ///
    /// It stops at the first trained tensor and computes nothing that only frozen ones would need.
    pub fn backward(
        &self,
        backend: &B,
        lora: &mut [BlockLayers<B>],
        mut prompts: Option<&mut Prompts<B>>,
        dropout: Option<TowerDropout<'_, B>>,
        a: &mut VisionActivations<B>,
    ) -> Result<()> {
        // Prompts stand in front of the first block.
        let first_trained = match prompts {
            Some(_) => Some(0),
            None => lora.iter().position(|l| l.adapters().next().is_some()),
        };
        let stop = match (first_trained, self.savings.stop_at_first_trained) {
            (None, true) => return Ok(()),
            (Some(layer), true) => layer,
            (_, false) => 0,
        };
        if let Some(prompts) = prompts.as_deref_mut() {
            backend.clear(&mut prompts.param.gradient)?;
        }
        let last = self.blocks.last().map(Block::rows);
        if last != Some(Rows::One) {
            self.end.backward(backend, &a.ends, &mut a.d_ends)?;
        }
        let width = self.config.tower.width;
        let mut shortened = vec![false; self.blocks.len()];
        for l in (stop..self.blocks.len()).rev() {
            let (sizes, form) = (self.sizes(l, prompts.as_deref(), a.batch), a.form(dropout, l));
            let wanted = l > stop || prompts.is_some() || !self.savings.stop_at_first_trained;
            let (block, own) = (&self.blocks[l], &mut a.blocks[l]);
            // Behind the blocks `full_output` is free: it carries the gradient of the token sequence.
            a.full_output.set_shape([sizes.batch, sizes.tokens, width].into())?;
            if l + 1 == self.blocks.len() && block.rows() == Rows::All {
                backend.clear(&mut a.full_output)?;
                backend.take_rows_backward(&a.d_ends.last, &a.class_rows, &mut a.full_output)?;
            }
            let scratch = if block.rows() == Rows::One { &mut a.class_scratch } else { &mut a.scratch };
            scratch.set_extent(backend, sizes)?;
            let pass = Pass { form, rows: &a.class_rows };
            let (memory, layers) = (BlockMemory { own, scratch }, lora.get_mut(l));
            let d = &mut a.full_output;
            if block.rows() == Rows::One {
                let ends = (&self.end, &a.ends, &mut a.d_ends);
                block.backward_from_features(backend, layers, pass, memory, ends, (d, wanted))?;
            } else {
                block.backward(backend, layers, pass, memory, Gradient { d, d_input: None, wanted })?;
            }
            if let Some(prompts) = prompts.as_deref_mut() {
                let before = l.checked_sub(1).map(|l| [sizes.batch, self.tokens(l, Some(prompts)), width]);
                shortened[l] = a.prompts_backward(backend, prompts, l, before)?;
            }
        }
        self.end_backward(backend, lora, stop, &shortened, a)
    }

    /// Computes the gradients that blocks from `stop` on left to the end of the backward pass, and puts every tensor
    /// back in its place. `shortened` says in front of which blocks [`VisionActivations::prompts_backward`] exchanged
    /// tensors.
    fn end_backward(
        &self,
        backend: &B,
        lora: &mut [BlockLayers<B>],
        stop: usize,
        shortened: &[bool],
        a: &mut VisionActivations<B>,
    ) -> Result<()> {
        let mut gradients = Vec::new();
        for (block, layers) in a.blocks.iter().zip(lora).skip(stop) {
            block.gradients(layers, &mut gradients);
        }
        if !gradients.is_empty() {
            backend.lora_gradients(&mut gradients)?;
        }
        for (l, block) in a.blocks.iter_mut().enumerate().skip(stop) {
            if let Some(shorter) = a.shorter.as_mut().filter(|_| shortened[l]) {
                std::mem::swap(&mut a.full_output, shorter);
            }
            block.put_back(match self.blocks[l].rows() {
                Rows::One => &mut a.d_ends.last,
                Rows::All => &mut a.full_output,
            });
        }
        Ok(())
    }
}

/// A matrix with zeros behind its columns, up to so many.
fn widened(matrix: Tensor, columns: usize) -> Tensor {
    let (rows, of) = matrix.view().shape().matrix();
    if of == columns {
        return matrix;
    }
    let (size, mut wide) =
        (matrix.view().dtype().size(), Tensor::zeros([rows, columns], matrix.view().dtype()));
    let to = wide.bytes_mut().chunks_exact_mut(columns * size);
    to.zip(matrix.bytes().chunks_exact(of * size))
        .for_each(|(to, from)| to[..of * size].copy_from_slice(from));
    wide
}

/// Use that a tower's memory is allocated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Forward passes that keep nothing: the memory of two blocks.
    Inference,
    /// Training steps as well: every block's activations and gradients.
    Training {
        /// Adapters are folded into the weights in training steps, see [`VisionTower::trains_folded`].
        folded: bool,
    },
}

/// All memory of the vision tower, allocated once for the largest batch.
pub struct VisionActivations<B: Backend> {
    batch: usize,
    trains_folded: bool,
    patches: B::Tensor,
    products: B::Tensor,
    blocks: Vec<BlockActivations<B>>,
    scratch: Scratch<B>,
    class_scratch: Scratch<B>,
    /// Row 0 of every sequence: the class token.
    class_rows: B::Tensor,
    /// The tokens behind a block; in the backward pass the gradient there.
    full_output: B::Tensor,
    /// As large as `full_output`, where sequences grow and a backward pass will run.
    shorter: Option<B::Tensor>,
    /// Behind the last block; with the features.
    pub(crate) ends: Ends<B>,
    /// Where the backward pass starts.
    pub(crate) d_ends: EndGradients<B>,
}

impl<B: Backend> VisionActivations<B> {
    /// Memory for batches of up to `batch` images; `tuning` as the tower's passes will get it.
    pub fn new(
        backend: &B,
        tower: &VisionTower<B>,
        batch: usize,
        tuning: TowerTuning<'_, B>,
        purpose: Purpose,
    ) -> Result<Self> {
        let config = &tower.config;
        let (p, d, layers) = (config.patch_size, config.tower.width, tower.blocks.len());
        let count = config.patches();
        let training = purpose != Purpose::Inference;
        let make = |dims: [usize; 3]| backend.empty(dims, backend.compute_dtype());
        let longest = tower.longest(tuning.prompts);
        let widest = tower.blocks.iter().rposition(|block| block.rows() == Rows::All);
        let sizes = |l: usize| {
            let sizes = tower.sizes(l, tuning.prompts, batch);
            // This block's memory also serves all others in evaluation.
            let tokens = if Some(l) == widest { longest } else { sizes.tokens };
            BlockSizes { tokens, ..sizes }
        };
        let kept =
            (0..layers).filter(|&l| training || Some(l) == widest || tower.blocks[l].rows() == Rows::One);
        let folded = purpose == Purpose::Training { folded: true };
        let longest_kept = folded.then_some(longest);
        let blocks = kept
            .map(|l| BlockActivations::new(backend, sizes(l), tuning.lora.get(l), longest_kept))
            .collect::<Result<_>>()?;
        let scratch = |rows| {
            let of_kind: Vec<usize> = (0..layers).filter(|&l| tower.blocks[l].rows() == rows).collect();
            let lora: Vec<_> = of_kind.iter().filter_map(|&l| tuning.lora.get(l)).collect();
            let (any, t) = (!of_kind.is_empty(), &config.tower);
            let tokens = if any { longest } else { 0 };
            let sizes = BlockSizes { batch, tokens, width: d, mlp: t.mlp, heads: t.heads, rows };
            Scratch::new(backend, sizes, &lora, tuning.dropout.is_some(), folded, training && any)
        };
        let grows = tuning.prompts.is_some_and(|prompts| prompts.mode == PromptMode::Accumulate);
        let shorter = if grows && training { Some(make([batch, longest, d])?) } else { None };
        let rows = Tensor::zeros([batch], DType::U32);
        Ok(VisionActivations {
            batch,
            trains_folded: folded,
            patches: make([batch, count, backend.patch_columns(3 * p * p)])?,
            products: make([batch, count, d])?,
            blocks,
            scratch: scratch(Rows::All)?,
            class_scratch: scratch(Rows::One)?,
            class_rows: backend.upload(rows.view(), DType::U32)?,
            full_output: make([batch, longest, d])?,
            shorter,
            ends: Ends::new(backend, batch, d, tower.features)?,
            d_ends: EndGradients::new(backend, batch, d, tower.features)?,
        })
    }

    /// The normalised features \[B, E\].
    pub fn features(&self) -> &B::Tensor {
        &self.ends.features
    }

    /// Whether training steps have the adapters folded into the weights.
    pub fn trains_folded(&self) -> bool {
        self.trains_folded
    }

    /// Sets the number of images, up to the number that the memory was made for.
    pub fn set_batch(&mut self, batch: usize) -> Result<()> {
        self.batch = batch;
        self.ends.set_batch(batch)?;
        self.d_ends.set_batch(batch)?;
        let tensors = [&mut self.patches, &mut self.products, &mut self.class_rows, &mut self.full_output];
        tensors.into_iter().try_for_each(|tensor| tensor.set_rows(batch))
    }

    /// How training steps take the adapters of block `layer`.
    fn form<'d>(&self, dropout: Option<TowerDropout<'d, B>>, layer: usize) -> Form<'d, B> {
        match self.trains_folded {
            true => Form::Folded,
            false => Form::beside(dropout, Tower::Vision, layer),
        }
    }

    /// Adds the gradient of the prompts in front of block `l`. `full_output` holds the gradient of the block's
    /// input and then that of the output of the block before it, whose shape is `before`. True where it has changed places
    /// with `shorter`.
    fn prompts_backward(
        &mut self,
        backend: &B,
        prompts: &mut Prompts<B>,
        l: usize,
        before: Option<[usize; 3]>,
    ) -> Result<bool> {
        let (set, mode) = (prompts.set(l), prompts.mode);
        let gradient = &mut prompts.param.gradient;
        match (before, mode, &mut self.shorter) {
            // In front of the first block there is nothing to train but the prompts.
            (None, ..) => backend.insert_prompts_backward(&self.full_output, set, gradient, None)?,
            (Some(before), PromptMode::Accumulate, Some(shorter)) => {
                shorter.set_shape(before.into())?;
                backend.insert_prompts_backward(&self.full_output, set, gradient, Some(shorter))?;
                std::mem::swap(&mut self.full_output, shorter);
                return Ok(true);
            }
            _ => backend.replace_prompts_backward(&mut self.full_output, set, gradient)?,
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Activation;
    use crate::backend::cpu::Cpu;
    use crate::clip::config::TowerConfig;
    use crate::clip::random::RandomWeights;
    use crate::tune::{Head, PromptSharing, PromptSpec, Site, Target, Trained, initial_prompts};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    /// In f32 the deepest of these gradients differ by 1e-4 of them, by rounding alone.
    type Host = Cpu<f64>;

    /// Values other than zero for A and for B.
    struct Warm;

    impl LoraInit for Warm {
        fn start(&mut self, site: Site, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
            let of = |part, dims: [usize; 2]| {
                let source = RandomWeights { seed: 5 };
                source.tensor(&format!("{site}.{part}"), &dims).unwrap().view().to_tensor(DType::F32).unwrap()
            };
            (of("A", [2, inputs]), of("B", [outputs, 2]))
        }
    }

    fn tower(backend: &Host, savings: Savings) -> VisionTower<Host> {
        let activation = Activation::QuickGelu;
        let tower = TowerConfig { width: 16, mlp: 32, layers: 4, heads: 2, activation, norm_eps: 1e-5 };
        let config = VisionConfig { tower, image_size: 32, patch_size: 8 };
        VisionTower::load(backend, &RandomWeights { seed: 4 }, &config, 8, Normalisation::CLIP, savings)
            .unwrap()
    }

    fn trained(tower: &VisionTower<Host>, targets: &[Target], prompts: Option<PromptMode>) -> Trained<Host> {
        let backend = Host::new();
        let head = Tensor::zeros([1, 8], DType::F32);
        let mut trained =
            Trained::head(Head::new(&backend, head.view(), Tensor::zeros([1], DType::F32).view()).unwrap());
        trained.lora = tower.adapters(&backend, &LoraSpec::new(2, 4.0, targets), &mut Warm).unwrap();
        trained.prompts = prompts.map(|mode| {
            let spec = PromptSpec { sharing: PromptSharing::PerLayer, mode, count: 3 };
            let values = initial_prompts(&spec, 4, 16, &mut ChaCha8Rng::seed_from_u64(6));
            Prompts::new(&backend, mode, values.view()).unwrap()
        });
        trained.prepare_to_train(&backend).unwrap();
        trained
    }

    /// Where the tensors lie that change places in a step.
    fn places(a: &VisionActivations<Host>) -> Vec<*const u8> {
        let ends = [&a.full_output, &a.d_ends.last, &a.ends.last].into_iter().chain(&a.shorter);
        let kept = a.blocks.iter().flat_map(|block| [&block.input].into_iter().chain(block.kept()));
        ends.chain(kept).map(|tensor| tensor.bytes().as_ptr()).collect()
    }

    /// Two steps of the tower; the gradients of the second.
    fn gradients(tower: &VisionTower<Host>, trained: &mut Trained<Host>, folded: bool) -> Vec<f64> {
        let (backend, images) = (Host::new(), 2);
        let mut a =
            VisionActivations::new(&backend, tower, images, trained.tower(), Purpose::Training { folded })
                .unwrap();
        let before = places(&a);
        let pixels: Vec<u8> = (0..images * 32 * 32 * 3).map(|i| (i * i % 251) as u8).collect();
        let pixels = Tensor::from_slice([images, 32, 32, 3], &pixels).unwrap();
        for _ in 0..2 {
            BlockLayers::fold(&backend, &mut trained.lora).unwrap();
            tower.forward(&backend, &pixels, None, trained.tower(), &mut a).unwrap();
            let d = a.d_ends.features.typed_mut::<f64>().unwrap();
            d.iter_mut().enumerate().for_each(|(i, d)| *d = (i % 7) as f64 - 3.0);
            let Trained { lora, prompts, .. } = trained;
            tower.backward(&backend, lora, prompts.as_mut(), None, &mut a).unwrap();
            assert_eq!(places(&a), before, "after a step");
            tower.infer(&backend, &pixels, None, trained.tower(), &mut a).unwrap();
            assert_eq!(places(&a), before, "after an evaluation");
        }
        let params = trained.params();
        let inside = params.iter().filter(|param| param.group != crate::tune::Group::Head);
        inside.flat_map(|param| param.gradient.typed::<f64>().unwrap().to_vec()).collect()
    }

    #[test]
    fn folded_adapters_have_the_gradients_of_adapters_beside_and_every_tensor_is_in_its_place_afterwards() {
        let backend = Host::new();
        let targets = [
            &Target::ALL[..],
            &[Target::Query],
            &[Target::Key, Target::Output],
            &[Target::Expand],
            &[Target::Contract],
            &[Target::Output],
        ];
        for savings in [Savings::ALL, Savings::NONE] {
            let tower = tower(&backend, savings);
            for targets in targets {
                for prompts in [None, Some(PromptMode::Replace), Some(PromptMode::Accumulate)] {
                    let mut trained = trained(&tower, targets, prompts);
                    let beside = gradients(&tower, &mut trained, false);
                    let folded = gradients(&tower, &mut trained, true);
                    let size = beside.iter().fold(0.0f64, |size, g| size.max(g.abs()));
                    let apart =
                        beside.iter().zip(&folded).fold(0.0f64, |worst, (b, f)| worst.max((b - f).abs()));
                    assert!(
                        size > 1e-3 && apart < 1e-11 * size,
                        "{targets:?} {prompts:?} {savings:?}: {apart} of {size}"
                    );
                }
            }
        }
    }
}
