//! The text tower: prompts to class features T, once where it is frozen, in every step where it is trained.

use super::ClipError;
use super::block::{self, Block, BlockActivations, BlockMemory, BlockSizes, Gradient, Pass, Rows, Scratch};
use super::config::TextConfig;
use super::end::{End, EndGradients, Ends};
use super::tokenizer::TokenBatch;
use super::weight_source::{Loaded, Loader, WeightSource};
use crate::backend::{Backend, DeviceTensor, Result};
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor, TensorError, View};
use crate::tune::adapted::Form;
use crate::tune::{BlockLayers, LoraInit, LoraSpec, Param, Place, Tower, TowerDropout, add_up};
use std::collections::{BTreeSet, HashMap};

/// Prompts for classes of any kind; `{}` stands for the class name.
pub const TEMPLATES: [&str; 4] =
    ["a photo of a {}.", "a close-up photo of a {}.", "a cropped photo of a {}.", "a bright photo of a {}."];

/// Prompts for species of flowers.
pub const FLOWER_TEMPLATES: [&str; 4] =
    ["A photo of {}.", "A photo of flower {}.", "Botanic picture of {}", "A example picture of type {}"];

/// The one prompt of CLIP-LoRA (Zanella and Ben Ayed 2024), and that for species of flowers.
pub const CLIP_LORA_TEMPLATES: [&str; 2] = ["a photo of a {}.", "a photo of a {}, a type of flower."];

/// Prompts encoded together.
const BATCH: usize = 64;

/// One prompt per class and template, the templates of a class adjacent. Underscores in class names
/// become spaces.
pub fn prompts(class_names: &[String], templates: &[String]) -> Vec<String> {
    let names = class_names.iter().map(|name| name.replace('_', " "));
    names.flat_map(|name| templates.iter().map(move |t| t.replace("{}", &name))).collect()
}

/// The frozen text tower.
pub struct TextTower<B: Backend> {
    blocks: Vec<Block<B>>,
    end: End<B>,
    config: TextConfig,
    pub(crate) features: usize,
}

impl<B: Backend> TextTower<B> {
    /// Loads the tower; the token embedding stays where it is, see [`TextTower::features`].
    pub fn load(
        backend: &B,
        source: &dyn WeightSource,
        config: &TextConfig,
        features: usize,
    ) -> Result<Self, ClipError> {
        let loader = Loader { backend, source };
        let names = ["text_model.final_layer_norm", "text_projection.weight"];
        let block = |layer| {
            let prefix = format!("text_model.encoder.layers.{layer}");
            Block::load(&loader, &prefix, &config.tower, true, Rows::All)
        };
        Ok(TextTower {
            blocks: (0..config.tower.layers).map(block).collect::<Result<_, _>>()?,
            end: End::load(&loader, names, &config.tower, features)?,
            config: config.clone(),
            features,
        })
    }

    /// Layers with adapters for every block, starting where `init` says; none where `spec` leaves the tower as it is.
    pub fn adapters(
        &self,
        backend: &B,
        spec: &LoraSpec,
        init: &mut dyn LoraInit,
    ) -> Result<Vec<BlockLayers<B>>> {
        block::adapted(backend, &self.blocks, (Tower::Text, &self.config.tower), spec, init)
    }

    /// Normalised features \[N, E\] of tokenised prompts, in the backend's parameter dtype. The rows of the token
    /// embedding that occur are read from `source`. `lora` are the layers with adapters, if there are any; adapters that
    /// were folded are taken as they were then.
    pub fn features(
        &self,
        backend: &B,
        source: &dyn WeightSource,
        tokens: &TokenBatch,
        lora: &[BlockLayers<B>],
        monitor: &dyn Monitor,
    ) -> Result<Tensor, ClipError> {
        let (t, d) = (&self.config.tower, self.config.tower.width);
        let (len, dtype) = (tokens.len, backend.compute_dtype());
        let batch = tokens.rows.min(BATCH);
        let sizes = BlockSizes { batch, tokens: len, width: d, mlp: t.mlp, heads: t.heads, rows: Rows::All };
        let mut memory = TextMemory {
            sizes,
            activations: BlockActivations::new(backend, sizes, lora.first(), None)?,
            scratch: Scratch::new(backend, sizes, &[], false, false, false)?,
            output: backend.empty([batch, len, d], dtype)?,
            ends: Ends::new(backend, batch, d, self.features)?,
        };
        let embedding = Embedding::load(source, &self.config, len)?;
        let mut features = Vec::new();
        monitor.begin("text features", tokens.rows as u64);
        for start in (0..tokens.rows).step_by(BATCH) {
            if monitor.stopped() {
                monitor.finish();
                return Err(ClipError::Interrupted);
            }
            let rows = BATCH.min(tokens.rows - start);
            let ids = &tokens.ids[start * len..][..rows * len];
            let eos = &tokens.eos_rows[start..][..rows];
            let part = self.batch(backend, &embedding.embed(ids, len)?, eos, lora, &mut memory)?;
            features.extend_from_slice(part.bytes());
            monitor.advance(rows as u64);
        }
        monitor.finish();
        let parameter = backend.parameter_dtype();
        Ok(View::new([tokens.rows, self.features], parameter, &features)?.to_tensor(parameter)?)
    }

