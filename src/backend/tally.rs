//! A backend that only counts: shapes and types are those of another device's tensors, their contents are nowhere.
//!
//! A multiply and an add are two operations; products, attention and distances are counted, passes over single elements
//! are not. Bytes are those of every tensor that an operation reads or writes, once each, as if its scratch memory and
//! what one of its parts hands to the next never left the caches.

use super::*;
use crate::tensor::{DType, Source, Tensor, TensorError, View};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// What was counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Floating-point operations.
    pub flop: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// Counts operations and memory. Clones count together.
#[derive(Clone)]
pub struct Tally(Arc<Counts>);

struct Counts {
    compute: DType,
    parameter: DType,
    saved: Box<dyn Fn(usize, usize, usize, usize) -> Shape + Send + Sync>,
    folds: bool,
    feed_sets: usize,
    patch_columns: Box<dyn Fn(usize) -> usize + Send + Sync>,
    flop: AtomicU64,
    bytes: AtomicU64,
    allocated: AtomicUsize,
}

/// A tensor without contents.
pub struct Blank {
    shape: Shape,
    dtype: DType,
    /// Elements that it has room for.
    room: usize,
}

impl DeviceTensor for Blank {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn set_shape(&mut self, shape: Shape) -> Result<()> {
        if shape.elements() > self.room {
            let (expected, found) = (shape.elements() * self.dtype.size(), self.room * self.dtype.size());
            return Err(TensorError::Length { shape, dtype: self.dtype, expected, found }.into());
        }
        self.shape = shape;
        Ok(())
    }
}

impl Blank {
    fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }
}

fn bytes<const N: usize>(tensors: [&Blank; N]) -> usize {
    tensors.map(Blank::bytes).iter().sum()
}

impl Tally {
    /// Counts what `device` would compute and allocate, for tensors of its types.
    pub fn of<B: Backend>(device: &B) -> Self {
        let (compute, parameter) = (device.compute_dtype(), device.parameter_dtype());
        let (folds, feed_sets, device) = (device.can_train_folded(), device.feed_sets(), device.clone());
        let of_patches = device.clone();
        Tally(Arc::new(Counts {
            compute,
            parameter,
            saved: Box::new(move |batch, heads, queries, keys| {
                device.attention_saved(batch, heads, queries, keys)
            }),
            folds,
            feed_sets,
            patch_columns: Box::new(move |inputs| of_patches.patch_columns(inputs)),
            flop: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            allocated: AtomicUsize::new(0),
        }))
    }

    /// All work so far.
    pub fn work(&self) -> Work {
        Work { flop: self.0.flop.load(Relaxed), bytes: self.0.bytes.load(Relaxed) }
    }

    /// The work that `body` calls for.
    pub fn count<T, E>(&self, body: impl FnOnce() -> Result<T, E>) -> Result<Work, E> {
        let before = self.work();
        body()?;
        let after = self.work();
        Ok(Work { flop: after.flop - before.flop, bytes: after.bytes - before.bytes })
    }

    fn add(&self, flop: usize, bytes: usize) -> Result<()> {
        self.0.flop.fetch_add(flop as u64, Relaxed);
        self.0.bytes.fetch_add(bytes as u64, Relaxed);
        Ok(())
    }
}

/// Floating-point operations of a product of m by k and k by n.
fn product(m: usize, k: usize, n: usize) -> usize {
    2 * m * k * n
}

/// The ranks of all parts side by side, and outputs of each part.
fn low_rank(lora: Lora<'_, Tally>) -> (usize, usize) {
    (lora.a.shape().rows(), lora.b.shape().dims()[1])
}

impl Memory for Tally {
    type Tensor = Blank;
    type Weight = Blank;
    type Pending = Option<Tensor>;
    type Graph = ();

    fn describe(&self) -> String {
        format!("counting {}", self.0.compute)
    }

    fn compute_dtype(&self) -> DType {
        self.0.compute
    }

    fn parameter_dtype(&self) -> DType {
        self.0.parameter
    }

    fn weight(&self, source: View<'_>) -> Result<Blank> {
        self.zeros(source.shape(), self.0.compute)
    }

