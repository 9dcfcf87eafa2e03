//! The list of operations that a device must provide, one line of maths each.
//!
//! The model, the objectives and the training loop are written once over [`Backend`]. The CPU form of an
//! operation ([`cpu`]) is its definition: plain loops and products in f32, or f64 for the gradient checks.
//!
//! Conventions: matrices are row-major and `y = x·Wᵀ + b`; an operation writes every element of its
//! outputs unless it says "adds to"; shapes come from the tensors themselves and are checked; nothing is
//! allocated inside an operation, callers pass the scratch memory. Frozen weights have no gradient here.

pub mod cpu;
pub mod cuda;

use crate::tensor::{DType, Shape, Tensor, TensorError, View};
use thiserror::Error;

/// Errors of a backend's operations.
#[derive(Debug, Error)]
pub enum BackendError {
    /// A tensor has another type than the operation takes, or no room for a shape.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// An operation was handed tensors that do not fit together.
    #[error("{op}: {what} is {}, expected {}", shapes[1], shapes[0])]
    Shape {
        /// The operation.
        op: &'static str,
        /// Name of the tensor in that operation.
        what: &'static str,
        /// Expected shape, then found shape; boxed to keep results small.
        shapes: Box<[Shape; 2]>,
    },
    /// An operation was handed a size it cannot work with.
    #[error("{op}: {problem}")]
    Invalid {
        /// The operation, or the kernel that it launches.
        op: &'static str,
        /// Description of what does not work, with the sizes in question.
        problem: String,
    },
    /// The GPU, its driver or its libraries.
    #[error(transparent)]
    Cuda(Box<cuda::CudaError>),
}

impl BackendError {
    /// Whether the device answers nothing more in this process.
    pub fn lost_device(&self) -> bool {
        matches!(self, BackendError::Cuda(error) if matches!(**error, cuda::CudaError::Lost { .. }))
    }
}

impl From<cuda::CudaError> for BackendError {
    fn from(error: cuda::CudaError) -> Self {
        BackendError::Cuda(Box::new(error))
    }
}

/// Result of a backend's operation.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// Memory on a device, with a shape and an element type.
pub trait DeviceTensor: Send + Sync {
    /// The shape as it was set last, which may take less than the memory.
    fn shape(&self) -> Shape;
    /// The element type, which stays that of the allocation.
    fn dtype(&self) -> DType;
    /// Takes another shape within the memory allocated at the start. The contents are unspecified
    /// afterwards, unless only the leading dimension has changed: then those of kept rows stay.
    fn set_shape(&mut self, shape: Shape) -> Result<()>;
    /// Changes the leading dimension within the memory allocated at the start.
    fn set_rows(&mut self, rows: usize) -> Result<()> {
        self.set_shape(self.shape().with_rows(rows))
    }
}

impl DeviceTensor for Tensor {
    fn shape(&self) -> Shape {
        self.shape()
    }

    fn dtype(&self) -> DType {
        self.dtype()
    }

    fn set_shape(&mut self, shape: Shape) -> Result<()> {
        Ok(self.set_shape(shape)?)
    }
}

/// `Copy` for what borrows tensors: derived, it would ask for a backend that is `Copy`.
macro_rules! copyable {
    ($($name:ident),*) => { $(
        impl<B: Backend> Clone for $name<'_, B> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<B: Backend> Copy for $name<'_, B> {}
    )* };
}
pub(crate) use copyable;

copyable!(Lora, Dropout, Counting, Targets, Classifier);

/// A frozen linear layer: `weight` \[out, in\], `bias` \[out\].
pub struct Linear<B: Backend> {
    /// W, in the compute type.
    pub weight: B::Weight,
    /// b, in the compute type; none adds nothing.
    pub bias: Option<B::Tensor>,
}

/// What the gradient that an operation computes is added to.
#[derive(Debug)]
pub enum AddTo<'a, T> {
    /// Nothing: the output is written.
    Nothing,
    /// The output's own contents.
    Output,
    /// Another tensor of the output's shape.
    Tensor(&'a T),
}

/// A frozen layer norm: `weight` and `bias` \[D\], in the parameter dtype.
pub struct LayerNorm<B: Backend> {
    /// γ.
    pub weight: B::Tensor,
    /// β, added after scaling.
    pub bias: B::Tensor,
    /// ε, added to the variance; 1e-5 in CLIP.
    pub eps: f64,
}

/// The patch embedding: `weight` \[D, 3·p·p\] as the convolution stores it (channel, row, column),
/// `class` \[D\] and `position` \[S, D\] in the parameter dtype, the layer norm behind them, and how u8 pixels become
/// numbers: `(v/255 − mean)/std`.
pub struct PatchEmbedding<B: Backend> {
    /// W; there is no bias.
    pub projection: Linear<B>,
    /// The token in front of the patches, the same for every image.
    pub class: B::Tensor,
    /// Added to the tokens: row 0 to the class token, row i to patch i − 1, patches counted row by row.
    pub position: B::Tensor,
    /// Over the sum of tokens and positions.
    pub norm: LayerNorm<B>,
    /// p, the side of a square patch in pixels.
    pub patch: usize,
    /// Mean of red, green and blue of u8 pixels, as shares of 255.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue of u8 pixels, as shares of 255.
    pub std: [f32; 3],
}

