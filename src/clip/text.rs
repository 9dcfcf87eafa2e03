//! The text tower, run once: prompts to the constant class features T.

use super::ClipError;
use super::block::{Adapters, Block, BlockActivations, BlockSizes, Rows, Scratch};
use super::config::TextConfig;
use super::source::{Loader, WeightSource};
use super::tokenizer::TokenBatch;
use crate::backend::{Backend, LayerNorm, Linear};
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor, View};

/// The prompts around a class name; `{}` stands for it.
pub const TEMPLATES: [&str; 4] =
    ["A photo of {}.", "A photo of flower {}.", "Botanic picture of {}", "A example picture of type {}"];

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
    final_norm: LayerNorm<B>,
    projection: Linear<B>,
    config: TextConfig,
    features: usize,
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
        let d = config.tower.width;
        let block = |layer| {
            let prefix = format!("text_model.encoder.layers.{layer}");
            Block::load(&loader, &prefix, &config.tower, true, Rows::All)
        };
        Ok(TextTower {
            blocks: (0..config.tower.layers).map(block).collect::<Result<_, _>>()?,
            final_norm: loader.layer_norm("text_model.final_layer_norm", d, config.tower.norm_eps)?,
            projection: Linear {
                weight: loader.tensor("text_projection.weight", &[features, d])?,
                bias: None,
            },
            config: config.clone(),
            features,
        })
    }

    /// Normalised features \[N, E\] of tokenised prompts, in the backend's master type. The rows of the token
    /// embedding that occur are read from `source`.
    pub fn features(
        &self,
        backend: &B,
        source: &dyn WeightSource,
        tokens: &TokenBatch,
        monitor: &dyn Monitor,
    ) -> Result<Tensor, ClipError> {
        let (t, d) = (&self.config.tower, self.config.tower.width);
        let (len, dtype) = (tokens.len, backend.compute_dtype());
        let batch = tokens.rows.min(BATCH);
        let sizes = BlockSizes { batch, tokens: len, width: d, mlp: t.mlp, heads: t.heads, rows: Rows::All };
        let mut memory = TextMemory {
            sizes,
            activations: BlockActivations::new(backend, sizes, None)?,
            scratch: Scratch::new(backend, sizes, &[], false)?,
            output: backend.empty([batch, len, d], dtype)?,
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
            let part = self.batch(backend, &embedding.embed(ids, len)?, eos, &mut memory)?;
            features.extend_from_slice(part.bytes());
            monitor.advance(rows as u64);
        }
        monitor.finish();
        let master = backend.master_dtype();
        Ok(View::new([tokens.rows, self.features], master, &features)?.to_tensor(master)?)
    }

    /// Features of one batch of embedded prompts.
    fn batch(
        &self,
        backend: &B,
        embedded: &Tensor,
        eos: &[u32],
        m: &mut TextMemory<B>,
    ) -> Result<Tensor, ClipError> {
        use crate::backend::DeviceTensor;
        let (n, d, e) = (eos.len(), self.config.tower.width, self.features);
        let (dtype, master) = (backend.compute_dtype(), backend.master_dtype());
        let sizes = BlockSizes { batch: n, ..m.sizes };
        m.activations.set_extent(backend, sizes)?;
        m.scratch.set_extent(backend, sizes)?;
        m.output.set_rows(n)?;
        let rows = backend.upload(Tensor::from_slice([n], eos)?.view(), DType::U32)?;
        backend.write(embedded.view(), &mut m.output)?;
        for block in &self.blocks {
            std::mem::swap(&mut m.activations.input, &mut m.output);
            let (a, output) = (&mut m.activations, &mut m.output);
            block.forward(backend, Adapters::None, &rows, a, &mut m.scratch, output)?;
        }
        let mut last = backend.empty([n, 1, d], dtype)?;
        let mut normed = backend.empty([n, 1, d], dtype)?;
        let mut stats = backend.empty([n, 1, 2], master)?;
        let mut projected = backend.empty([n, e], dtype)?;
        let mut features = backend.empty([n, e], master)?;
        let mut norms = backend.empty([n], master)?;
        backend.take_rows(&m.output, &rows, &mut last)?;
        backend.layer_norm(&last, &self.final_norm, &mut normed, &mut stats)?;
        backend.linear(&normed, &self.projection, None, &mut projected)?;
        backend.l2_norm(&projected, &mut features, &mut norms)?;
        Ok(backend.download(&features)?)
    }
}

struct TextMemory<B: Backend> {
    sizes: BlockSizes,
    activations: BlockActivations<B>,
    scratch: Scratch<B>,
    output: B::Tensor,
}

/// Token and position embeddings on the host, where only the rows that occur are read.
struct Embedding<'a> {
    tokens: super::source::Loaded<'a>,
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

    /// Token plus position embedding of prompts of `len` tokens each: f64 \[N, len, D\].
    fn embed(&self, ids: &[u32], len: usize) -> Result<Tensor, ClipError> {
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