    fn weight_shape(&self, weight: &Blank) -> Shape {
        weight.shape
    }

    fn weight_values(&self, weight: &Blank) -> Result<Tensor> {
        self.download(weight)
    }

    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Blank> {
        let shape = shape.into();
        self.0.allocated.fetch_add(shape.elements() * dtype.size(), Relaxed);
        Ok(Blank { shape, dtype, room: shape.elements() })
    }

    fn upload(&self, source: View<'_>, dtype: DType) -> Result<Blank> {
        self.zeros(source.shape(), dtype)
    }

    fn copy_from_host(&self, source: View<'_>, target: &mut Blank) -> Result<()> {
        expect_shape("copy", "source", target.shape, source.shape())
    }

    fn feed(&self, parts: Vec<(Source<'_>, &mut Blank)>) -> Result<()> {
        let mut shapes = parts.iter().map(|(source, target)| (target.shape, source.shape()));
        shapes.try_for_each(|(expected, found)| expect_shape("feed", "source", expected, found))
    }

    fn download(&self, source: &Blank) -> Result<Tensor> {
        Ok(Tensor::zeros(source.shape, source.dtype))
    }

    fn feed_sets(&self) -> usize {
        self.0.feed_sets
    }

    fn fetch(&self, source: &Blank) -> Result<Option<Tensor>> {
        self.download(source).map(Some)
    }

    fn arrived(&self, pending: &mut Option<Tensor>, _wait: bool) -> Result<Option<Tensor>> {
        Ok(pending.take())
    }

    fn allocated(&self) -> Result<usize> {
        Ok(self.0.allocated.load(Relaxed))
    }

    fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        body()
    }

    fn replay(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn copy_bytes(
        device: Checked<'_, Self>,
        _x: &Blank,
        _from: usize,
        _y: &mut Blank,
        _to: usize,
        count: usize,
    ) -> Result<()> {
        device.add(0, 2 * count)
    }

    fn clear(&self, x: &mut Blank) -> Result<()> {
        self.add(0, x.bytes())
    }
}

impl AccumulateOp for Tally {
    fn accumulate_checked(
        device: Checked<'_, Self>,
        pairs: &mut [(&Blank, &mut Blank)],
        first: bool,
    ) -> Result<()> {
        let passes = if first { 2 } else { 3 };
        device.add(0, pairs.iter().map(|(gradient, _)| passes * gradient.bytes()).sum())
    }
}

impl ActivationOp for Tally {
    fn activation_checked(
        device: Checked<'_, Self>,
        _kind: Activation,
        z: &Blank,
        bias: Option<&Blank>,
        _g: &mut Blank,
    ) -> Result<()> {
        device.add(0, 2 * z.bytes() + bias.map_or(0, Blank::bytes))
    }

    fn activation_backward_checked(
        device: Checked<'_, Self>,
        _kind: Activation,
        z: &Blank,
        bias: Option<&Blank>,
        _d: &mut Blank,
    ) -> Result<()> {
        device.add(0, 3 * z.bytes() + bias.map_or(0, Blank::bytes))
    }
}

impl AdamwOp for Tally {
    fn adamw_checked(
        device: Checked<'_, Self>,
        tensors: &mut [AdamwTensor<'_, Self>],
        _step: AdamwStep<'_, Self>,
        _stats: &mut Blank,
    ) -> Result<()> {
        // The value and both moments are read and written, the gradient is read.
        device.add(0, tensors.iter().map(|tensor| 7 * tensor.value.bytes()).sum())
    }
}

impl AttentionOp for Tally {
    fn attention_checked(
        device: Checked<'_, Self>,
        input: AttentionInput<'_, Self>,
        e: AttentionExtents,
        saved: &mut Blank,
        o: &mut Blank,
    ) -> Result<()> {
        let scores = product(e.batch * e.queries, e.width, e.keys);
        device.add(2 * scores, input_bytes(&input) + saved.bytes() + o.bytes())
    }

    fn attention_backward_checked(
        device: Checked<'_, Self>,
        args: AttentionBackward<'_, Self>,
        e: AttentionExtents,
    ) -> Result<()> {
        let AttentionBackward { d_o, o, input, saved, .. } = args;
        let scores = product(e.batch * e.queries, e.width, e.keys);
        device.add(4 * scores, 2 * input_bytes(&input) + bytes([d_o, o, saved]))
    }