/// Low-rank updates beside a linear layer. `a` \[n·r, in\] stacks the A of n parts, `b` \[n, out, r\] their B;
/// part i adds `scale·(x·Aᵢᵀ)·Bᵢᵀ` to the `out` columns of y from `columns[i]` on.
pub struct Lora<'a, B: Backend> {
    /// A, in the parameter dtype.
    pub a: &'a B::Tensor,
    /// B, in the parameter dtype.
    pub b: &'a B::Tensor,
    /// One for each of the n parts.
    pub columns: &'a [usize],
    /// α/r, or α/√r for rank-stabilised LoRA.
    pub scale: f64,
}

/// A layer whose adapters a training step moves.
pub struct LoraSite<'a, B: Backend> {
    /// Rows of its input.
    pub rows: usize,
    /// The layer.
    pub layer: &'a Linear<B>,
    /// Adapters of it.
    pub lora: Lora<'a, B>,
}

/// A layer whose adapters are to be folded into a copy of its weight.
pub struct LoraFold<'a, B: Backend> {
    /// W.
    pub weight: &'a B::Weight,
    /// Adapters of the layer.
    pub lora: Lora<'a, B>,
    /// W + scale·B·A, of W's shape.
    pub folded: &'a mut B::Weight,
}

/// A layer's adapters, and what their gradients are computed from.
pub struct LoraGradients<'a, B: Backend> {
    /// The layer's input \[…, in\].
    pub x: &'a B::Tensor,
    /// The gradient of its output.
    pub dy: &'a B::Tensor,
    /// Adapters of the layer.
    pub lora: Lora<'a, B>,
    /// Gradient of A.
    pub da: &'a mut B::Tensor,
    /// Gradient of B.
    pub db: &'a mut B::Tensor,
}

/// Dropout (Srivastava et al. 2014): elements are kept with probability 1 − p and then divided by it.
///
/// Element i of a tensor is kept where word i mod 4 of a Philox4x32-10 block (Salmon et al. 2011) is at least
/// p·2³². The block's key are the first two elements of `draw`, its counter \[i/4, 0, `site`, third element of
/// `draw`\]: the same mask on every device, and none to be stored for the backward pass.
pub struct Dropout<'a, B: Backend> {
    /// u32 \[4\]: the seed's low and high half, the number of the batch, 0.
    pub draw: &'a B::Tensor,
    /// Tells tensors of one batch apart.
    pub site: u32,
    /// p, at least 0 and below 1.
    pub probability: f64,
}

/// Queries, keys and values, heads side by side in the last dimension.
pub enum AttentionInput<'a, B: Backend> {
    /// \[B, S, 3·D\]: queries, keys, values.
    Packed(&'a B::Tensor),
    /// Queries \[B, Sq, D\] for some rows, keys and values \[B, S, 2·D\] for all.
    Split {
        /// \[B, Sq, D\].
        q: &'a B::Tensor,
        /// \[B, S, 2·D\]: keys, values.
        kv: &'a B::Tensor,
    },
}

/// Where the gradients of an [`AttentionInput`] go; the same shapes.
pub enum AttentionGradient<'a, B: Backend> {
    /// For [`AttentionInput::Packed`]: dq, dk, dv side by side.
    Packed(&'a mut B::Tensor),
    /// For [`AttentionInput::Split`].
    Split {
        /// \[B, Sq, D\].
        dq: &'a mut B::Tensor,
        /// \[B, S, 2·D\]: dk, dv.
        dkv: &'a mut B::Tensor,
    },
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Heads; they divide D.
    pub heads: usize,
    /// A query sees no key after its own position.
    pub causal: bool,
}

/// Extents of one attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionExtents {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    /// Width of all heads together, and of one.
    pub width: usize,
    pub heads: usize,
    pub head: usize,
    pub causal: bool,
}

