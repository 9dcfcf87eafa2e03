//! The operations of a training step, at its sizes.

use super::Op;
use crate::backend::Targets;
use crate::backend::{
    Activation, AdamwStep, AdamwTensor, AddTo, AttentionGradient, AttentionInput, AttentionShape, Backend,
    Classifier, Control, DeviceTensor, Dropout, LayerNorm, Linear, Lora, LoraFold, LoraGradients,
    LossWeights, Mix, PatchEmbedding, Result, Stat,
};
use crate::data::preprocess::{CLIP_MEAN, CLIP_STD};
use crate::dev::check::difference::normal;
use crate::tensor::{DType, Shape, Tensor};

#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    /// Tokens of an image, the class token included: 50 for ViT-B/32 at 224 pixels.
    pub tokens: usize,
    pub width: usize,
    pub heads: usize,
    pub mlp: usize,
    pub features: usize,
    pub classes: usize,
    pub rank: usize,
    pub side: usize,
    pub patch: usize,
}

impl Sizes {
    fn rows(&self) -> usize {
        self.batch * self.tokens
    }
}

pub type Visit<'v> = dyn FnMut(Op<'_>) -> Result<()> + 'v;

/// Groups of operations that can be measured apart from the rest, by the names that [`group`] takes.
pub const GROUPS: [&str; 19] = [
    "linear",
    "lora_linear",
    "dropout",
    "lora_fold",
    "lora_gradients",
    "layer_norm",
    "activation",
    "attention",
    "crop_resize",
    "patch_embed",
    "insert_prompts",
    "replace_prompts",
    "l2_norm",
    "class_features",
    "mix_rows",
    "head_loss",
    "triplet",
    "accumulate",
    "adamw",
];

/// Makes one operation after the other and hands it to `visit`: all of them, or those of each group whose
/// name `only` begins with ("attention" for "attention_backward 8x50").
pub fn each<B: Backend>(backend: &B, sizes: &Sizes, only: Option<&str>, visit: &mut Visit<'_>) -> Result<()> {
    let wanted = GROUPS.iter().filter(|name| only.is_none_or(|only| only.starts_with(**name)));
    wanted.into_iter().try_for_each(|name| group(backend, sizes, name, visit))
}

/// The operations of one of [`GROUPS`]; none for another name.
pub fn group<B: Backend>(backend: &B, sizes: &Sizes, name: &str, visit: &mut Visit<'_>) -> Result<()> {
    let b = Bench { backend, sizes, real: backend.compute_dtype() };
    let (d, m) = (sizes.width, sizes.mlp);
    match name {
        "linear" => {
            let layers = [(d, 3 * d), (d, d), (d, m), (m, d)];
            layers.into_iter().try_for_each(|(inputs, outputs)| b.linear(inputs, outputs, visit))
        }
        "lora_linear" => {
            lora(backend, sizes, visit)?;
            b.lora_linear(d, m, 1, visit)?;
            b.lora_linear(m, d, 1, visit)?;
            b.lora_dropout(3, visit)?;
            b.lora_unfused(3, visit)?;
            b.lora_unfused(1, visit)
        }
        "dropout" => b.dropout(visit),
        "lora_fold" => b.lora_fold(visit),
        "lora_gradients" => b.lora_gradients(visit),
        "layer_norm" => b.layer_norm(visit),
        "activation" => {
            b.activation(Activation::QuickGelu, visit)?;
            b.activation(Activation::Gelu, visit)
        }
        "attention" => {
            [sizes.tokens, 197, 257].into_iter().try_for_each(|tokens| b.attention(tokens, visit))?;
            b.attention_one_row(visit)
        }
        "crop_resize" => b.crop_resize(visit),
        "patch_embed" => b.patch_embed(visit),
        "insert_prompts" => b.insert_prompts(visit),
        "replace_prompts" => b.replace_prompts(visit),
        "l2_norm" => b.l2_norm(visit),
        "class_features" => b.class_features(visit),
        "mix_rows" => b.mix_rows(visit),
        "head_loss" => b.head_loss(visit),
        "triplet" => b.triplet(visit),
        "accumulate" => b.accumulate(visit),
        "adamw" => {
            b.adamw("adamw", None, visit)?;
            b.adamw("adamw, clipped", Some(1.0), visit)
        }
        _ => Ok(()),
    }
}

/// The linear layers with adapters alone.
pub fn lora<B: Backend>(backend: &B, sizes: &Sizes, visit: &mut Visit<'_>) -> Result<()> {
    let b = Bench { backend, sizes, real: backend.compute_dtype() };
    b.lora_linear(sizes.width, sizes.width, 3, visit)?;
    b.lora_linear(sizes.width, sizes.width, 1, visit)
}

/// x·Wᵀ for square matrices: the device's best product.
pub fn square_gemm<B: Backend>(backend: &B, n: usize, visit: &mut Visit<'_>) -> Result<()> {
    let sizes = Sizes {
        batch: n,
        tokens: 1,
        width: n,
        heads: 1,
        mlp: n,
        features: 1,
        classes: 1,
        rank: 1,
        side: 1,
        patch: 1,
    };
    let b = Bench { backend, sizes: &sizes, real: backend.compute_dtype() };
    b.linear(n, n, visit)
}