    fn attention_saved(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> Shape {
        (self.0.saved)(batch, heads, queries, keys)
    }
}

fn input_bytes(input: &AttentionInput<'_, Tally>) -> usize {
    match input {
        AttentionInput::Packed(qkv) => qkv.bytes(),
        AttentionInput::Split { q, kv } => bytes([q, kv]),
    }
}

impl ClassFeaturesOp for Tally {
    fn class_features_checked(
        device: Checked<'_, Self>,
        f: &Blank,
        t: &mut Blank,
        norms: &mut Blank,
    ) -> Result<()> {
        device.add(0, bytes([f, t, norms]))
    }

    fn class_features_backward_checked(
        device: Checked<'_, Self>,
        dt: &Blank,
        t: &Blank,
        norms: &Blank,
        df: &mut Blank,
    ) -> Result<()> {
        device.add(0, bytes([dt, t, norms, df]))
    }
}

impl ClassTailOp for Tally {}

impl CropResizeOp for Tally {
    fn crop_resize_checked(
        device: Checked<'_, Self>,
        images: &Blank,
        crops: &Blank,
        y: &mut Blank,
    ) -> Result<()> {
        device.add(0, bytes([images, crops, y]))
    }
}

impl DropoutOp for Tally {
    fn dropout_checked(
        device: Checked<'_, Self>,
        x: &Blank,
        _dropout: Dropout<'_, Self>,
        y: &mut Blank,
    ) -> Result<()> {
        device.add(0, bytes([x, y]))
    }
}

impl HeadLossOp for Tally {
    fn head_loss_checked(
        device: Checked<'_, Self>,
        f: &Blank,
        classifier: Classifier<'_, Self>,
        targets: Targets<'_, Self>,
        head: &mut Blank,
        text: &mut Blank,
        _stats: &mut Blank,
    ) -> Result<()> {
        let ((batch, width), classes) = (f.shape.matrix(), head.shape.columns());
        let parameters = bytes([classifier.weight, classifier.bias, classifier.text]);
        let moved = bytes([f, targets.labels, head, text]);
        device.add(2 * product(batch, width, classes), parameters + moved)
    }

    fn head_loss_backward_checked(
        device: Checked<'_, Self>,
        args: HeadLossBackward<'_, Self>,
        HeadExtents { batch, classes, width }: HeadExtents,
    ) -> Result<()> {
        let of_text = args.d_text.is_some() || (args.df.is_some() && args.weights.text != 0.0);
        let of_df = args.df.as_ref().map_or(0, |_| if args.weights.text != 0.0 { 2 } else { 1 });
        let products = 1 + of_df + usize::from(args.d_text.is_some());
        let logits = 2 * args.head.bytes() * if of_text { 2 } else { 1 };
        let written = args.df.map_or(0, |df| df.bytes()) + args.d_text.map_or(0, |d_text| d_text.bytes());
        let read = args.f.bytes() + of_df * args.classifier.weight.bytes();
        let moved = logits + read + written + args.d_weight.bytes() + args.d_bias.bytes();
        device.add(products * product(batch, width, classes), moved)
    }
}

impl L2NormOp for Tally {
    fn l2_norm_checked(device: Checked<'_, Self>, x: &Blank, f: &mut Blank, norms: &mut Blank) -> Result<()> {
        device.add(0, bytes([x, f, norms]))
    }

    fn l2_norm_backward_checked(
        device: Checked<'_, Self>,
        df: &Blank,
        f: &Blank,
        norms: &Blank,
        dx: &mut Blank,
    ) -> Result<()> {
        device.add(0, bytes([df, f, norms, dx]))
    }
}

impl LayerNormOp for Tally {
    fn layer_norm_checked(
        device: Checked<'_, Self>,
        x: &Blank,
        norm: &LayerNorm<Self>,
        y: &mut Blank,
        stats: &mut Blank,
    ) -> Result<()> {
        device.add(0, bytes([x, y, stats, &norm.weight, &norm.bias]))
    }