    /// Features of one batch of embedded prompts.
    fn batch(
        &self,
        backend: &B,
        embedded: &Tensor,
        eos: &[u32],
        lora: &[BlockLayers<B>],
        m: &mut TextMemory<B>,
    ) -> Result<Tensor, ClipError> {
        let n = eos.len();
        let sizes = BlockSizes { batch: n, ..m.sizes };
        m.activations.set_extent(backend, sizes)?;
        m.scratch.set_extent(backend, sizes)?;
        m.output.set_rows(n)?;
        m.ends.set_batch(n)?;
        let rows = backend.upload(Tensor::from_slice([n], eos)?.view(), DType::U32)?;
        backend.copy_from_host(embedded.view(), &mut m.output)?;
        for (l, block) in self.blocks.iter().enumerate() {
            std::mem::swap(&mut m.activations.input, &mut m.output);
            let pass = Pass { form: Form::Folded, rows: &rows };
            let memory = BlockMemory { own: &mut m.activations, scratch: &mut m.scratch };
            block.forward(backend, lora.get(l), pass, memory, &mut m.output)?;
        }
        self.project(backend, &m.output, &rows, &mut m.ends)?;
        Ok(backend.download(&m.ends.features)?)
    }

    /// From the tokens behind the last block to the normalised features.
    fn project(&self, backend: &B, output: &B::Tensor, eos: &B::Tensor, ends: &mut Ends<B>) -> Result<()> {
        backend.take_rows(output, eos, &mut ends.last)?;
        self.end.forward(backend, ends)
    }

    /// Class features with the adapters beside the weights: `t` \[C, E\] in the parameter dtype. Where there is one
    /// part, its activations are kept.
    pub fn forward(
        &self,
        backend: &B,
        lora: &[BlockLayers<B>],
        dropout: Option<TowerDropout<'_, B>>,
        a: &mut TextActivations<B>,
        t: &mut B::Tensor,
    ) -> Result<()> {
        for index in 0..a.parts.len() {
            self.forward_part(backend, lora, dropout, a, index)?;
            let TextPart { first_class, classes, .. } = a.parts[index];
            backend.copy_rows(&a.classes, 0, t, first_class, classes)?;
        }
        Ok(())
    }

    fn forward_part(
        &self,
        backend: &B,
        lora: &[BlockLayers<B>],
        dropout: Option<TowerDropout<'_, B>>,
        a: &mut TextActivations<B>,
        index: usize,
    ) -> Result<()> {
        a.set_part(backend, index)?;
        let dropout = dropout.map(|dropout| dropout.of_part(index));
        let TextActivations { parts, blocks, scratch, output, ends, classes, class_norms, .. } = a;
        let part = &mut parts[index];
        if let Some(first) = blocks.first_mut() {
            std::mem::swap(&mut first.input, &mut part.embedded);
        }
        let mut result = Ok(());
        for (l, block) in self.blocks.iter().enumerate() {
            let (current, next) = blocks.split_at_mut(l + 1);
            let output = next.first_mut().map_or(&mut *output, |next| &mut next.input);
            let pass = Pass { form: Form::beside(dropout, Tower::Text, l), rows: &part.eos };
            let memory = BlockMemory { own: &mut current[l], scratch };
            result = block.forward(backend, lora.get(l), pass, memory, output);
            if result.is_err() {
                break;
            }
        }
        if let Some(first) = blocks.first_mut() {
            std::mem::swap(&mut first.input, &mut part.embedded);
        }
        result?;
        self.project(backend, output, &part.eos, ends)?;
        backend.class_features(&ends.features, classes, class_norms)
    }