impl AttentionExtents {
    /// Checks the shapes of `input` and reads the extents from them.
    pub fn of<B: Backend>(
        op: &'static str,
        input: &AttentionInput<'_, B>,
        shape: AttentionShape,
    ) -> Result<Self> {
        let invalid = |problem: String| Err(BackendError::Invalid { op, problem });
        let (batch, queries, keys, width) = match input {
            AttentionInput::Packed(qkv) => match *qkv.shape().dims() {
                [batch, s, width] if width % 3 == 0 => (batch, s, s, width / 3),
                _ => return invalid(format!("qkv {} is not [B, S, 3·D]", qkv.shape())),
            },
            AttentionInput::Split { q, kv } => match (q.shape().dims(), kv.shape().dims()) {
                (&[batch, sq, width], &[same, s, double]) if batch == same && double == 2 * width => {
                    (batch, sq, s, width)
                }
                _ => {
                    let (q, kv) = (q.shape(), kv.shape());
                    return invalid(format!("q {q} and kv {kv} are not [B, Sq, D] and [B, S, 2·D]"));
                }
            },
        };
        let AttentionShape { heads, causal } = shape;
        if heads == 0 || width == 0 || width % heads != 0 {
            return invalid(format!("{heads} heads do not divide a width of {width}"));
        }
        if causal && matches!(input, AttentionInput::Split { .. }) {
            return invalid("a causal mask needs packed queries, keys and values".into());
        }
        if keys == 0 {
            return invalid("there are no keys".into());
        }
        Ok(AttentionExtents { batch, queries, keys, width, heads, head: width / heads, causal })
    }
}

/// The non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// z·σ(1.702·z), as OpenAI trained CLIP.
    QuickGelu,
    /// z·Φ(z) with the exact normal distribution function.
    Gelu,
}

/// The classifier on normalised features: `weight` \[C, E\], `bias` \[C\] are trained; `text` \[C, E\] is
/// constant unless the text tower is trained, and `text_scale` = exp(logit_scale) always.
pub struct Classifier<'a, B: Backend> {
    /// H, in the parameter dtype.
    pub weight: &'a B::Tensor,
    /// h, in the parameter dtype.
    pub bias: &'a B::Tensor,
    /// T, the class features of the text tower, in the parameter dtype.
    pub text: &'a B::Tensor,
    /// Factor on f·Tᵀ that gives the text logits: exp(logit_scale).
    pub text_scale: f64,
}

/// MixUp (Zhang et al. 2018) of a batch of B: row i becomes λᵢ·row i + (1 − λᵢ)·row `partner`\[i\].
pub struct Mix<B: Backend> {
    /// u32 \[B\], a permutation of the batch.
    pub partner: B::Tensor,
    /// u32 \[B\], the inverse permutation: `partner`\[`inverse`\[i\]\] = i.
    pub inverse: B::Tensor,
    /// \[B\], in the parameter dtype.
    pub lambda: B::Tensor,
}

/// Targets of a batch's cross entropies: the labels, and how they count.
pub struct Targets<'a, B: Backend> {
    /// Class of each image, u32 \[B\].
    pub labels: &'a B::Tensor,
    /// Where images are mixed, so are their classes: λᵢ of label i and 1 − λᵢ of its partner's.
    pub mix: Option<&'a Mix<B>>,
    /// Class weights and label smoothing.
    pub counting: Counting<'a, B>,
}

impl<'a, B: Backend> Targets<'a, B> {
    /// Labels alone.
    pub fn of(labels: &'a B::Tensor) -> Self {
        Targets { labels, mix: None, counting: Counting::PLAIN }
    }
}

/// How cross entropies count the classes: that of an image is −Σ `weights`\[c\]·t\[c\]·log softmax(z)\[c\], where
/// t is 1 − `smoothing` times the shares of its classes, and `smoothing`/C for every class.
pub struct Counting<'a, B: Backend> {
    /// \[C\], in the parameter dtype; none for 1 each.
    pub weights: Option<&'a B::Tensor>,
    /// S, at least 0 and below 1.
    pub smoothing: f64,
    /// Whether the cross entropy of the text logits counts them so too, and not the head's alone.
    pub of_text: bool,
}

impl<B: Backend> Counting<'_, B> {
    /// Every class alike, and labels as they are.
    pub const PLAIN: Self = Counting { weights: None, smoothing: 0.0, of_text: false };
}

/// Positions in the vector of numbers that a step leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stat {
    /// Mean cross entropy of the head.
    LossHead = 0,
    /// Mean cross entropy of the text logits.
    LossText = 1,
    /// Images that the head classifies rightly; a mixed image counts λ where it is given the one class, and
    /// 1 − λ where the other.
    Correct = 2,
    /// [`Stat::Correct`] of the text logits.
    TextCorrect = 3,
    /// Sum of squares of all gradients; not finite where one of them is not.
    GradientSquared = 4,
    /// The loss scale that this step's gradients were computed with; 1 without loss scaling.
    LossScale = 5,
    /// 1 where loss scaling found a gradient that is not finite and left the trained tensors alone.
    Skipped = 6,
    /// Mean triplet loss; 0 where none is computed.
    LossTriplet = 7,
    /// Share of the batch's images whose triplet loss is above 0.
    TripletsActive = 8,
    /// Mean distance of the farthest positive, over the images that have one and a negative; 0 where none has.
    DistancePositive = 9,
    /// Mean distance of the nearest negative, over the same images.
    DistanceNegative = 10,
}