/// Prompts of a layer.
const PROMPTS: usize = 16;

/// The adapters of a layer.
struct Adapted<B: Backend> {
    a: B::Tensor,
    b: B::Tensor,
    columns: Vec<usize>,
}

impl<B: Backend> Adapted<B> {
    fn lora(&self) -> Lora<'_, B> {
        Lora { a: &self.a, b: &self.b, columns: &self.columns, scale: 2.0 }
    }
}

struct Bench<'a, B: Backend> {
    backend: &'a B,
    sizes: &'a Sizes,
    /// Type of activations.
    real: DType,
}

impl<B: Backend> Bench<'_, B> {
    /// Normal numbers of the given deviation around `mean`. Large tensors repeat a part of themselves.
    fn numbers(&self, shape: impl Into<Shape>, dtype: DType, mean: f64, deviation: f64) -> Result<B::Tensor> {
        const DISTINCT: usize = 1 << 20;
        let shape = shape.into();
        let distinct = normal(shape.elements().min(DISTINCT), shape.elements() as u64);
        let values: Vec<f32> = (0..shape.elements())
            .map(|i| (mean + deviation * distinct[(i + i / DISTINCT * 7) % distinct.len().max(1)]) as f32)
            .collect();
        self.backend.upload(Tensor::from_slice(shape, &values)?.view(), dtype)
    }

    fn random(&self, shape: impl Into<Shape>) -> Result<B::Tensor> {
        self.numbers(shape, self.real, 0.0, 1.0)
    }

    fn parameter(&self, shape: impl Into<Shape>, deviation: f64) -> Result<B::Tensor> {
        self.numbers(shape, self.backend.parameter_dtype(), 0.0, deviation)
    }

    fn empty(&self, shape: impl Into<Shape>) -> Result<B::Tensor> {
        self.backend.empty(shape, self.real)
    }

    /// Bytes of `elements` activations.
    fn bytes(&self, elements: usize) -> f64 {
        (elements * self.real.size()) as f64
    }

    fn layer(&self, inputs: usize, outputs: usize) -> Result<Linear<B>> {
        Ok(Linear { weight: self.weight(inputs, outputs)?, bias: Some(self.random([outputs])?) })
    }

    fn weight(&self, inputs: usize, outputs: usize) -> Result<B::Weight> {
        let values = self.numbers([outputs, inputs], self.real, 0.0, 1.0 / (inputs as f64).sqrt())?;
        self.backend.weight(self.backend.download(&values)?.view())
    }

    fn linear(&self, inputs: usize, outputs: usize, visit: &mut Visit<'_>) -> Result<()> {
        let rows = self.sizes.rows();
        let layer = self.layer(inputs, outputs)?;
        let (x, mut y) = (self.random([rows, inputs])?, self.empty([rows, outputs])?);
        let (dy, mut dx) = (self.random([rows, outputs])?, self.empty([rows, inputs])?);
        let flop = 2.0 * (rows * inputs * outputs) as f64;
        let bytes = self.bytes(rows * inputs + inputs * outputs + rows * outputs);
        let at = format!("{rows}x{inputs} to {outputs}");
        let run = Box::new(|| self.backend.linear(&x, &layer, None, &mut y));
        visit(Op { name: "linear", at: at.clone(), flop, bytes, run })?;
        let run = Box::new(|| self.backend.linear_backward(&dy, &layer, &mut dx));
        visit(Op { name: "linear_backward", at, flop, bytes, run })
    }

    /// `parts` layers from `inputs` to `out` in one product, each with an adapter.
    fn lora_linear(&self, inputs: usize, out: usize, parts: usize, visit: &mut Visit<'_>) -> Result<()> {
        let (rows, r) = (self.sizes.rows(), self.sizes.rank);
        let (width, outputs) = (parts * r, parts * out);
        let layer = self.layer(inputs, outputs)?;
        let columns: Vec<usize> = (0..parts).map(|i| i * out).collect();
        let a = self.parameter([width, inputs], 1.0 / (inputs as f64).sqrt())?;
        let b = self.parameter([parts, out, r], 0.02)?;
        let lora = Lora { a: &a, b: &b, columns: &columns, scale: 2.0 };
        let (x, mut y, mut u) =
            (self.random([rows, inputs])?, self.empty([rows, outputs])?, self.empty([rows, width])?);
        let flop = 2.0 * (rows * (inputs * outputs + inputs * width + out * width)) as f64;
        let bytes = self.bytes(rows * inputs + inputs * outputs + rows * outputs + rows * width);
        let at = format!("{rows}x{inputs} to {parts}x{out}, r {r}");
        let run = Box::new(|| self.backend.lora_linear(&x, None, &layer, lora, None, &mut u, &mut y));
        visit(Op { name: "lora_linear", at: at.clone(), flop, bytes, run })?;
        let (dy, mut dx, mut du) =
            (self.random([rows, outputs])?, self.empty([rows, inputs])?, self.empty([rows, width])?);
        let (mut da, mut db) = (self.parameter([width, inputs], 0.0)?, self.parameter([parts, out, r], 0.0)?);
        let flop = flop + 2.0 * (rows * (inputs + out) * width) as f64;
        let bytes = bytes + self.bytes(rows * (inputs + outputs + width));
        let run = Box::new(|| {
            let (du, da, db) = (&mut du, &mut da, &mut db);
            self.backend.lora_linear_backward(&dy, &x, None, &u, &layer, lora, du, da, db, Some(&mut dx))
        });
        visit(Op { name: "lora_linear_backward", at, flop, bytes, run })
    }

    /// A seed and the number of a batch.
    fn draw(&self) -> Result<B::Tensor> {
        self.backend.upload(Tensor::from_slice([4], &[1u32, 2, 3, 0])?.view(), DType::U32)
    }

    fn dropout(&self, visit: &mut Visit<'_>) -> Result<()> {
        let (rows, d) = (self.sizes.rows(), self.sizes.width);
        let (x, mut y, draw) = (self.random([rows, d])?, self.empty([rows, d])?, self.draw()?);
        let mask = Dropout { draw: &draw, site: 1, probability: 0.25 };
        let run = Box::new(|| self.backend.dropout(&x, mask, &mut y));
        let (at, bytes) = (format!("{rows}x{d}"), self.bytes(2 * rows * d));
        visit(Op { name: "dropout", at, flop: 0.0, bytes, run })
    }

    /// `parts` layers whose adapters see what dropout leaves, which is drawn here too.
    fn lora_dropout(&self, parts: usize, visit: &mut Visit<'_>) -> Result<()> {
        let (rows, d, r) = (self.sizes.rows(), self.sizes.width, self.sizes.rank);
        let (width, outputs) = (parts * r, parts * d);
        let (layer, draw) = (self.layer(d, outputs)?, self.draw()?);
        let columns: Vec<usize> = (0..parts).map(|i| i * d).collect();
        let (a, b) =
            (self.parameter([width, d], 1.0 / (d as f64).sqrt())?, self.parameter([parts, d, r], 0.02)?);
        let lora = Lora { a: &a, b: &b, columns: &columns, scale: 2.0 };
        let mask = Dropout { draw: &draw, site: 1, probability: 0.25 };
        let (x, mut seen) = (self.random([rows, d])?, self.empty([rows, d])?);
        let (mut y, mut u) = (self.empty([rows, outputs])?, self.empty([rows, width])?);
        let flop = 2.0 * (rows * d * outputs + 2 * rows * d * width) as f64;
        let bytes = self.bytes(3 * rows * d + d * outputs + rows * outputs + rows * width);
        let at = format!("{rows}x{d} to {parts}x{d}, r {r}");
        let run = Box::new(|| {
            self.backend.dropout(&x, mask, &mut seen)?;
            self.backend.lora_linear(&x, Some(&seen), &layer, lora, None, &mut u, &mut y)
        });
        visit(Op { name: "lora_linear, dropout", at: at.clone(), flop, bytes, run })?;
        let (dy, mut dx, mut du) =
            (self.random([rows, outputs])?, self.empty([rows, d])?, self.empty([rows, width])?);
        let (mut da, mut db) = (self.parameter([width, d], 0.0)?, self.parameter([parts, d, r], 0.0)?);
        let flop = flop + 4.0 * (rows * d * width) as f64;
        let bytes = bytes + self.bytes(rows * (outputs + width));
        let run = Box::new(|| {
            let (du, da, db, dx) = (&mut du, &mut da, &mut db, Some(&mut dx));
            self.backend.lora_linear_backward(&dy, &seen, Some(mask), &u, &layer, lora, du, da, db, dx)
        });
        visit(Op { name: "lora_linear_backward, dropout", at, flop, bytes, run })
    }

    /// The forward pass as three products, which is how a framework does it.
    fn lora_unfused(&self, parts: usize, visit: &mut Visit<'_>) -> Result<()> {
        let (rows, d, width) = (self.sizes.rows(), self.sizes.width, parts * self.sizes.rank);
        let layer = self.layer(d, parts * d)?;
        let down = Linear::<B> { bias: None, ..self.layer(d, width)? };
        let up = Linear::<B> { bias: None, ..self.layer(width, parts * d)? };
        let (x, mut u) = (self.random([rows, d])?, self.empty([rows, width])?);
        let (mut y, mut sum) = (self.empty([rows, parts * d])?, self.empty([rows, parts * d])?);
        let flop = 2.0 * (rows * d * parts * d + 2 * rows * d * width) as f64;
        let bytes = self.bytes(rows * d + parts * d * d + rows * parts * d + rows * width);
        let at = format!("{rows}x{d} to {parts}x{d}, r {}", self.sizes.rank);
        let run = Box::new(|| {
            self.backend.linear(&x, &layer, None, &mut y)?;
            self.backend.linear(&x, &down, None, &mut u)?;
            self.backend.linear(&u, &up, Some(&y), &mut sum)
        });
        visit(Op { name: "lora_linear, unfused", at, flop, bytes, run })
    }

    /// Queries, keys and values of as many blocks as a tower has, and the projections behind attention.
    fn adapted(&self) -> Result<Vec<Adapted<B>>> {
        const BLOCKS: usize = 12;
        let (d, r) = (self.sizes.width, self.sizes.rank);
        let layers = [3, 1].into_iter().cycle().take(2 * BLOCKS).map(|parts| {
            Ok(Adapted {
                a: self.parameter([parts * r, d], 1.0 / (d as f64).sqrt())?,
                b: self.parameter([parts, d, r], 0.02)?,
                columns: (0..parts).map(|i| i * d).collect(),
            })
        });
        layers.collect()
    }

    /// All layers of a tower.
    fn lora_fold(&self, visit: &mut Visit<'_>) -> Result<()> {
        let (d, r) = (self.sizes.width, self.sizes.rank);
        let adapted = self.adapted()?;
        let weight = |layer: &Adapted<B>| self.weight(d, layer.columns.len() * d);
        let weights = adapted.iter().map(weight).collect::<Result<Vec<_>>>()?;
        let mut folded = adapted.iter().map(weight).collect::<Result<Vec<_>>>()?;
        let segments: usize = adapted.iter().map(|layer| layer.columns.len()).sum();
        let (flop, bytes) = (2.0 * (segments * d * d * r) as f64, self.bytes(2 * segments * d * d));
        let run = Box::new(|| {
            let layers = adapted.iter().zip(&weights).zip(&mut folded);
            let layers =
                layers.map(|((layer, weight), folded)| LoraFold { weight, lora: layer.lora(), folded });
            self.backend.lora_fold(&mut layers.collect::<Vec<_>>())
        });
        let at = format!("{} layers, {segments}x{d} by {d}, r {r}", adapted.len());
        visit(Op { name: "lora_fold", at, flop, bytes, run })
    }

    /// All layers of a tower.
    fn lora_gradients(&self, visit: &mut Visit<'_>) -> Result<()> {
        let (rows, d, r) = (self.sizes.rows(), self.sizes.width, self.sizes.rank);
        let adapted = self.adapted()?;
        let inputs = adapted.iter().map(|_| self.random([rows, d])).collect::<Result<Vec<_>>>()?;
        let outputs = adapted.iter().map(|layer| self.random([rows, layer.columns.len() * d]));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        let parameter = self.backend.parameter_dtype();
        let like = |tensor: &B::Tensor| self.backend.empty(tensor.shape(), parameter);
        let mut da = adapted.iter().map(|layer| like(&layer.a)).collect::<Result<Vec<_>>>()?;
        let mut db = adapted.iter().map(|layer| like(&layer.b)).collect::<Result<Vec<_>>>()?;
        let segments: usize = adapted.iter().map(|layer| layer.columns.len()).sum();
        let flop = 8.0 * (rows * d * segments * r) as f64;
        let bytes = self.bytes(rows * d * (adapted.len() + segments));
        let run = Box::new(|| {
            let mut layers = Vec::new();
            let gradients = da.iter_mut().zip(&mut db);
            for (((layer, x), dy), (da, db)) in adapted.iter().zip(&inputs).zip(&outputs).zip(gradients) {
                layers.push(LoraGradients { x, dy, lora: layer.lora(), da, db });
            }
            self.backend.lora_gradients(&mut layers)
        });
        let at = format!("{} layers, {rows}x{d} to {segments}x{d}, r {r}", adapted.len());
        visit(Op { name: "lora_gradients", at, flop, bytes, run })
    }

    fn layer_norm(&self, visit: &mut Visit<'_>) -> Result<()> {
        let shape = [self.sizes.batch, self.sizes.tokens, self.sizes.width];
        let (d, elements) = (self.sizes.width, self.sizes.rows() * self.sizes.width);
        let norm = self.norm(d)?;
        let stats = [self.sizes.batch, self.sizes.tokens, 2];
        let (x, mut y) = (self.random(shape)?, self.empty(shape)?);
        let mut stats = self.backend.empty(stats, self.backend.parameter_dtype())?;
        let at = format!("{shape:?}");
        let run = Box::new(|| self.backend.layer_norm(&x, &norm, &mut y, &mut stats));
        visit(Op { name: "layer_norm", at: at.clone(), flop: 0.0, bytes: self.bytes(2 * elements), run })?;
        let (dy, mut dx) = (self.random(shape)?, self.random(shape)?);
        let run =
            Box::new(|| self.backend.layer_norm_backward(&dy, &x, &norm, &stats, AddTo::Output, &mut dx));
        visit(Op { name: "layer_norm_backward", at, flop: 0.0, bytes: self.bytes(4 * elements), run })
    }

    fn norm(&self, d: usize) -> Result<LayerNorm<B>> {
        let weight = self.numbers([d], self.backend.parameter_dtype(), 1.0, 0.1)?;
        Ok(LayerNorm { weight, bias: self.parameter([d], 0.1)?, eps: 1e-5 })
    }

    fn activation(&self, kind: Activation, visit: &mut Visit<'_>) -> Result<()> {
        let shape = [self.sizes.batch, self.sizes.tokens, self.sizes.mlp];
        let elements = self.sizes.rows() * self.sizes.mlp;
        let (z, mut g) = (self.random(shape)?, self.empty(shape)?);
        let at = format!("{kind:?} {shape:?}");
        let run = Box::new(|| self.backend.activation(kind, &z, &mut g));
        visit(Op { name: "activation", at: at.clone(), flop: 0.0, bytes: self.bytes(2 * elements), run })?;
        // The derivative is near 1 here, so that repetition in place changes little.
        let (z, mut d) = (self.numbers(shape, self.real, 6.0, 0.5)?, self.random(shape)?);
        let run = Box::new(|| self.backend.activation_backward(kind, &z, &mut d));
        visit(Op { name: "activation_backward", at, flop: 0.0, bytes: self.bytes(3 * elements), run })
    }

    fn attention(&self, tokens: usize, visit: &mut Visit<'_>) -> Result<()> {
        let (batch, heads, d) = (self.sizes.batch, self.sizes.heads, self.sizes.width);
        let shape = AttentionShape { heads, causal: false };
        let saved = self.backend.attention_saved(batch, heads, tokens, tokens);
        let parameter = self.backend.parameter_dtype();
        let (mut saved, mut scratch) =
            (self.backend.empty(saved, parameter)?, self.backend.empty(saved, parameter)?);
        let (qkv, mut dqkv) = (self.random([batch, tokens, 3 * d])?, self.empty([batch, tokens, 3 * d])?);
        let (mut o, d_o) = (self.empty([batch, tokens, d])?, self.random([batch, tokens, d])?);
        let elements = batch * tokens * d;
        let flop = 4.0 * (batch * tokens * tokens * d) as f64;
        let at = format!("{batch}x{tokens}, {heads} heads of {}", d / heads);
        let run =
            Box::new(|| self.backend.attention(AttentionInput::Packed(&qkv), shape, &mut saved, &mut o));
        visit(Op { name: "attention", at: at.clone(), flop, bytes: self.bytes(4 * elements), run })?;
        let run = Box::new(|| {
            let (input, gradient) = (AttentionInput::Packed(&qkv), AttentionGradient::Packed(&mut dqkv));
            self.backend.attention_backward(&d_o, &o, input, &saved, shape, &mut scratch, gradient)
        });
        let bytes = self.bytes(8 * elements);
        visit(Op { name: "attention_backward", at, flop: 2.5 * flop, bytes, run })
    }

    /// The last block's: one query for each image.
    fn attention_one_row(&self, visit: &mut Visit<'_>) -> Result<()> {
        let (batch, tokens, heads, d) =
            (self.sizes.batch, self.sizes.tokens, self.sizes.heads, self.sizes.width);
        let shape = AttentionShape { heads, causal: false };
        let saved = self.backend.attention_saved(batch, heads, 1, tokens);
        let mut saved = self.backend.empty(saved, self.backend.parameter_dtype())?;
        let (q, kv) = (self.random([batch, 1, d])?, self.random([batch, tokens, 2 * d])?);
        let mut o = self.empty([batch, 1, d])?;
        let (flop, bytes) = (4.0 * (batch * tokens * d) as f64, self.bytes(2 * batch * (tokens + 1) * d));
        let at = format!("{batch}x1 of {tokens}, {heads} heads of {}", d / heads);
        let run = Box::new(|| {
            self.backend.attention(AttentionInput::Split { q: &q, kv: &kv }, shape, &mut saved, &mut o)
        });
        visit(Op { name: "attention", at, flop, bytes, run })
    }

    /// u8 images without a pattern.
    fn levels(&self, [batch, side]: [usize; 2]) -> Result<B::Tensor> {
        let levels: Vec<u8> =
            (0..batch * side * side * 3).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
        self.backend.upload(Tensor::from_slice([batch, side, side, 3], &levels)?.view(), DType::U8)
    }

    /// From images of 256 px to 224, say: crops of nine tenths by three quarters of them, half mirrored.
    fn crop_resize(&self, visit: &mut Visit<'_>) -> Result<()> {
        let Sizes { batch, side, .. } = *self.sizes;
        let source = side * 8 / 7;
        let (height, width) = (source * 9 / 10, source * 3 / 4);
        let images = self.levels([batch, source])?;
        let crops: Vec<u32> = (0..batch)
            .flat_map(|i| [i % (source - height + 1), i % (source - width + 1), height, width, i % 2])
            .map(|field| field as u32)
            .collect();
        let crops = self.backend.upload(Tensor::from_slice([batch, 5], &crops)?.view(), DType::U32)?;
        let mut y = self.backend.empty([batch, side, side, 3], DType::U8)?;
        let at = format!("{batch} of {source} px to {side}");
        let bytes = (batch * 3 * (height * width + side * side)) as f64;
        let run = Box::new(|| self.backend.crop_resize(&images, &crops, &mut y));
        visit(Op { name: "crop_resize", at, flop: 0.0, bytes, run })
    }

    fn insert_prompts(&self, visit: &mut Visit<'_>) -> Result<()> {
        let Sizes { batch, tokens, width, .. } = *self.sizes;
        let (prompts, mut d_prompts) =
            (self.parameter([1, PROMPTS, width], 0.02)?, self.parameter([1, PROMPTS, width], 0.0)?);
        let (x, mut y) =
            (self.random([batch, tokens, width])?, self.empty([batch, tokens + PROMPTS, width])?);
        let bytes = self.bytes(batch * (2 * tokens + PROMPTS) * width);
        let at = format!("{batch}x{tokens}x{width} and {PROMPTS}");
        let run = Box::new(|| self.backend.insert_prompts(&x, &prompts, 0, &mut y));
        visit(Op { name: "insert_prompts", at: at.clone(), flop: 0.0, bytes, run })?;
        let (dy, mut dx) =
            (self.random([batch, tokens + PROMPTS, width])?, self.empty([batch, tokens, width])?);
        let run = Box::new(|| self.backend.insert_prompts_backward(&dy, 0, &mut d_prompts, Some(&mut dx)));
        visit(Op { name: "insert_prompts_backward", at, flop: 0.0, bytes, run })
    }

    fn replace_prompts(&self, visit: &mut Visit<'_>) -> Result<()> {
        let Sizes { batch, tokens, width, .. } = *self.sizes;
        let (prompts, mut d_prompts) =
            (self.parameter([1, PROMPTS, width], 0.02)?, self.parameter([1, PROMPTS, width], 0.0)?);
        let mut x = self.random([batch, tokens + PROMPTS, width])?;
        let bytes = self.bytes(batch * PROMPTS * width);
        let at = format!("{batch}x{}x{width}, {PROMPTS} of them", tokens + PROMPTS);
        let run = Box::new(|| self.backend.replace_prompts(&prompts, 0, &mut x));
        visit(Op { name: "replace_prompts", at: at.clone(), flop: 0.0, bytes, run })?;
        let mut d = self.random([batch, tokens + PROMPTS, width])?;
        let run = Box::new(|| self.backend.replace_prompts_backward(&mut d, 0, &mut d_prompts));
        visit(Op { name: "replace_prompts_backward", at, flop: 0.0, bytes: 2.0 * bytes, run })
    }

    fn triplet(&self, visit: &mut Visit<'_>) -> Result<()> {
        let (n, e) = (self.sizes.batch, self.sizes.features);
        let f = self.parameter([n, e], 1.0 / (e as f64).sqrt())?;
        // Four images of each class.
        let labels: Vec<u32> = (0..n as u32).map(|i| i / 4).collect();
        let labels = self.backend.upload(Tensor::from_slice([n], &labels)?.view(), DType::U32)?;
        let mut pairs = self.backend.zeros([n, 2], DType::U32)?;
        let (mut distances, mut stats) = (self.parameter([n, 2], 0.0)?, self.parameter([Stat::COUNT], 0.0)?);
        let (flop, bytes) = (3.0 * (n * n * e) as f64, 4.0 * (n * e) as f64);
        let at = format!("{n}x{e}");
        let run = Box::new(|| self.backend.triplet(&f, &labels, 1.0, &mut pairs, &mut distances, &mut stats));
        visit(Op { name: "triplet", at: at.clone(), flop, bytes, run })?;
        let mut df = self.parameter([n, e], 0.0)?;
        let run = Box::new(|| self.backend.triplet_backward(&f, &pairs, &distances, 0.3, None, &mut df));
        visit(Op { name: "triplet_backward", at, flop: 12.0 * (n * e) as f64, bytes: 3.0 * bytes, run })
    }

    fn patch_embed(&self, visit: &mut Visit<'_>) -> Result<()> {
        let Sizes { batch, side, patch, width: d, .. } = *self.sizes;
        let count = (side / patch).pow(2);
        let inputs = 3 * patch * patch;
        let pixels = self.levels([batch, side])?;
        let embedding = PatchEmbedding {
            projection: Linear { weight: self.weight(inputs, d)?, bias: None },
            class: self.parameter([d], 1.0)?,
            position: self.parameter([count + 1, d], 0.1)?,
            norm: self.norm(d)?,
            patch,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        };
        let mut patches = self.empty([batch, count, inputs])?;
        let mut products = self.empty([batch, count, d])?;
        let mut x = self.empty([batch, count + 1, d])?;
        let flop = 2.0 * (batch * count * inputs * d) as f64;
        let bytes = (batch * side * side * 3) as f64 + self.bytes(d * inputs + batch * (count + 1) * d);
        let at = format!("{batch} of {side} px in patches of {patch}");
        let run = Box::new(|| {
            self.backend.patch_embed(&pixels, None, &embedding, &mut patches, &mut products, &mut x)
        });
        visit(Op { name: "patch_embed", at: at.clone(), flop, bytes, run })?;
        let mix = self.mix()?;
        let run = Box::new(|| {
            self.backend.patch_embed(&pixels, Some(&mix), &embedding, &mut patches, &mut products, &mut x)
        });
        visit(Op { name: "patch_embed, mixed", at, flop, bytes, run })
    }

    /// Each image with the next.
    fn mix(&self) -> Result<Mix<B>> {
        let n = self.sizes.batch;
        let indices = |from: usize| -> Result<B::Tensor> {
            let indices: Vec<u32> = (0..n).map(|i| ((i + from) % n) as u32).collect();
            self.backend.upload(Tensor::from_slice([n], &indices)?.view(), DType::U32)
        };
        let lambda = self.numbers([n], self.backend.parameter_dtype(), 0.5, 0.1)?;
        Ok(Mix { partner: indices(1)?, inverse: indices(n - 1)?, lambda })
    }

    fn mix_rows(&self, visit: &mut Visit<'_>) -> Result<()> {
        let shape = [self.sizes.batch, self.sizes.features];
        let (mix, x, mut y) = (self.mix()?, self.parameter(shape, 1.0)?, self.parameter(shape, 0.0)?);
        let bytes = 8.0 * (self.sizes.batch * self.sizes.features) as f64;
        let at = format!("{}x{}", shape[0], shape[1]);
        let run = Box::new(|| self.backend.mix_rows(&x, &mix, &mut y));
        visit(Op { name: "mix_rows", at: at.clone(), flop: 0.0, bytes, run })?;
        let run = Box::new(|| self.backend.mix_rows_backward(&x, &mix, &mut y));
        visit(Op { name: "mix_rows_backward", at, flop: 0.0, bytes, run })
    }

    fn l2_norm(&self, visit: &mut Visit<'_>) -> Result<()> {
        let (batch, e) = (self.sizes.batch, self.sizes.features);
        let (x, mut f, mut norms) =
            (self.random([batch, e])?, self.parameter([batch, e], 0.0)?, self.parameter([batch], 0.0)?);
        let bytes = self.bytes(batch * e) + 4.0 * (batch * e) as f64;
        let at = format!("{batch}x{e}");
        let run = Box::new(|| self.backend.l2_norm(&x, &mut f, &mut norms));
        visit(Op { name: "l2_norm", at: at.clone(), flop: 0.0, bytes, run })?;
        let (df, mut dx) = (self.parameter([batch, e], 1.0)?, self.empty([batch, e])?);
        let run = Box::new(|| self.backend.l2_norm_backward(&df, &f, &norms, &mut dx));
        let bytes = self.bytes(batch * e) + 8.0 * (batch * e) as f64;
        visit(Op { name: "l2_norm_backward", at, flop: 0.0, bytes, run })
    }

    fn head_loss(&self, visit: &mut Visit<'_>) -> Result<()> {
        let (n, e, classes) = (self.sizes.batch, self.sizes.features, self.sizes.classes);
        let deviation = 1.0 / (e as f64).sqrt();
        let (weight, bias, text) = (
            self.parameter([classes, e], deviation)?,
            self.parameter([classes], deviation)?,
            self.parameter([classes, e], deviation)?,
        );
        let classifier = Classifier { weight: &weight, bias: &bias, text: &text, text_scale: 14.3 };
        let f = self.parameter([n, e], deviation)?;
        let labels: Vec<u32> = (0..n).map(|i| (i * 37 % classes) as u32).collect();
        let labels = self.backend.upload(Tensor::from_slice([n], &labels)?.view(), DType::U32)?;
        let (mut head, mut text_logits) =
            (self.parameter([n, classes], 0.0)?, self.parameter([n, classes], 0.0)?);
        let mut stats = self.parameter([Stat::COUNT], 0.0)?;
        let flop = 4.0 * (n * e * classes) as f64;
        let bytes = 4.0 * (n * e + 2 * classes * e + 2 * n * classes) as f64;
        let at = format!("{n} of {classes} classes, width {e}");
        let mix = self.mix()?;
        let plain = Targets::of(&labels);
        let mixed = Targets { mix: Some(&mix), ..plain };
        for (name, targets) in [("head_loss", plain), ("head_loss, mixed", mixed)] {
            let run = Box::new(|| {
                let (head, text) = (&mut head, &mut text_logits);
                self.backend.head_loss(&f, classifier, targets, head, text, &mut stats)
            });
            visit(Op { name, at: at.clone(), flop, bytes, run })?;
        }
        let (mut dw, mut db, mut df) = (
            self.parameter([classes, e], 0.0)?,
            self.parameter([classes], 0.0)?,
            self.parameter([n, e], 0.0)?,
        );
        let weights = LossWeights { head: 1.0, text: 0.3 };
        let (flop, bytes) = (1.5 * flop, 4.0 * (2 * n * e + 3 * classes * e + 4 * n * classes) as f64);
        for (name, targets) in [("head_loss_backward", plain), ("head_loss_backward, mixed", mixed)] {
            let run = Box::new(|| {
                let (head, text, df) = (&mut head, &mut text_logits, Some(&mut df));
                self.backend.head_loss_backward(
                    &f, classifier, targets, weights, None, head, text, &mut dw, &mut db, df, None,
                )
            });
            visit(Op { name, at: at.clone(), flop, bytes, run })?;
        }
        let mut dt = self.parameter([classes, e], 0.0)?;
        let run = Box::new(|| {
            let (head, text, df, dt) = (&mut head, &mut text_logits, Some(&mut df), Some(&mut dt));
            self.backend.head_loss_backward(
                &f, classifier, plain, weights, None, head, text, &mut dw, &mut db, df, dt,
            )
        });
        let (flop, bytes) = (flop + 2.0 * (n * e * classes) as f64, bytes + 4.0 * (classes * e) as f64);
        visit(Op { name: "head_loss_backward, text trained", at, flop, bytes, run })
    }

    /// Four prompts of each class.
    fn class_features(&self, visit: &mut Visit<'_>) -> Result<()> {
        const PROMPTS_OF_CLASS: usize = 4;
        let (classes, e) = (self.sizes.classes, self.sizes.features);
        let rows = PROMPTS_OF_CLASS * classes;
        let (f, mut t, mut norms) = (
            self.parameter([rows, e], 1.0)?,
            self.parameter([classes, e], 0.0)?,
            self.parameter([classes], 0.0)?,
        );
        let at = format!("{classes} classes of {PROMPTS_OF_CLASS}, width {e}");
        let run = Box::new(|| self.backend.class_features(&f, &mut t, &mut norms));
        let bytes = 4.0 * ((rows + classes) * e) as f64;
        visit(Op { name: "class_features", at: at.clone(), flop: 0.0, bytes, run })?;
        let (dt, mut df) = (self.parameter([classes, e], 1.0)?, self.parameter([rows, e], 0.0)?);
        let run = Box::new(|| self.backend.class_features_backward(&dt, &t, &norms, &mut df));
        let bytes = 4.0 * ((rows + 2 * classes) * e) as f64;
        visit(Op { name: "class_features_backward", at, flop: 0.0, bytes, run })
    }

    /// Shapes of the trained tensors of a tower of twelve blocks: the head, and A and B of q, k, v and of out.
    fn trained_shapes(&self) -> Vec<Shape> {
        const BLOCKS: usize = 12;
        let (d, r) = (self.sizes.width, self.sizes.rank);
        let mut shapes = vec![Shape::from([self.sizes.classes, self.sizes.features])];
        for _ in 0..BLOCKS {
            shapes.extend([[3 * r, d], [3 * d, r], [r, d], [d, r]].map(Shape::from));
        }
        shapes
    }

    /// From the second batch on.
    fn accumulate(&self, visit: &mut Visit<'_>) -> Result<()> {
        let shapes = self.trained_shapes();
        let elements: usize = shapes.iter().map(Shape::elements).sum();
        let both = |shape: &Shape| -> Result<_> {
            Ok((self.parameter(*shape, 1e-3)?, self.parameter(*shape, 1e-3)?))
        };
        let mut all = shapes.iter().map(both).collect::<Result<Vec<_>>>()?;
        let at = format!("{elements} elements in {} tensors", all.len());
        let run = Box::new(|| {
            let mut pairs: Vec<_> = all.iter_mut().map(|(gradient, sum)| (&*gradient, sum)).collect();
            self.backend.accumulate(&mut pairs, false)
        });
        visit(Op { name: "accumulate", at, flop: 0.0, bytes: 12.0 * elements as f64, run })
    }

    fn adamw(&self, name: &'static str, clip: Option<f64>, visit: &mut Visit<'_>) -> Result<()> {
        let shapes = self.trained_shapes();
        let elements: usize = shapes.iter().map(Shape::elements).sum();
        let four = |shape: &Shape| -> Result<[B::Tensor; 4]> {
            Ok([
                self.parameter(*shape, 0.02)?,
                self.parameter(*shape, 1e-3)?,
                self.parameter(*shape, 0.0)?,
                self.parameter(*shape, 0.0)?,
            ])
        };
        let mut all = shapes.iter().map(four).collect::<Result<Vec<_>>>()?;
        let parameter = self.backend.parameter_dtype();
        let control = Tensor::from_slice([Control::COUNT], &Control::start(None))?;
        let mut control = self.backend.upload(control.view(), parameter)?;
        let factor = self.backend.upload(Tensor::from_slice([1], &[1.0f32])?.view(), parameter)?;
        let mut stats = self.parameter([Stat::COUNT], 0.0)?;
        let at = format!("{elements} elements in {} tensors", all.len());
        let run = Box::new(|| {
            let mut tensors: Vec<AdamwTensor<'_, B>> = all
                .iter_mut()
                .map(|[value, gradient, first_moment, second_moment]| AdamwTensor {
                    value,
                    gradient,
                    first_moment,
                    second_moment,
                    learning_rate: 1e-4,
                    weight_decay: 1e-2,
                    scale: 1.0,
                })
                .collect();
            let control = &mut control;
            let step = AdamwStep {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                scaling: None,
                clip,
                factor: &factor,
                control,
            };
            self.backend.adamw(&mut tensors, step, &mut stats)
        });
        visit(Op { name, at, flop: 0.0, bytes: 28.0 * elements as f64, run })
    }
}