    /// Class features as evaluation has them, without dropout: `t` \[C, E\]. Adapters that were folded are taken as they
    /// were then.
    pub fn infer(
        &self,
        backend: &B,
        lora: &[BlockLayers<B>],
        a: &mut TextActivations<B>,
        t: &mut B::Tensor,
    ) -> Result<()> {
        for index in 0..a.parts.len() {
            a.set_part(backend, index)?;
            let TextActivations { parts, blocks, scratch, output, ends, classes, class_norms, .. } = a;
            let (part, Some(own)) = (&parts[index], blocks.first_mut()) else { break };
            backend.copy_rows(&part.embedded, 0, output, 0, part.eos.shape().rows())?;
            for (l, block) in self.blocks.iter().enumerate() {
                std::mem::swap(&mut own.input, output);
                let pass = Pass { form: Form::Folded, rows: &part.eos };
                block.forward(backend, lora.get(l), pass, BlockMemory { own, scratch }, output)?;
            }
            self.project(backend, output, &part.eos, ends)?;
            backend.class_features(&ends.features, classes, class_norms)?;
            backend.copy_rows(classes, 0, t, part.first_class, part.classes)?;
        }
        Ok(())
    }

    /// From the gradient of the class features `dt` \[C, E\] to the gradients of all adapters, after
    /// [`TextTower::forward`] with the same dropout. It stops at the first adapter.
    pub fn backward(
        &self,
        backend: &B,
        lora: &mut [BlockLayers<B>],
        dropout: Option<TowerDropout<'_, B>>,
        a: &mut TextActivations<B>,
        dt: &B::Tensor,
    ) -> Result<()> {
        let Some(stop) = lora.iter().position(|l| l.adapters().next().is_some()) else { return Ok(()) };
        let last = a.parts.len().saturating_sub(1);
        // The activations of the last part are still there.
        for index in (0..a.parts.len()).rev() {
            if index != last {
                self.forward_part(backend, lora, dropout, a, index)?;
            }
            let TextPart { first_class, classes, .. } = a.parts[index];
            backend.copy_rows(dt, first_class, &mut a.d_classes, 0, classes)?;
            let dropout = dropout.map(|dropout| dropout.of_part(index));
            self.backward_part(backend, lora, dropout, a, index, stop)?;
            let gradients = lora.iter_mut().flat_map(|l| l.adapters_mut()).flat_map(|l| [&mut l.a, &mut l.b]);
            let place = Place::of(last - index, a.parts.len());
            add_up(backend, gradients.map(|p| &mut p.gradient), &mut a.sums, place)?;
        }
        Ok(())
    }

    /// From the gradient of the part's class features, in `a.d_classes`.
    fn backward_part(
        &self,
        backend: &B,
        lora: &mut [BlockLayers<B>],
        dropout: Option<TowerDropout<'_, B>>,
        a: &mut TextActivations<B>,
        index: usize,
        stop: usize,
    ) -> Result<()> {
        let (part, d_ends) = (&a.parts[index], &mut a.d_ends);
        backend.class_features_backward(&a.d_classes, &a.classes, &a.class_norms, &mut d_ends.features)?;
        self.end.backward(backend, &a.ends, d_ends)?;
        // Behind the blocks `output` is free: it carries the gradient of the token sequence.
        backend.clear(&mut a.output)?;
        backend.take_rows_backward(&a.d_ends.last, &part.eos, &mut a.output)?;
        for l in (stop..self.blocks.len()).rev() {
            let pass = Pass { form: Form::beside(dropout, Tower::Text, l), rows: &part.eos };
            let memory = BlockMemory { own: &mut a.blocks[l], scratch: &mut a.scratch };
            let gradient = Gradient { d: &mut a.output, d_input: None, wanted: l > stop };
            self.blocks[l].backward(backend, lora.get_mut(l), pass, memory, gradient)?;
        }
        Ok(())
    }
}

struct TextMemory<B: Backend> {
    sizes: BlockSizes,
    activations: BlockActivations<B>,
    scratch: Scratch<B>,
    output: B::Tensor,
    ends: Ends<B>,
}

/// Token and position embeddings on the host, where only the rows that occur are read.
struct Embedding<'a> {
    tokens: Loaded<'a>,
    positions: Tensor,
    width: usize,
}

impl<'a> Embedding<'a> {
    fn load(source: &'a dyn WeightSource, config: &TextConfig, len: usize) -> Result<Self, ClipError> {
        let d = config.tower.width;
        let name = "text_model.embeddings.position_embedding.weight";
        let positions = source.tensor(name, &[config.max_tokens, d])?;
        let name = "text_model.embeddings.token_embedding.weight";
        Ok(Embedding {
            tokens: source.tensor(name, &[config.vocabulary, d])?,
            positions: positions.view().rows(0, len)?.to_tensor(DType::F64)?,
            width: d,
        })
    }