impl Stat {
    /// Length of the vector.
    pub const COUNT: usize = 11;
}

/// Positions in the vector that the optimizer keeps on the device from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Steps that moved the trained tensors.
    Steps = 0,
    /// The loss scale of the next step.
    LossScale = 1,
    /// Good steps since the scale last changed.
    GoodSteps = 2,
}

impl Control {
    /// Length of the vector.
    pub const COUNT: usize = 3;

    /// The vector before the first step.
    pub fn start(scaling: Option<LossScaling>) -> [f32; Control::COUNT] {
        [0.0, scaling.map_or(1.0, |s| s.start as f32), 0.0]
    }
}

/// Dynamic loss scaling as in `torch.amp.GradScaler`: gradients are computed `scale` times too large, so
/// that small ones survive f16; a step with a gradient that is not finite is skipped and the scale reduced,
/// after `interval` good steps in a row it grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScaling {
    /// The scale of the first step; 65536 by default.
    pub start: f64,
    /// Factor by which the scale grows; 2 by default.
    pub growth: f64,
    /// Factor on the scale after a step that was skipped; 0.5 by default.
    pub backoff: f64,
    /// Good steps in a row after which the scale grows; 2000 by default.
    pub interval: u32,
}

impl Default for LossScaling {
    fn default() -> Self {
        LossScaling { start: 65536.0, growth: 2.0, backoff: 0.5, interval: 2000 }
    }
}

/// One trained tensor as the optimizer sees it; all of one shape. The learning rate is the one before the
/// schedule's factor.
pub struct AdamwTensor<'a, B: Backend> {
    /// The trained tensor; like the other three in the parameter dtype.
    pub value: &'a mut B::Tensor,
    /// Gradient of the loss; with loss scaling, that gradient times the loss scale.
    pub gradient: &'a B::Tensor,
    /// m, the running mean of the gradients; zero before the first step.
    pub first_moment: &'a mut B::Tensor,
    /// v, the running mean of the squared gradients; zero before the first step.
    pub second_moment: &'a mut B::Tensor,
    /// η.
    pub learning_rate: f64,
    /// λ: a step multiplies the value by 1 − η·λ, schedule included.
    pub weight_decay: f64,
    /// c, above 0: AdamW moves value/c, whose gradient is c times that of the value. 1 is plain AdamW.
    pub scale: f64,
}

/// The constants of AdamW and of loss scaling, and where the optimizer keeps its state.
pub struct AdamwStep<'a, B: Backend> {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε, added to the root of the corrected v.
    pub eps: f64,
    /// None where the gradients are those of the loss itself; no step is skipped then.
    pub scaling: Option<LossScaling>,
    /// The greatest length of all gradients as one vector: longer ones are multiplied by clip/(length +
    /// 1e-6), as `torch.nn.utils.clip_grad_norm_` does.
    pub clip: Option<f64>,
    /// The schedule's factor on all learning rates \[1\].
    pub factor: &'a B::Tensor,
    /// See [`Control`].
    pub control: &'a mut B::Tensor,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Name of the memory, for people: "GPU memory".
    pub name: &'static str,
    /// Bytes that could still be allocated.
    pub free: usize,
    /// Bytes of `free` that are better left to what is not a tensor: what libraries load at its first use.
    pub reserve: usize,
    /// Bytes that this backend has allocated now.
    pub allocated: usize,
}

