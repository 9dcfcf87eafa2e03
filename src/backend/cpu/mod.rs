//! The CPU backend: the definition of every operation, and what runs where there is no GPU.
//!
//! Plain loops and products in f32. In f64 the same code serves the gradient checks. One file per
//! operation; [`real`] makes the loops vectorise, `gemm` holds the matrix products. In bf16 the loops are the same, and
//! the products those of `bf16`.

mod accumulate;
mod activation;
mod adamw;
mod attention;
mod bf16;
mod class_features;
mod crop_resize;
mod dropout;
mod embed;
pub(crate) mod gemm;
mod head_loss;
mod l2_norm;
mod layer_norm;
mod lora_linear;
mod memory;
mod mix;
mod number;
mod prompts;
pub mod real;
mod triplet;

pub use bf16::isa::{Features, Isa};

use super::*;
use ::half::bf16 as Bf16;
use lora_linear::Padded;
use real::Real;
use std::cell::Cell;
use std::marker::PhantomData;

/// The CPU, computing in `T`: f32, or f64 for the checks. Activations and frozen weights are in `T` too, or in bf16.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu<T> {
    /// What products in bf16 are computed with, where it is bf16.
    bf16: Option<Isa>,
    number: PhantomData<T>,
}

impl<T: Real> Cpu<T> {
    /// The one CPU, on the threads of rayon's current pool.
    pub fn new() -> Self {
        Cpu { bf16: None, number: PhantomData }
    }
}

impl Cpu<f32> {
    /// The CPU with activations and frozen weights in bf16, by these instructions.
    ///
    /// # Errors
    /// Where the machine does not have them.
    pub fn in_bf16(isa: Isa) -> Result<Self> {
        if isa.runs_with(Features::found()) {
            return Ok(Cpu { bf16: Some(isa), number: PhantomData });
        }
        Err(BackendError::Invalid { op: "bf16", problem: format!("this machine has no {isa}") })
    }
}

/// A frozen weight, laid out for the products that read it.
pub struct Weight(Layout);

enum Layout {
    Real(Padded),
    Bf16(bf16::linear::Weight),
}

/// An operation over the type of activations and, where it is named, over the backend.
macro_rules! in_type {
    ($cpu:ident, $op:ident::$name:ident<$($backend:ident)?>($($arg:expr),*)) => {
        match $cpu.bf16 {
            None => $op::$name::<T $(, $backend)?>($($arg),*),
            Some(_) => $op::$name::<Bf16 $(, $backend)?>($($arg),*),
        }
    };
}

/// A weight of another type than the backend's: it was made by another.
fn foreign(op: &'static str) -> BackendError {
    BackendError::Invalid { op, problem: "the weight is of another type of activations".into() }
}