    /// The embedding of those tokens alone that are among `ids`, and these as its rows.
    fn of_those_in(&self, ids: &[u32]) -> Result<(Embedding<'static>, Vec<u32>), ClipError> {
        let occurring: Vec<u32> = BTreeSet::from_iter(ids.iter().copied()).into_iter().collect();
        let mut rows = Tensor::zeros([occurring.len(), self.width], DType::F64);
        for (row, &id) in rows.typed_mut::<f64>()?.chunks_exact_mut(self.width).zip(&occurring) {
            let token = self.tokens.view().rows(id as usize, 1)?.to_tensor(DType::F64)?;
            row.copy_from_slice(token.typed::<f64>()?);
        }
        let row_of: HashMap<u32, u32> = occurring.into_iter().zip(0..).collect();
        let (positions, width) = (self.positions.clone(), self.width);
        Ok((
            Embedding { tokens: Loaded::Owned(rows), positions, width },
            ids.iter().map(|id| row_of[id]).collect(),
        ))
    }

    /// Token plus position embedding of prompts of `len` tokens each: f64 \[N, len, D\].
    fn embed(&self, ids: &[u32], len: usize) -> Result<Tensor, TensorError> {
        let mut x = Tensor::zeros([ids.len() / len, len, self.width], DType::F64);
        let positions = self.positions.typed::<f64>()?;
        for (index, (&id, x)) in
            ids.iter().zip(x.typed_mut::<f64>()?.chunks_exact_mut(self.width)).enumerate()
        {
            let token = self.tokens.view().rows(id as usize, 1)?.to_tensor(DType::F64)?;
            let position = &positions[index % len * self.width..][..self.width];
            for ((x, &t), &p) in x.iter_mut().zip(token.typed::<f64>()?).zip(position) {
                *x = t + p;
            }
        }
        Ok(x)
    }
}

/// The prompts of all classes and the embeddings of their tokens: what a tower in training starts from. The
/// prompts are embedded a part at a time, since all of them can take gigabytes.
pub struct EmbeddedPrompts {
    /// Embedding of those tokens alone that occur in the prompts.
    embedding: Embedding<'static>,
    /// Rows of `embedding` \[C·templates, tokens\], the templates of a class adjacent.
    ids: Vec<u32>,
    /// Tokens of each prompt.
    tokens: usize,
    /// For each prompt the row that stands for it.
    eos_rows: Vec<u32>,
    templates: usize,
}

impl EmbeddedPrompts {
    /// Tokenised prompts in the order of [`prompts`], with their embeddings from `source`.
    pub fn new(
        source: &dyn WeightSource,
        config: &TextConfig,
        tokens: &TokenBatch,
        templates: usize,
    ) -> Result<Self, ClipError> {
        let (embedding, ids) = Embedding::load(source, config, tokens.len)?.of_those_in(&tokens.ids)?;
        Ok(EmbeddedPrompts {
            embedding,
            ids,
            tokens: tokens.len,
            eos_rows: tokens.eos_rows.clone(),
            templates,
        })
    }

    /// Prompts `first` to `first` + `count` − 1, embedded: f64 \[count, tokens, D\].
    fn embed(&self, first: usize, count: usize) -> Result<Tensor> {
        Ok(self.embedding.embed(&self.ids[first * self.tokens..][..count * self.tokens], self.tokens)?)
    }

    /// Prompts of so many classes in so many templates: these, one after the other and again from the first.
    pub(crate) fn resized(&self, classes: usize, templates: usize) -> Result<Self, ClipError> {
        let count = classes * templates;
        let ids = self.ids.chunks_exact(self.tokens).cycle().take(count).flatten().copied();
        let (embedding, ids) = self.embedding.of_those_in(&ids.collect::<Vec<_>>())?;
        let eos_rows = self.eos_rows.iter().cycle().take(count).copied().collect();
        Ok(EmbeddedPrompts { embedding, ids, eos_rows, templates, ..*self })
    }

    /// Prompts of a class.
    pub(crate) fn templates(&self) -> usize {
        self.templates
    }

    /// The number of prompts: one for each class and template.
    pub fn count(&self) -> usize {
        self.eos_rows.len()
    }

