//! The CPU backend: the definition of every operation, and what runs where there is no GPU.
//!
//! Plain loops and products in f32. In f64 the same code serves the gradient checks. One file per
//! operation; [`real`] makes the loops vectorise, `gemm` holds the matrix products. In bf16 the loops are the same, and
//! the products those of `packed`, which in f32 multiply by frozen weights where the machine has AVX-512.

mod accumulate;
mod activation;
mod adamw;
mod attention;
mod bf16;
mod class_features;
mod class_tail;
mod crop_resize;
mod dropout;
pub(crate) mod gemm;
mod head_loss;
mod l2_norm;
mod layer_norm;
mod linear;
mod lora_fold;
mod lora_gradients;
mod lora_linear;
mod memory;
mod mix_rows;
mod number;
mod packed;
mod patch_embed;
mod prompts;
mod rate;
pub mod real;
mod take_rows;
mod triplet;

pub use packed::isa::{Features, Isa};
pub use rate::InstructionRate;

use super::*;
use crate::tensor::{DType, Shape, Source, Tensor, View};
use ::half::bf16 as Bf16;
use linear::Padded;
use real::{Arithmetic, Real};
use std::cell::Cell;
use std::marker::PhantomData;

/// The CPU, computing in `T`: f32, or f64 for the checks. Activations and frozen weights are in `T` too, or in bf16.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu<T> {
    /// What products in bf16 are computed with, where it is bf16.
    bf16: Option<Isa>,
    /// What frozen weights in f32 are packed for; without it the `gemm` crate packs them in every product.
    f32: Option<Isa>,
    number: PhantomData<T>,
}

impl<T: Real> Cpu<T> {
    /// The one CPU, on the threads of rayon's current pool.
    pub fn new() -> Self {
        let f32 = Isa::of_f32(Features::found()).filter(|_| T::DTYPE == DType::F32);
        Cpu { bf16: None, f32, number: PhantomData }
    }
}

impl Cpu<f32> {
    /// The CPU with activations and frozen weights in bf16, by these instructions.
    ///
    /// # Errors
    /// Where the machine does not have them.
    pub fn in_bf16(isa: Isa) -> Result<Self> {
        if isa.runs_with(Features::found()) {
            return Ok(Cpu { bf16: Some(isa), f32: None, number: PhantomData });
        }
        Err(BackendError::Invalid { op: "bf16", problem: format!("this machine has no {isa}") })
    }

    /// The CPU in f32, with frozen weights packed for these instructions.
    ///
    /// # Errors
    /// Where the machine does not have them.
    pub fn packed(isa: Isa) -> Result<Self> {
        if isa.runs_f32_with(Features::found()) {
            return Ok(Cpu { bf16: None, f32: Some(isa), number: PhantomData });
        }
        Err(BackendError::Invalid { op: "f32", problem: format!("this machine packs nothing for {isa:?}") })
    }
}

/// A frozen weight, laid out for the products that read it.
pub struct Weight(Layout);

enum Layout {
    Real(Padded),
    F32(packed::linear::Weight<f32>),
    Bf16(packed::linear::Weight<Bf16>),
}

/// An operation over the type of activations and, where it is named, over the backend.
macro_rules! in_type {
    ($cpu:ident, $name:ident<$($backend:ident)?>($($arg:expr),*)) => {
        match $cpu.bf16 {
            None => $name::<T $(, $backend)?>($($arg),*),
            Some(_) => $name::<Bf16 $(, $backend)?>($($arg),*),
        }
    };
}
use in_type;

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

impl<T: Real> Memory for Cpu<T> {
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
        let (weight, bytes) = match (self.bf16, self.f32) {
            (None, None) => {
                let weight = Padded::new::<T>(source)?;
                let bytes = weight.bytes();
                (Layout::Real(weight), bytes)
            }
            (None, Some(_)) => {
                let weight = packed::linear::Weight::new(source)?;
                let bytes = weight.bytes();
                (Layout::F32(weight), bytes)
            }
            (Some(_), _) => {
                let weight = packed::linear::Weight::new(source)?;
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
            Layout::F32(weight) => weight.shape(),
            Layout::Bf16(weight) => weight.shape(),
        }
    }

    fn weight_bytes_to_come(&self, weight: &Weight) -> usize {
        match &weight.0 {
            Layout::Real(_) => 0,
            Layout::F32(weight) => weight.bytes_to_come(),
            Layout::Bf16(weight) => weight.bytes_to_come(),
        }
    }

    fn weight_values(&self, weight: &Weight) -> Result<Tensor> {
        match &weight.0 {
            Layout::Real(weight) => weight.values::<T>(),
            Layout::F32(weight) => weight.values(),
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

    fn feed(&self, parts: Vec<(Source<'_>, &mut Tensor)>) -> Result<()> {
        Ok(parts.into_iter().try_for_each(|(source, target)| source.convert_into(target))?)
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

    fn copy_bytes(
        _device: Checked<'_, Self>,
        x: &Tensor,
        from: usize,
        y: &mut Tensor,
        to: usize,
        count: usize,
    ) -> Result<()> {
        y.bytes_mut()[to..to + count].copy_from_slice(&x.bytes()[from..from + count]);
        Ok(())
    }

    fn clear(&self, x: &mut Tensor) -> Result<()> {
        x.bytes_mut().fill(0);
        Ok(())
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