thread_local! {
    /// Bytes of all tensors that this thread has made.
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

fn counted(tensor: Tensor) -> Tensor {
    ALLOCATED.set(ALLOCATED.get().wrapping_add(tensor.bytes().len()));
    tensor
}

/// The CPU captures nothing: there is no value of this type.
pub enum NoGraph {}

impl<T: Real> Backend for Cpu<T> {
    type Tensor = Tensor;
    type Weight = Weight;
    type Pending = Option<Tensor>;
    type Graph = NoGraph;

    fn describe(&self) -> String {
        let kind = self.bf16.map_or(T::DTYPE.to_string(), |isa| format!("bf16 ({isa})"));
        format!("CPU, {} threads, {kind}", rayon::current_num_threads())
    }

    fn compute_dtype(&self) -> DType {
        self.bf16.map_or(T::DTYPE, |_| DType::BF16)
    }

    fn parameter_dtype(&self) -> DType {
        T::DTYPE
    }

    fn weight(&self, source: View<'_>) -> Result<Weight> {
        let (weight, bytes) = match self.bf16 {
            None => {
                let weight = Padded::new::<T>(source)?;
                let bytes = weight.bytes();
                (Layout::Real(weight), bytes)
            }
            Some(_) => {
                let weight = bf16::linear::Weight::new(source)?;
                let bytes = weight.bytes();
                (Layout::Bf16(weight), bytes)
            }
        };
        ALLOCATED.set(ALLOCATED.get().wrapping_add(bytes));
        Ok(Weight(weight))
    }

    fn weight_shape(&self, weight: &Weight) -> Shape {
        match &weight.0 {
            Layout::Real(weight) => weight.shape(),
            Layout::Bf16(weight) => weight.shape(),
        }
    }

    fn weight_bytes_to_come(&self, weight: &Weight) -> usize {
        match &weight.0 {
            Layout::Real(_) => 0,
            Layout::Bf16(weight) => weight.bytes_to_come(),
        }
    }

    fn weight_values(&self, weight: &Weight) -> Result<Tensor> {
        match &weight.0 {
            Layout::Real(weight) => weight.values::<T>(),
            Layout::Bf16(weight) => weight.values(),
        }
    }

    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        Ok(counted(Tensor::zeros(shape, dtype)))
    }

    fn upload(&self, source: View<'_>, dtype: DType) -> Result<Tensor> {
        Ok(counted(source.to_tensor(dtype)?))
    }

    fn memory(&self) -> Result<Option<DeviceMemory>> {
        let free = memory::available();
        Ok(free.map(|free| DeviceMemory { name: "memory", free, reserve: 0, allocated: ALLOCATED.get() }))
    }

    fn allocated(&self) -> Result<usize> {
        Ok(ALLOCATED.get())
    }

    fn copy_from_host(&self, source: View<'_>, target: &mut Tensor) -> Result<()> {
        Ok(source.convert_into(target)?)
    }

    fn download(&self, source: &Tensor) -> Result<Tensor> {
        Ok(source.clone())
    }

    fn fetch(&self, source: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(source.clone()))
    }

    fn arrived(&self, pending: &mut Option<Tensor>, _wait: bool) -> Result<Option<Tensor>> {
        Ok(pending.take())
    }

    fn capture(&self, _body: impl FnOnce() -> Result<()>) -> Result<NoGraph> {
        Err(BackendError::Invalid { op: "capture", problem: "the CPU captures nothing".into() })
    }

    fn replay(&self, graph: &NoGraph) -> Result<()> {
        match *graph {}
    }

    fn crop_resize(&self, images: &Tensor, crops: &Tensor, y: &mut Tensor) -> Result<()> {
        crop_resize::crop_resize(images, crops, y)
    }

    fn patch_embed(
        &self,
        pixels: &Tensor,
        mix: Option<&Mix<Self>>,
        embedding: &PatchEmbedding<Self>,
        patches: &mut Tensor,
        products: &mut Tensor,
        x: &mut Tensor,
    ) -> Result<()> {
        in_type!(self, embed::patch_embed<Self>(self, pixels, mix, embedding, patches, products, x))
    }

    fn layer_norm(
        &self,
        x: &Tensor,
        norm: &LayerNorm<Self>,
        y: &mut Tensor,
        stats: &mut Tensor,
    ) -> Result<()> {
        in_type!(self, layer_norm::layer_norm<Self>(x, norm, y, stats))
    }

    fn layer_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        norm: &LayerNorm<Self>,
        stats: &Tensor,
        to: AddTo<'_, Tensor>,
        dx: &mut Tensor,
    ) -> Result<()> {
        in_type!(self, layer_norm::layer_norm_backward<Self>(dy, x, norm, stats, to, dx))
    }

    fn linear(
        &self,
        x: &Tensor,
        layer: &Linear<Self>,
        residual: Option<&Tensor>,
        y: &mut Tensor,
    ) -> Result<()> {
        let bias = layer.bias.as_ref();
        match (self.bf16, &layer.weight.0) {
            (None, Layout::Real(weight)) => lora_linear::linear::<T>(x, weight, bias, residual, y),
            (Some(isa), Layout::Bf16(weight)) => bf16::linear::linear(isa, x, weight, bias, residual, y),
            _ => Err(foreign("linear")),
        }
    }

    fn linear_backward(&self, dy: &Tensor, layer: &Linear<Self>, dx: &mut Tensor) -> Result<()> {
        match (self.bf16, &layer.weight.0) {
            (None, Layout::Real(weight)) => lora_linear::linear_backward::<T>(dy, weight, dx),
            (Some(isa), Layout::Bf16(weight)) => bf16::linear::linear_backward(isa, dy, weight, dx),
            _ => Err(foreign("linear_backward")),
        }
    }

    fn linear_activation(
        &self,
        x: &Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &mut Tensor,
        g: &mut Tensor,
    ) -> Result<()> {
        if let (Some(isa), Layout::Bf16(weight)) = (self.bf16, &layer.weight.0) {
            return bf16::linear::linear_activation(isa, x, weight, layer.bias.as_ref(), kind, z, g);
        }
        self.linear(x, layer, None, z)?;
        self.activation(kind, z, g)
    }

    fn linear_activation_backward(
        &self,
        dy: &Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &Tensor,
        dz: &mut Tensor,
    ) -> Result<()> {
        if let (Some(isa), Layout::Bf16(weight)) = (self.bf16, &layer.weight.0) {
            return bf16::linear::linear_activation_backward(isa, dy, weight, kind, z, dz);
        }
        self.linear_backward(dy, layer, dz)?;
        self.activation_backward(kind, z, dz)
    }

    fn lora_linear(
        &self,
        x: &Tensor,
        seen: Option<&Tensor>,
        layer: &Linear<Self>,
        lora: Lora<'_, Self>,
        residual: Option<&Tensor>,
        u: &mut Tensor,
        y: &mut Tensor,
    ) -> Result<()> {
        let bias = layer.bias.as_ref();
        match (self.bf16, &layer.weight.0) {
            (None, Layout::Real(weight)) => {
                lora_linear::lora_linear::<T, Self>(x, seen, weight, bias, lora, residual, u, y)
            }
            (Some(isa), Layout::Bf16(weight)) => {
                bf16::linear::lora_linear(isa, x, seen, weight, bias, lora, residual, u, y)
            }
            _ => Err(foreign("lora_linear")),
        }
    }

    fn lora_linear_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        dropout: Option<Dropout<'_, Self>>,
        u: &Tensor,
        layer: &Linear<Self>,
        lora: Lora<'_, Self>,
        du: &mut Tensor,
        da: &mut Tensor,
        db: &mut Tensor,
        dx: Option<&mut Tensor>,
    ) -> Result<()> {
        match (self.bf16, &layer.weight.0) {
            (None, Layout::Real(weight)) => {
                lora_linear::lora_linear_backward::<T, Self>(dy, x, dropout, u, weight, lora, du, da, db, dx)
            }
            (Some(isa), Layout::Bf16(weight)) => {
                bf16::linear::lora_linear_backward(isa, dy, x, dropout, u, weight, lora, du, da, db, dx)
            }
            _ => Err(foreign("lora_linear_backward")),
        }
    }

    fn dropout(&self, x: &Tensor, dropout: Dropout<'_, Self>, y: &mut Tensor) -> Result<()> {
        in_type!(self, dropout::dropout<Self>(x, dropout, y))
    }

    fn lora_fold(&self, layers: &mut [LoraFold<'_, Self>]) -> Result<()> {
        let mut layers = layers.iter_mut();
        layers.try_for_each(|layer| match (&layer.weight.0, &mut layer.folded.0) {
            (Layout::Real(weight), Layout::Real(folded)) => {
                lora_linear::lora_fold::<T, Self>(weight, layer.lora, folded)
            }
            (Layout::Bf16(weight), Layout::Bf16(folded)) => {
                bf16::linear::lora_fold(weight, layer.lora, folded)
            }
            _ => Err(foreign("lora_fold")),
        })
    }

    fn lora_gradients(&self, layers: &mut [LoraGradients<'_, Self>]) -> Result<()> {
        layers.iter_mut().try_for_each(|layer| {
            // Of bf16 too.
            let [x, dy] = [layer.x, layer.dy].map(|tensor| tensor.view().to_tensor(T::DTYPE));
            lora_linear::lora_gradients::<T, Self>(&x?, &dy?, layer)
        })
    }

    fn attention_saved(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> Shape {
        match self.bf16 {
            None => attention::saved(batch, heads, queries, keys),
            Some(_) => bf16::attention::saved(batch, heads, queries),
        }
    }

    fn attention(
        &self,
        input: AttentionInput<'_, Self>,
        shape: AttentionShape,
        saved: &mut Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        match self.bf16 {
            None => attention::attention::<T, Self>(input, shape, saved, o),
            Some(isa) => bf16::attention::attention(isa, input, shape, saved, o),
        }
    }

    fn attention_backward(
        &self,
        d_o: &Tensor,
        o: &Tensor,
        input: AttentionInput<'_, Self>,
        saved: &Tensor,
        shape: AttentionShape,
        scratch: &mut Tensor,
        gradient: AttentionGradient<'_, Self>,
    ) -> Result<()> {
        match self.bf16 {
            None => attention::attention_backward::<T, Self>(d_o, input, saved, shape, scratch, gradient),
            Some(isa) => bf16::attention::attention_backward(isa, d_o, o, input, saved, shape, gradient),
        }
    }

    fn activation(&self, kind: Activation, z: &Tensor, g: &mut Tensor) -> Result<()> {
        in_type!(self, activation::activation<>(kind, z, g))
    }

    fn activation_backward(&self, kind: Activation, z: &Tensor, d: &mut Tensor) -> Result<()> {
        in_type!(self, activation::activation_backward<>(kind, z, d))
    }

    fn take_rows(&self, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
        in_type!(self, embed::take_rows<>(x, rows, y))
    }

    fn take_rows_backward(&self, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
        in_type!(self, embed::take_rows_backward<>(dy, rows, dx))
    }

    fn insert_prompts(&self, x: &Tensor, prompts: &Tensor, layer: usize, y: &mut Tensor) -> Result<()> {
        in_type!(self, prompts::insert_prompts<>(x, prompts, layer, y))
    }

    fn insert_prompts_backward(
        &self,
        dy: &Tensor,
        layer: usize,
        d_prompts: &mut Tensor,
        dx: Option<&mut Tensor>,
    ) -> Result<()> {
        in_type!(self, prompts::insert_prompts_backward<>(dy, layer, d_prompts, dx))
    }

    fn replace_prompts(&self, prompts: &Tensor, layer: usize, x: &mut Tensor) -> Result<()> {
        in_type!(self, prompts::replace_prompts<>(prompts, layer, x))
    }

    fn replace_prompts_backward(&self, d: &mut Tensor, layer: usize, d_prompts: &mut Tensor) -> Result<()> {
        in_type!(self, prompts::replace_prompts_backward<>(d, layer, d_prompts))
    }

    fn copy_rows(&self, x: &Tensor, from: usize, y: &mut Tensor, to: usize, rows: usize) -> Result<()> {
        let [from, to, bytes] = copied_bytes((x, from), (y, to), rows)?;
        y.bytes_mut()[to..to + bytes].copy_from_slice(&x.bytes()[from..from + bytes]);
        Ok(())
    }

    fn clear(&self, x: &mut Tensor) -> Result<()> {
        x.bytes_mut().fill(0);
        Ok(())
    }

    fn l2_norm(&self, x: &Tensor, f: &mut Tensor, norms: &mut Tensor) -> Result<()> {
        in_type!(self, l2_norm::l2_norm<>(x, f, norms))
    }

    fn l2_norm_backward(&self, df: &Tensor, f: &Tensor, norms: &Tensor, dx: &mut Tensor) -> Result<()> {
        in_type!(self, l2_norm::l2_norm_backward<>(df, f, norms, dx))
    }

    fn mix_rows(&self, x: &Tensor, mix: &Mix<Self>, y: &mut Tensor) -> Result<()> {
        mix::mix_rows::<T, Self>(x, mix, y)
    }

    fn mix_rows_backward(&self, dy: &Tensor, mix: &Mix<Self>, dx: &mut Tensor) -> Result<()> {
        mix::mix_rows_backward::<T, Self>(dy, mix, dx)
    }

    fn triplet(
        &self,
        f: &Tensor,
        labels: &Tensor,
        margin: f64,
        pairs: &mut Tensor,
        distances: &mut Tensor,
        stats: &mut Tensor,
    ) -> Result<()> {
        triplet::triplet::<T>(f, labels, margin, pairs, distances, stats)
    }

    fn triplet_backward(
        &self,
        f: &Tensor,
        pairs: &Tensor,
        distances: &Tensor,
        weight: f64,
        control: Option<&Tensor>,
        df: &mut Tensor,
    ) -> Result<()> {
        triplet::triplet_backward::<T>(f, pairs, distances, weight, control, df)
    }

    fn head_loss(
        &self,
        f: &Tensor,
        classifier: Classifier<'_, Self>,
        targets: Targets<'_, Self>,
        head: &mut Tensor,
        text: &mut Tensor,
        stats: &mut Tensor,
    ) -> Result<()> {
        head_loss::head_loss::<T, Self>(f, classifier, targets, head, text, stats)
    }

    fn head_loss_backward(
        &self,
        f: &Tensor,
        classifier: Classifier<'_, Self>,
        targets: Targets<'_, Self>,
        weights: LossWeights,
        control: Option<&Tensor>,
        head: &mut Tensor,
        text: &mut Tensor,
        d_weight: &mut Tensor,
        d_bias: &mut Tensor,
        df: Option<&mut Tensor>,
        d_text: Option<&mut Tensor>,
    ) -> Result<()> {
        head_loss::head_loss_backward::<T, Self>(
            f, classifier, targets, weights, control, head, text, d_weight, d_bias, df, d_text,
        )
    }

    fn class_features(&self, f: &Tensor, t: &mut Tensor, norms: &mut Tensor) -> Result<()> {
        class_features::class_features::<T>(f, t, norms)
    }

    fn class_features_backward(
        &self,
        dt: &Tensor,
        t: &Tensor,
        norms: &Tensor,
        df: &mut Tensor,
    ) -> Result<()> {
        class_features::class_features_backward::<T>(dt, t, norms, df)
    }

    fn accumulate(&self, pairs: &mut [(&Tensor, &mut Tensor)], first: bool) -> Result<()> {
        accumulate::accumulate::<T>(pairs, first)
    }

    fn adamw(
        &self,
        tensors: &mut [AdamwTensor<'_, Self>],
        step: AdamwStep<'_, Self>,
        stats: &mut Tensor,
    ) -> Result<()> {
        adamw::adamw::<T, Self>(tensors, step, stats)
    }
}

/// The widest vector instructions that products and loops use on this machine.
pub fn vector_instructions() -> &'static str {
    match real::Vectors::found() {
        #[cfg(target_arch = "x86_64")]
        real::Vectors::Avx512 => "AVX-512",
        #[cfg(target_arch = "x86_64")]
        real::Vectors::Avx2 => "AVX2 and FMA",
        real::Vectors::Compiled => "those every processor of this kind has",
    }
}