    fn layer_norm_backward_checked(
        device: Checked<'_, Self>,
        dy: &Blank,
        x: &Blank,
        norm: &LayerNorm<Self>,
        stats: &Blank,
        to: AddTo<'_, Blank>,
        dx: &mut Blank,
    ) -> Result<()> {
        let before = if matches!(to, AddTo::Nothing) { 0 } else { dx.bytes() };
        device.add(0, bytes([dy, x, dx, stats, &norm.weight]) + before)
    }
}

impl LinearOp for Tally {
    fn linear_checked(
        device: Checked<'_, Self>,
        x: &Blank,
        layer: &Linear<Self>,
        residual: Option<&Blank>,
        y: &mut Blank,
    ) -> Result<()> {
        let ((rows, inputs), outputs) = (x.shape.matrix(), y.shape.columns());
        let added = layer.bias.as_ref().map_or(0, Blank::bytes) + residual.map_or(0, Blank::bytes);
        device.add(product(rows, inputs, outputs), bytes([x, &layer.weight, y]) + added)
    }

    fn linear_backward_checked(
        device: Checked<'_, Self>,
        dy: &Blank,
        layer: &Linear<Self>,
        dx: &mut Blank,
    ) -> Result<()> {
        let ((rows, outputs), inputs) = (dy.shape.matrix(), dx.shape.columns());
        device.add(product(rows, outputs, inputs), bytes([dy, &layer.weight, dx]))
    }
}

impl LoraFoldOp for Tally {
    fn lora_fold_checked(device: Checked<'_, Self>, layers: &mut [LoraFold<'_, Self>]) -> Result<()> {
        for LoraFold { weight, lora, .. } in layers {
            let (width, outputs) = low_rank(*lora);
            let inputs = lora.a.shape().columns();
            device.add(product(outputs, width, inputs), 2 * weight.bytes() + bytes([lora.a, lora.b]))?;
        }
        Ok(())
    }
}

impl LoraGradientsOp for Tally {
    fn lora_gradients_checked(
        device: Checked<'_, Self>,
        layers: &mut [LoraGradients<'_, Self>],
    ) -> Result<()> {
        for LoraGradients { x, dy, lora, .. } in layers {
            let ((rows, inputs), (width, outputs)) = (x.shape.matrix(), low_rank(*lora));
            let (of_a, of_b) = (product(rows, inputs, width), product(rows, outputs, width));
            device.add(2 * (of_a + of_b), bytes([x, dy]) + 2 * bytes([lora.a, lora.b]))?;
        }
        Ok(())
    }
}

impl LoraLinearOp for Tally {
    fn lora_linear_checked(device: Checked<'_, Self>, args: LoraLinear<'_, Self>) -> Result<()> {
        let LoraLinear { x, seen, layer, lora, residual, u, y } = args;
        let ((rows, inputs), (width, outputs)) = (x.shape.matrix(), low_rank(lora));
        Self::linear_checked(device, x, layer, residual, y)?;
        let beside = bytes([lora.a, lora.b, u]) + seen.map_or(0, Blank::bytes);
        device.add(product(rows, inputs, width) + product(rows, width, outputs), beside)
    }

    fn lora_linear_backward_checked(
        device: Checked<'_, Self>,
        args: LoraLinearBackward<'_, Self>,
    ) -> Result<()> {
        let LoraLinearBackward { dy, x, u, layer, lora, du, dx, .. } = args;
        let ((rows, inputs), (width, outputs)) = (x.shape.matrix(), low_rank(lora));
        let (of_a, of_b) = (product(rows, inputs, width), product(rows, outputs, width));
        let beside = bytes([x, u, du]) + 2 * bytes([lora.a, lora.b]);
        match dx {
            Some(dx) => {
                Self::linear_backward_checked(device, dy, layer, dx)?;
                device.add(2 * (of_a + of_b), beside)
            }
            None => device.add(of_a + 2 * of_b, beside + dy.bytes()),
        }
    }

    fn can_train_folded(&self) -> bool {
        self.0.folds
    }
}

impl MixRowsOp for Tally {
    fn mix_rows_checked(device: Checked<'_, Self>, x: &Blank, _mix: &Mix<Self>, y: &mut Blank) -> Result<()> {
        device.add(0, bytes([x, y]))
    }