    /// Tokens of each prompt: those of the longest, to which the others were padded.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Classes in a part of up to `part` prompts.
    pub(crate) fn together(&self, part: usize) -> usize {
        (part / self.templates.max(1)).clamp(1, self.classes().max(1))
    }

    /// Prompts of the last such part, which the backward pass need not compute again.
    pub fn in_last_part(&self, part: usize) -> usize {
        let (classes, together) = (self.classes(), self.together(part));
        (classes - classes.saturating_sub(1) / together * together) * self.templates
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.eos_rows.len() / self.templates.max(1)
    }
}

/// All memory of a text tower in training, and its prompts.
///
/// The prompts fall into parts of whole classes. Where there are several, each part's activations take the
/// place of those of the part before, and the backward pass computes them again: memory does not grow with
/// the number of classes, a step takes another forward pass of the tower.
pub struct TextActivations<B: Backend> {
    parts: Vec<TextPart<B::Tensor>>,
    /// Sizes of a whole part.
    sizes: BlockSizes,
    blocks: Vec<BlockActivations<B>>,
    scratch: Scratch<B>,
    /// The tokens behind a block; in the backward pass the gradient there.
    output: B::Tensor,
    ends: Ends<B>,
    d_ends: EndGradients<B>,
    /// Class features of a part \[c, E\], and their lengths before they were normalised.
    classes: B::Tensor,
    class_norms: B::Tensor,
    d_classes: B::Tensor,
    /// Gradients of the adapters over the parts so far; none where there is one part.
    sums: Vec<B::Tensor>,
}

/// Prompts that are computed together, in tensors `T`.
struct TextPart<T> {
    /// \[n, tokens, D\]
    embedded: T,
    /// u32 \[n\]
    eos: T,
    first_class: usize,
    classes: usize,
}

/// Prompts of a part at the most, but one class at the least.
pub const PART: usize = 256;

impl<B: Backend> TextActivations<B> {
    /// Memory for parts of up to `part` prompts. `dropout` says whether there is any.
    pub fn new(
        backend: &B,
        tower: &TextTower<B>,
        prompts: &EmbeddedPrompts,
        lora: &[BlockLayers<B>],
        dropout: bool,
        part: usize,
    ) -> Result<Self> {
        let together = prompts.together(part);
        let parts = (0..prompts.classes())
            .step_by(together)
            .map(|first| Self::part(backend, prompts, first, together))
            .collect::<Result<Vec<_>>>()?;
        let sums = match parts.len() {
            0 | 1 => Vec::new(),
            _ => {
                let trained = lora.iter().flat_map(|l| l.adapters()).flat_map(|l| [&l.a, &l.b]);
                let empty = |p: &Param<B>| backend.empty(p.value.shape(), backend.parameter_dtype());
                trained.map(empty).collect::<Result<_>>()?
            }
        };
        let (t, e) = (&tower.config.tower, tower.features);
        let (batch, tokens, d) = (together * prompts.templates, prompts.tokens, t.width);
        let sizes = BlockSizes { batch, tokens, width: d, mlp: t.mlp, heads: t.heads, rows: Rows::All };
        let (compute, parameter) = (backend.compute_dtype(), backend.parameter_dtype());
        let all: Vec<&BlockLayers<B>> = lora.iter().collect();
        let blocks =
            (0..tower.blocks.len()).map(|l| BlockActivations::new(backend, sizes, lora.get(l), None));
        Ok(TextActivations {
            parts,
            sizes,
            blocks: blocks.collect::<Result<_>>()?,
            scratch: Scratch::new(backend, sizes, &all, dropout, false, true)?,
            output: backend.empty([batch, tokens, d], compute)?,
            ends: Ends::new(backend, batch, d, e)?,
            d_ends: EndGradients::new(backend, batch, d, e)?,
            classes: backend.empty([together, e], parameter)?,
            class_norms: backend.empty([together], parameter)?,
            d_classes: backend.empty([together, e], parameter)?,
            sums,
        })
    }

    /// Up to `together` classes from class `first` on.
    fn part(
        backend: &B,
        prompts: &EmbeddedPrompts,
        first: usize,
        together: usize,
    ) -> Result<TextPart<B::Tensor>> {
        let classes = together.min(prompts.classes() - first);
        let (row, rows) = (first * prompts.templates, classes * prompts.templates);
        let embedded = prompts.embed(row, rows)?;
        let eos = Tensor::from_slice([rows], &prompts.eos_rows[row..row + rows])?;
        Ok(TextPart {
            embedded: backend.upload(embedded.view(), backend.compute_dtype())?,
            eos: backend.upload(eos.view(), DType::U32)?,
            first_class: first,
            classes,
        })
    }