/// A device that can run the model.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Memory on this device, given back when dropped.
    type Tensor: DeviceTensor;
    /// The weight of a frozen linear layer, as this device's products read it.
    type Weight: Send + Sync;
    /// A tensor on its way to the host.
    type Pending: Send;
    /// Operations captured to be run again; a CUDA graph.
    type Graph: Send;

    /// Describes the device for people: "CPU, 2 threads, f32".
    fn describe(&self) -> String;
    /// Element type of activations and frozen weights.
    fn compute_dtype(&self) -> DType;
    /// Element type of trained tensors, their gradients, optimizer state, statistics, normalised features,
    /// logits and losses.
    fn parameter_dtype(&self) -> DType;

    /// A frozen weight \[out, in\], rounded to the compute type.
    fn weight(&self, source: View<'_>) -> Result<Self::Weight>;
    /// The extents \[out, in\] of a weight.
    fn weight_shape(&self, weight: &Self::Weight) -> Shape;
    /// Bytes that a weight will take besides, once a gradient has gone through its layer.
    fn weight_bytes_to_come(&self, _weight: &Self::Weight) -> usize {
        0
    }
    /// A copy on the host, in the compute type; waits for the device.
    fn weight_values(&self, weight: &Self::Weight) -> Result<Tensor>;

    /// New memory, zeroed.
    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Self::Tensor>;
    /// New memory for something that is written before it is read.
    fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Self::Tensor> {
        self.zeros(shape, dtype)
    }
    /// New memory with a copy of `source`, converted to `dtype`.
    fn upload(&self, source: View<'_>, dtype: DType) -> Result<Self::Tensor>;
    /// Overwrites `target` with `source` of the same shape, converting.
    fn copy_from_host(&self, source: View<'_>, target: &mut Self::Tensor) -> Result<()>;
    /// A copy on the host; waits for the device.
    fn download(&self, source: &Self::Tensor) -> Result<Tensor>;
    /// As [`Backend::copy_from_host`], in order with the operations, for which the caller does not wait.
    fn copy_from_host_async(&self, source: View<'_>, target: &mut Self::Tensor) -> Result<()> {
        self.copy_from_host(source, target)
    }
    /// Starts copying `source`, as it is after the operations so far, to the host.
    fn fetch(&self, source: &Self::Tensor) -> Result<Self::Pending>;
    /// Returns the copy that [`Backend::fetch`] started, if it is here; waits for it where `wait` is true.
    fn arrived(&self, pending: &mut Self::Pending, wait: bool) -> Result<Option<Tensor>>;
    /// Waits for all operations.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Runs `body`, whose operations are all that a profiler of the device sees which waits to be started.
    fn profile(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        body()
    }

    /// Seconds that the operations called for by `body` take on the device; waits for them.
    fn seconds(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.synchronize()?;
        let start = std::time::Instant::now();
        body()?;
        self.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// Bytes of the last cache in front of the memory; 0 where timings need not care.
    fn cache_bytes(&self) -> usize {
        0
    }

    /// The device's memory; none where the system does not say.
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        Ok(None)
    }

    /// Bytes that were allocated. Only what comes in between two calls on one thread counts: the CPU does not
    /// see what is given back.
    fn allocated(&self) -> Result<usize> {
        Ok(self.memory()?.map_or(0, |memory| memory.allocated))
    }

    /// True where operations can be captured, which saves most of the cost of starting them one by one.
    fn can_capture(&self) -> bool {
        false
    }
    /// Captures the operations that `body` calls for, without running them. All must have run before in
    /// the same shapes. Copies between host and device and new memory are no operations in this sense.
    fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Self::Graph>;
    /// Runs captured operations, on the tensors that they were captured with.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Random resized crops: y\[b\] = the rectangle `crops`\[b\] of `images`\[b\], resized by an antialiased
    /// bicubic filter (a = −0.5, as Pillow's; the support grows with the reduction, taps end at the
    /// rectangle) and mirrored where asked. `images` u8 \[B, H, W, 3\]; `crops` u32 \[B, 5\]: top, left,
    /// height, width (at least 1, inside the image), 1 for mirrored; `y` u8 \[B, S, S, 3\], rounded to
    /// nearest, once (Pillow also rounds between its passes). A crop that is not inside the image is an error
    /// where the host sees it; a device moves and cuts it until it is.
    fn crop_resize(&self, images: &Self::Tensor, crops: &Self::Tensor, y: &mut Self::Tensor) -> Result<()>;

    /// x = layer norm of (\[class; patches·Wᵀ\] + position).
    /// `pixels`: u8 \[B, H, W, 3\], normalised here, or numbers \[B, 3, H, W\], taken as they are, then mixed
    /// where `mix` is given; `x` \[B, S, D\]; scratch: `patches` \[B, S−1, 3·p·p\], `products` \[B, S−1, D\].
    fn patch_embed(
        &self,
        pixels: &Self::Tensor,
        mix: Option<&Mix<Self>>,
        embedding: &PatchEmbedding<Self>,
        patches: &mut Self::Tensor,
        products: &mut Self::Tensor,
        x: &mut Self::Tensor,
    ) -> Result<()>;

    /// y = (x − mean(x))/√(var(x) + eps)·w + b over the last dimension; `stats` \[…, 2\] keeps the
    /// mean and 1/√(var + eps) of each row.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        norm: &LayerNorm<Self>,
        y: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()>;

    /// With x̂ = (x − mean)/σ and g = dy·w: dx = `to` + (g − mean(g) − x̂·mean(g·x̂))/σ.
    fn layer_norm_backward(
        &self,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        norm: &LayerNorm<Self>,
        stats: &Self::Tensor,
        to: AddTo<'_, Self::Tensor>,
        dx: &mut Self::Tensor,
    ) -> Result<()>;

    /// y = x·Wᵀ + b (+ residual).
    fn linear(
        &self,
        x: &Self::Tensor,
        layer: &Linear<Self>,
        residual: Option<&Self::Tensor>,
        y: &mut Self::Tensor,
    ) -> Result<()>;

    /// dx = dy·W. There is no dW: the layer is frozen.
    fn linear_backward(&self, dy: &Self::Tensor, layer: &Linear<Self>, dx: &mut Self::Tensor) -> Result<()>;

    /// z = x·Wᵀ + b, and g = act(z).
    fn linear_activation(
        &self,
        x: &Self::Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &mut Self::Tensor,
        g: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(x, layer, None, z)?;
        self.activation(kind, z, g)
    }

    /// dz = (dy·W)·act′(z).
    fn linear_activation_backward(
        &self,
        dy: &Self::Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &Self::Tensor,
        dz: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear_backward(dy, layer, dz)?;
        self.activation_backward(kind, z, dz)
    }

    /// y = x·Wᵀ + b + scale·(x̃·Aᵀ)·Bᵀ (+ residual); `u` = x̃·Aᵀ \[…, n·r\] is kept for the backward pass. The
    /// adapters see x̃ = `seen` in the place of x where it is given.
    #[allow(clippy::too_many_arguments)]
    fn lora_linear(
        &self,
        x: &Self::Tensor,
        seen: Option<&Self::Tensor>,
        layer: &Linear<Self>,
        lora: Lora<'_, Self>,
        residual: Option<&Self::Tensor>,
        u: &mut Self::Tensor,
        y: &mut Self::Tensor,
    ) -> Result<()>;

    /// du = scale·dy·B, dA = duᵀ·x̃, dB = scale·dyᵀ·u, and where the input's gradient is wanted
    /// dx = dy·W + du·A. `x` is what the adapters saw, x̃; where that is `dropout` of the input, du·A goes
    /// through its mask. Scratch: `du` \[…, n·r\].
    #[allow(clippy::too_many_arguments)]
    fn lora_linear_backward(
        &self,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        dropout: Option<Dropout<'_, Self>>,
        u: &Self::Tensor,
        layer: &Linear<Self>,
        lora: Lora<'_, Self>,
        du: &mut Self::Tensor,
        da: &mut Self::Tensor,
        db: &mut Self::Tensor,
        dx: Option<&mut Self::Tensor>,
    ) -> Result<()>;

    /// y = x∘mask/(1 − p).
    fn dropout(&self, x: &Self::Tensor, dropout: Dropout<'_, Self>, y: &mut Self::Tensor) -> Result<()>;

    /// folded = W + scale·B·A for each of `layers`.
    fn lora_fold(&self, layers: &mut [LoraFold<'_, Self>]) -> Result<()>;

    /// Whether training steps can fold adapters without dropout into copies of the weights at their start, and compute
    /// the gradients of all of them together at their end ([`Backend::lora_gradients`]), in the place of
    /// [`Backend::lora_linear`] and its backward pass for each layer.
    fn can_train_folded(&self) -> bool {
        false
    }

    /// Whether training steps of `layers` do so: where they can, and it is faster.
    fn trains_folded(&self, _layers: &[LoraSite<'_, Self>]) -> Result<bool> {
        Ok(false)
    }

    /// With u = x·Aᵀ and du = scale·dy·B: dA = duᵀ·x and dB = scale·dyᵀ·u for each of `layers`.
    fn lora_gradients(&self, layers: &mut [LoraGradients<'_, Self>]) -> Result<()>;

    /// Shape of what [`Backend::attention`] keeps for its backward pass, and of the scratch memory there;
    /// both in the parameter dtype.
    fn attention_saved(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> Shape;

    /// Per head: o = softmax(q·kᵀ/√d)·v; `o` \[B, Sq, D\]. A causal mask needs packed input.
    fn attention(
        &self,
        input: AttentionInput<'_, Self>,
        shape: AttentionShape,
        saved: &mut Self::Tensor,
        o: &mut Self::Tensor,
    ) -> Result<()>;

    /// With P = softmax(q·kᵀ/√d): dv = Pᵀ·do, dS = P∘(dP − rowsum(dP∘P))/√d where dP = do·vᵀ,
    /// dq = dS·k, dk = dSᵀ·q. `o` is what [`Backend::attention`] gave: rowsum(dP∘P) = rowsum(do∘o).
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        d_o: &Self::Tensor,
        o: &Self::Tensor,
        input: AttentionInput<'_, Self>,
        saved: &Self::Tensor,
        shape: AttentionShape,
        scratch: &mut Self::Tensor,
        gradient: AttentionGradient<'_, Self>,
    ) -> Result<()>;

    /// g = act(z).
    fn activation(&self, kind: Activation, z: &Self::Tensor, g: &mut Self::Tensor) -> Result<()>;

    /// dz = dg·act′(z), in place: `d` holds dg and then dz.
    fn activation_backward(&self, kind: Activation, z: &Self::Tensor, d: &mut Self::Tensor) -> Result<()>;

    /// y\[b\] = x\[b, rows\[b\]\]: `x` \[B, S, D\], `rows` u32 \[B\], `y` \[B, …, D\].
    fn take_rows(&self, x: &Self::Tensor, rows: &Self::Tensor, y: &mut Self::Tensor) -> Result<()>;

    /// dx\[b, rows\[b\]\] += dy\[b\]; adds to `dx`.
    fn take_rows_backward(&self, dy: &Self::Tensor, rows: &Self::Tensor, dx: &mut Self::Tensor)
    -> Result<()>;

    /// y = \[x₀; `prompts`\[layer\]; x₁; x₂; …\] per sequence: `x` \[B, S, D\], `prompts` \[n, m, D\] in the
    /// parameter dtype, `y` \[B, S+m, D\].
    fn insert_prompts(
        &self,
        x: &Self::Tensor,
        prompts: &Self::Tensor,
        layer: usize,
        y: &mut Self::Tensor,
    ) -> Result<()>;

    /// Adds Σ over the batch of the prompts' rows of `dy` to `d_prompts`\[layer\]; dx = the other rows, where
    /// it is wanted.
    fn insert_prompts_backward(
        &self,
        dy: &Self::Tensor,
        layer: usize,
        d_prompts: &mut Self::Tensor,
        dx: Option<&mut Self::Tensor>,
    ) -> Result<()>;

    /// Rows 1 to m of every sequence become `prompts`\[layer\], in place: `x` \[B, S, D\].
    fn replace_prompts(&self, prompts: &Self::Tensor, layer: usize, x: &mut Self::Tensor) -> Result<()>;

    /// Adds Σ over the batch of rows 1 to m of `d` to `d_prompts`\[layer\] and sets these rows to zero: `d` held
    /// the gradient of what [`Backend::replace_prompts`] left, and then holds that of what it was given.
    fn replace_prompts_backward(
        &self,
        d: &mut Self::Tensor,
        layer: usize,
        d_prompts: &mut Self::Tensor,
    ) -> Result<()>;

    /// Rows `to` to `to` + n − 1 of y = rows `from` to `from` + n − 1 of x, n = `rows`; of one type, and of one
    /// number of elements in a row.
    fn copy_rows(
        &self,
        x: &Self::Tensor,
        from: usize,
        y: &mut Self::Tensor,
        to: usize,
        rows: usize,
    ) -> Result<()>;

    /// Sets every element to zero.
    fn clear(&self, x: &mut Self::Tensor) -> Result<()>;

    /// f = x/|x| per row; `norms` \[B\] keeps |x|; both in the parameter dtype.
    fn l2_norm(&self, x: &Self::Tensor, f: &mut Self::Tensor, norms: &mut Self::Tensor) -> Result<()>;

    /// dx = (df − f·⟨f, df⟩)/|x|.
    fn l2_norm_backward(
        &self,
        df: &Self::Tensor,
        f: &Self::Tensor,
        norms: &Self::Tensor,
        dx: &mut Self::Tensor,
    ) -> Result<()>;

    /// y = the mixed rows of x; both \[B, E\] in the parameter dtype.
    fn mix_rows(&self, x: &Self::Tensor, mix: &Mix<Self>, y: &mut Self::Tensor) -> Result<()>;

    /// dx\[i\] = λᵢ·dy\[i\] + (1 − λₖ)·dy\[k\] with k = `inverse`\[i\].
    fn mix_rows_backward(&self, dy: &Self::Tensor, mix: &Mix<Self>, dx: &mut Self::Tensor) -> Result<()>;

    /// Batch-hard triplet loss (Hermans et al. 2017): mean over the anchors i of max(0, d(i, p) − d(i, n) +
    /// margin), d(i, j) = √max(|fᵢ − fⱼ|², 1e-12), p the farthest other image of the same class, n the
    /// nearest of another (the first of equals); an anchor that lacks either counts as 0. `pairs` u32 \[B,
    /// 2\] keeps p and n, twice u32::MAX where the anchor's loss is 0; `distances` \[B, 2\] those of p and n, 0
    /// where the anchor lacks either. The mean goes to [`Stat::LossTriplet`] of `stats`, what else is known of the
    /// triplets behind it. A distance that is not a number counts as the
    /// farthest and the nearest, so that the loss is none either. All but the pairs in the parameter dtype.
    #[allow(clippy::too_many_arguments)]
    fn triplet(
        &self,
        f: &Self::Tensor,
        labels: &Self::Tensor,
        margin: f64,
        pairs: &mut Self::Tensor,
        distances: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()>;

    /// Adds the gradient of `weight`·loss to `df`, times the loss scale as in
    /// [`Backend::head_loss_backward`]. The gradient of a distance that was clamped is 0.
    fn triplet_backward(
        &self,
        f: &Self::Tensor,
        pairs: &Self::Tensor,
        distances: &Self::Tensor,
        weight: f64,
        control: Option<&Self::Tensor>,
        df: &mut Self::Tensor,
    ) -> Result<()>;

    /// head = f·Hᵀ + h, text = text_scale·f·Tᵀ, both \[B, C\]; the losses and counts of [`Stat`] over the
    /// batch go to `stats`. All in the parameter dtype. With mixed targets a cross entropy is
    /// λᵢ·CE(label i) + (1 − λᵢ)·CE(its partner's); see [`Counting`] for what else it may be.
    fn head_loss(
        &self,
        f: &Self::Tensor,
        classifier: Classifier<'_, Self>,
        targets: Targets<'_, Self>,
        head: &mut Self::Tensor,
        text: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()>;

    /// Gradient of `weights.head`·CE(head) + `weights.text`·CE(text), means over the batch. The logits are
    /// overwritten with their gradients; dH = d_headᵀ·f, dh = Σ d_head, and where it is wanted
    /// df = d_head·H + text_scale·d_text·T and dT = text_scale·d_textᵀ·f. All of it times the loss scale where
    /// there is one: the element [`Control::LossScale`] of `control`.
    #[allow(clippy::too_many_arguments)]
    fn head_loss_backward(
        &self,
        f: &Self::Tensor,
        classifier: Classifier<'_, Self>,
        targets: Targets<'_, Self>,
        weights: LossWeights,
        control: Option<&Self::Tensor>,
        head: &mut Self::Tensor,
        text: &mut Self::Tensor,
        d_weight: &mut Self::Tensor,
        d_bias: &mut Self::Tensor,
        df: Option<&mut Self::Tensor>,
        d_text: Option<&mut Self::Tensor>,
    ) -> Result<()>;

    /// Class features from those of their prompts: s\[c\] = Σ of the rows c·k to c·k + k − 1 of `f` \[C·k, E\],
    /// `norms`\[c\] = |s\[c\]|, `t` = s/|s| \[C, E\]; all in the parameter dtype.
    fn class_features(&self, f: &Self::Tensor, t: &mut Self::Tensor, norms: &mut Self::Tensor) -> Result<()>;

    /// Each of the k rows of class c: df = (dt − t·⟨t, dt⟩)/`norms`\[c\].
    fn class_features_backward(
        &self,
        dt: &Self::Tensor,
        t: &Self::Tensor,
        norms: &Self::Tensor,
        df: &mut Self::Tensor,
    ) -> Result<()>;

    /// Adds gradients up over several batches: sum = gradient for the `first`, sum += gradient for the others.
    /// Pairs of a gradient and its sum, of the same shape, in the parameter dtype.
    fn accumulate(&self, pairs: &mut [(&Self::Tensor, &mut Self::Tensor)], first: bool) -> Result<()>;

    /// AdamW with decoupled decay and bias correction as in `torch.optim.AdamW`, over all trained tensors.
    /// With loss scaling the gradients are divided by the scale first, and [`LossScaling`] says what
    /// happens when one is not finite. Gradient norm, scale and skip go to `stats`.
    fn adamw(
        &self,
        tensors: &mut [AdamwTensor<'_, Self>],
        step: AdamwStep<'_, Self>,
        stats: &mut Self::Tensor,
    ) -> Result<()>;
}

/// Weights of the two cross entropies in the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossWeights {
    /// Weight of the cross entropy of the head's logits.
    pub head: f64,
    /// Weight of the cross entropy of the text logits.
    pub text: f64,
}

/// Checks that a tensor holds `rows`·`columns` elements in rows of `columns`, whatever its leading
/// dimensions are.
pub(crate) fn expect_matrix(
    op: &'static str,
    what: &'static str,
    rows: usize,
    columns: usize,
    found: Shape,
) -> Result<()> {
    if found.columns() == columns && found.elements() == rows * columns {
        return Ok(());
    }
    Err(BackendError::Shape { op, what, shapes: Box::new([[rows, columns].into(), found]) })
}

/// The first bytes in x and in y of what [`Backend::copy_rows`] copies, and their number, after it was checked
/// that they are there.
pub(crate) fn copied_bytes<T: DeviceTensor>(
    (x, from): (&T, usize),
    (y, to): (&T, usize),
    rows: usize,
) -> Result<[usize; 3]> {
    const OP: &str = "copy_rows";
    expect_shape(OP, "y", x.shape().with_rows(y.shape().rows()), y.shape())?;
    let last =
        (from + rows).saturating_sub(x.shape().rows()).max((to + rows).saturating_sub(y.shape().rows()));
    if last > 0 || x.dtype() != y.dtype() {
        let (a, b) = (x.dtype(), y.dtype());
        let problem = format!("{rows} rows from {from} to {to} of {} {a} and {} {b}", x.shape(), y.shape());
        return Err(BackendError::Invalid { op: OP, problem });
    }
    let row = x.shape().row_elements() * x.dtype().size();
    Ok([from * row, to * row, rows * row])
}

/// Checks that `found` is `expected`.
pub(crate) fn expect_shape(
    op: &'static str,
    what: &'static str,
    expected: impl Into<Shape>,
    found: Shape,
) -> Result<()> {
    let expected = expected.into();
    if expected == found {
        return Ok(());
    }
    Err(BackendError::Shape { op, what, shapes: Box::new([expected, found]) })
}