    fn mix_rows_backward_checked(
        device: Checked<'_, Self>,
        dy: &Blank,
        _mix: &Mix<Self>,
        dx: &mut Blank,
    ) -> Result<()> {
        device.add(0, bytes([dy, dx]))
    }
}

impl PatchEmbedOp for Tally {
    fn patch_columns(&self, inputs: usize) -> usize {
        (self.0.patch_columns)(inputs)
    }

    fn patch_embed_checked(
        device: Checked<'_, Self>,
        args: PatchEmbed<'_, Self>,
        grid: PatchGrid,
    ) -> Result<()> {
        let PatchEmbed { pixels, embedding, x, .. } = args;
        let flop = product(grid.batch * grid.patches(), grid.inputs(), x.shape.columns());
        let weights = bytes([&embedding.projection.weight, &embedding.class, &embedding.position]);
        device.add(flop, bytes([pixels, x]) + weights)
    }
}

impl PromptsOp for Tally {
    fn insert_prompts_checked(
        device: Checked<'_, Self>,
        x: &Blank,
        prompts: &Blank,
        e: PromptExtents,
        y: &mut Blank,
    ) -> Result<()> {
        device.add(0, bytes([x, y]) + of_layer(prompts, e))
    }

    fn insert_prompts_backward_checked(
        device: Checked<'_, Self>,
        dy: &Blank,
        e: PromptExtents,
        d_prompts: &mut Blank,
        dx: Option<&mut Blank>,
    ) -> Result<()> {
        let read = if dx.is_some() { dy.bytes() } else { in_sequences(dy, e) };
        device.add(0, read + 2 * of_layer(d_prompts, e) + dx.map_or(0, |dx| dx.bytes()))
    }

    fn replace_prompts_checked(
        device: Checked<'_, Self>,
        prompts: &Blank,
        e: PromptExtents,
        x: &mut Blank,
    ) -> Result<()> {
        device.add(0, of_layer(prompts, e) + in_sequences(x, e))
    }

    fn replace_prompts_backward_checked(
        device: Checked<'_, Self>,
        d: &mut Blank,
        e: PromptExtents,
        d_prompts: &mut Blank,
    ) -> Result<()> {
        device.add(0, 2 * (of_layer(d_prompts, e) + in_sequences(d, e)))
    }
}

/// Bytes of a layer's prompts.
fn of_layer(prompts: &Blank, e: PromptExtents) -> usize {
    e.count * e.width * prompts.dtype.size()
}

/// Bytes of their places in the sequences.
fn in_sequences(x: &Blank, e: PromptExtents) -> usize {
    e.batch * e.count * e.width * x.dtype.size()
}

impl TakeRowsOp for Tally {
    fn take_rows_checked(device: Checked<'_, Self>, _x: &Blank, rows: &Blank, y: &mut Blank) -> Result<()> {
        device.add(0, rows.bytes() + 2 * y.bytes())
    }

    fn take_rows_backward_checked(
        device: Checked<'_, Self>,
        dy: &Blank,
        rows: &Blank,
        _dx: &mut Blank,
    ) -> Result<()> {
        device.add(0, rows.bytes() + 3 * dy.bytes())
    }
}

impl TripletOp for Tally {
    fn triplet_checked(
        device: Checked<'_, Self>,
        f: &Blank,
        labels: &Blank,
        _margin: f64,
        pairs: &mut Blank,
        distances: &mut Blank,
        _stats: &mut Blank,
    ) -> Result<()> {
        let (batch, width) = f.shape.matrix();
        device.add(3 * batch * batch * width, bytes([f, labels, pairs, distances]))
    }

    fn triplet_backward_checked(
        device: Checked<'_, Self>,
        f: &Blank,
        pairs: &Blank,
        distances: &Blank,
        _weight: f64,
        _control: Option<&Blank>,
        df: &mut Blank,
    ) -> Result<()> {
        device.add(12 * f.shape.elements(), bytes([f, pairs, distances]) + 2 * df.bytes())
    }
}
