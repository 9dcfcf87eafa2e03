//! The CPU backend: the definition of every operation, and what runs where there is no GPU.
//!
//! Plain loops and products in f32. In f64 the same code serves the gradient checks. One file per
//! operation; [`real`] makes the loops vectorise, `gemm` holds the matrix products.

mod accumulate;
mod activation;
mod adamw;
mod attention;
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
mod prompts;
pub mod real;
mod triplet;

use super::*;
use real::Real;
use std::cell::Cell;
use std::marker::PhantomData;

/// The CPU, computing in `T`: f32, or f64 for the checks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu<T> {
    number: PhantomData<T>,
}

impl<T: Real> Cpu<T> {
    /// The one CPU, on the threads of rayon's current pool: the value holds nothing.
    pub fn new() -> Self {
        Cpu { number: PhantomData }
    }
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
    type Pending = Option<Tensor>;
    type Graph = NoGraph;

    fn describe(&self) -> String {
        format!("CPU, {} threads, {}", rayon::current_num_threads(), T::DTYPE)
    }

    fn compute_dtype(&self) -> DType {
        T::DTYPE
    }

    fn parameter_dtype(&self) -> DType {
        T::DTYPE
    }

    /// Rows a multiple of 4 KiB apart share a few cache sets, and packing W for x·Wᵀ then runs at three
    /// quarters of its speed (docs/performance.md): such rows get a cache line of padding.
    fn weight_stride(&self, inputs: usize) -> usize {
        if (inputs * size_of::<T>()).is_multiple_of(4096) { inputs + 64 / size_of::<T>() } else { inputs }
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
        embed::patch_embed(pixels, mix, embedding, patches, products, x)
    }

    fn layer_norm(
        &self,
        x: &Tensor,
        norm: &LayerNorm<Self>,
        y: &mut Tensor,
        stats: &mut Tensor,
    ) -> Result<()> {
        layer_norm::layer_norm(x, norm, y, stats)
    }

    fn layer_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        norm: &LayerNorm<Self>,
        stats: &Tensor,
        dx: &mut Tensor,
    ) -> Result<()> {
        layer_norm::layer_norm_backward(dy, x, norm, stats, dx)
    }

    fn linear(
        &self,
        x: &Tensor,
        layer: &Linear<Self>,
        residual: Option<&Tensor>,
        y: &mut Tensor,
    ) -> Result<()> {
        lora_linear::linear(x, layer, residual, y)
    }

    fn linear_backward(&self, dy: &Tensor, layer: &Linear<Self>, dx: &mut Tensor) -> Result<()> {
        lora_linear::linear_backward(dy, layer, dx)
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
        lora_linear::lora_linear(x, seen, layer, lora, residual, u, y)
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
        lora_linear::lora_linear_backward(dy, x, dropout, u, layer, lora, du, da, db, dx)
    }

    fn dropout(&self, x: &Tensor, dropout: Dropout<'_, Self>, y: &mut Tensor) -> Result<()> {
        dropout::dropout(x, dropout, y)
    }

    fn lora_fold(&self, weight: &Tensor, lora: Lora<'_, Self>, folded: &mut Tensor) -> Result<()> {
        lora_linear::lora_fold(weight, lora, folded)
    }

    fn attention_saved(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> Shape {
        attention::saved(batch, heads, queries, keys)
    }

    fn attention(
        &self,
        input: AttentionInput<'_, Self>,
        shape: AttentionShape,
        saved: &mut Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        attention::attention(input, shape, saved, o)
    }

    fn attention_backward(
        &self,
        d_o: &Tensor,
        _o: &Tensor,
        input: AttentionInput<'_, Self>,
        saved: &Tensor,
        shape: AttentionShape,
        scratch: &mut Tensor,
        gradient: AttentionGradient<'_, Self>,
    ) -> Result<()> {
        attention::attention_backward(d_o, input, saved, shape, scratch, gradient)
    }

    fn activation(&self, kind: Activation, z: &Tensor, g: &mut Tensor) -> Result<()> {
        activation::activation::<T>(kind, z, g)
    }

    fn activation_backward(&self, kind: Activation, z: &Tensor, d: &mut Tensor) -> Result<()> {
        activation::activation_backward::<T>(kind, z, d)
    }

    fn take_rows(&self, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
        embed::take_rows::<T>(x, rows, y)
    }

    fn take_rows_backward(&self, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
        embed::take_rows_backward::<T>(dy, rows, dx)
    }

    fn insert_prompts(&self, x: &Tensor, prompts: &Tensor, layer: usize, y: &mut Tensor) -> Result<()> {
        prompts::insert_prompts::<T>(x, prompts, layer, y)
    }

    fn insert_prompts_backward(
        &self,
        dy: &Tensor,
        layer: usize,
        d_prompts: &mut Tensor,
        dx: Option<&mut Tensor>,
    ) -> Result<()> {
        prompts::insert_prompts_backward::<T>(dy, layer, d_prompts, dx)
    }

    fn replace_prompts(&self, prompts: &Tensor, layer: usize, x: &mut Tensor) -> Result<()> {
        prompts::replace_prompts::<T>(prompts, layer, x)
    }

    fn replace_prompts_backward(&self, d: &mut Tensor, layer: usize, d_prompts: &mut Tensor) -> Result<()> {
        prompts::replace_prompts_backward::<T>(d, layer, d_prompts)
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
        l2_norm::l2_norm::<T>(x, f, norms)
    }

    fn l2_norm_backward(&self, df: &Tensor, f: &Tensor, norms: &Tensor, dx: &mut Tensor) -> Result<()> {
        l2_norm::l2_norm_backward::<T>(df, f, norms, dx)
    }

    fn mix_rows(&self, x: &Tensor, mix: &Mix<Self>, y: &mut Tensor) -> Result<()> {
        mix::mix_rows(x, mix, y)
    }

    fn mix_rows_backward(&self, dy: &Tensor, mix: &Mix<Self>, dx: &mut Tensor) -> Result<()> {
        mix::mix_rows_backward(dy, mix, dx)
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
        head_loss::head_loss(f, classifier, targets, head, text, stats)
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
        head_loss::head_loss_backward(
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
        adamw::adamw(tensors, step, stats)
    }
}

/// The widest vector instructions that products and loops use on this machine.
pub fn vector_instructions() -> &'static str {
    match pulp::Arch::new() {
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(_) => "AVX-512",
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(_) => "AVX2 and FMA",
        _ => "those every processor of this kind has",
    }
}