    /// Sets every buffer to the size of part `index`.
    fn set_part(&mut self, backend: &B, index: usize) -> Result<()> {
        let part = &self.parts[index];
        let (prompts, classes) = (part.eos.shape().rows(), part.classes);
        let sizes = BlockSizes { batch: prompts, ..self.sizes };
        // The first block's input is the part's own.
        let blocks = self.blocks.iter_mut();
        blocks.into_iter().try_for_each(|block| block.set_extent(backend, sizes))?;
        self.scratch.set_extent(backend, sizes)?;
        self.ends.set_batch(prompts)?;
        self.d_ends.set_batch(prompts)?;
        self.output.set_rows(prompts)?;
        let of_classes = [&mut self.classes, &mut self.class_norms, &mut self.d_classes];
        of_classes.into_iter().try_for_each(|tensor| tensor.set_rows(classes))
    }
}

/// Class features of the text tower and the scale of their logits.
#[derive(Debug, Clone)]
pub struct TextClassifier {
    /// T \[C, E\], rows normalised.
    pub features: Tensor,
    /// exp(logit_scale).
    pub scale: f64,
}

/// Class features T \[C, E\], f64: per class the mean over its prompts' normalised features, normalised
/// again. `features` \[C·templates, E\] in the order of [`prompts`].
pub fn class_features(features: &Tensor, templates: usize) -> Result<Tensor, ClipError> {
    let rows = features.view().to_tensor(DType::F64)?;
    let (classes, e) = (rows.shape().rows() / templates, rows.shape().columns());
    let mut out = Tensor::zeros([classes, e], DType::F64);
    let per_class = rows.typed::<f64>()?.chunks_exact(templates * e);
    for (out, prompts) in out.typed_mut::<f64>()?.chunks_exact_mut(e).zip(per_class) {
        for prompt in prompts.chunks_exact(e) {
            out.iter_mut().zip(prompt).for_each(|(sum, v)| *sum += v);
        }
        let norm = out.iter().map(|v| v * v).sum::<f64>().sqrt();
        out.iter_mut().for_each(|v| *v /= norm);
    }
    Ok(out)
}

/// exp(logit_scale): what text logits are multiplied with.
pub fn logit_scale(source: &dyn WeightSource) -> Result<f64, ClipError> {
    let scale = source.tensor("logit_scale", &[])?.view().to_tensor(DType::F64)?;
    Ok(scale.typed::<f64>()?[0].exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Activation;
    use crate::clip::config::TowerConfig;
    use crate::clip::random::RandomWeights;

    #[test]
    fn prompts_keep_the_tokens_that_occur_and_are_embedded_in_parts_as_at_once() {
        let activation = Activation::QuickGelu;
        let tower = TowerConfig { width: 8, mlp: 16, layers: 1, heads: 2, activation, norm_eps: 1e-5 };
        let config = TextConfig { tower, vocabulary: 500, max_tokens: 8, bos: Some(498), eos: 499 };
        let source = RandomWeights { seed: 3 };
        let ids = vec![498, 400, 7, 499, 498, 7, 499, 499, 498, 1, 400, 499, 498, 250, 1, 499];
        let tokens = TokenBatch { ids, len: 4, rows: 4, eos_rows: vec![3, 2, 3, 3], cut: Vec::new() };
        let whole = Embedding::load(&source, &config, 4).unwrap().embed(&tokens.ids, 4).unwrap();
        let prompts = EmbeddedPrompts::new(&source, &config, &tokens, 2).unwrap();
        for (first, count) in [(0, 4), (0, 2), (2, 2), (3, 1)] {
            let part = prompts.embed(first, count).unwrap();
            assert_eq!(part.bytes(), whole.view().rows(first, count).unwrap().bytes(), "{first} {count}");
        }
        assert_eq!(prompts.embedding.tokens.view().shape(), [6, 8].into(), "1, 7, 250, 400, 498, 499");
        assert_eq!((prompts.classes(), prompts.tokens()), (2, 4));
        let more = prompts.resized(3, 2).unwrap();
        assert_eq!((more.classes(), more.count()), (3, 6));
        for (first, same) in [(0, 0), (2, 2), (4, 0)] {
            let [found, expected] = [(&more, first), (&prompts, same)].map(|(p, at)| p.embed(at, 2).unwrap());
            assert_eq!(found.bytes(), expected.bytes(), "{first}");
        }
    }
}
