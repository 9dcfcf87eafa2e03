//! Where the frozen tensors come from: a checkpoint, or a random model of the same shape.

use super::ClipError;
use crate::backend::{Backend, LayerNorm, Linear};
use crate::tensor::{DType, Shape, Tensor, View};

/// One tensor of a model, borrowed from its file or made for the purpose.
pub enum Loaded<'a> {
    /// The bytes of the file, in the type in which they were saved.
    Borrowed(View<'a>),
    /// Memory of its own, which goes with it.
    Owned(Tensor),
}

impl Loaded<'_> {
    /// The tensor, wherever it lies.
    pub fn view(&self) -> View<'_> {
        match self {
            Loaded::Borrowed(view) => *view,
            Loaded::Owned(tensor) => tensor.view(),
        }
    }
}

/// Gives out a model's tensors by their Hugging Face names.
pub trait WeightSource {
    /// The tensor `name`, which must have the extents `dims`.
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Loaded<'_>, ClipError>;
}

/// Zeros in the place of every tensor, for backends that only count.
#[derive(Debug, Clone, Copy)]
pub struct Zeros;

impl WeightSource for Zeros {
    fn tensor(&self, _name: &str, dims: &[usize]) -> Result<Loaded<'_>, ClipError> {
        let shape = Shape::try_from(dims).unwrap_or(Shape::from([dims.iter().product()]));
        Ok(Loaded::Owned(Tensor::zeros(shape, DType::F32)))
    }
}

/// Uploads tensors of one source to one backend, in the type of its activations.
pub(super) struct Loader<'a, B: Backend> {
    pub backend: &'a B,
    pub source: &'a dyn WeightSource,
}

impl<B: Backend> Loader<'_, B> {
    /// The weight of a frozen layer.
    pub fn weight(&self, name: &str, dims: &[usize]) -> Result<B::Weight, ClipError> {
        Ok(self.backend.weight(self.source.tensor(name, dims)?.view())?)
    }

    /// A small tensor that is not rounded to the type of the activations.
    pub fn parameter(&self, name: &str, dims: &[usize]) -> Result<B::Tensor, ClipError> {
        let loaded = self.source.tensor(name, dims)?;
        Ok(self.backend.upload(loaded.view(), self.backend.parameter_dtype())?)
    }

    pub fn layer_norm(&self, name: &str, width: usize, eps: f64) -> Result<LayerNorm<B>, ClipError> {
        Ok(LayerNorm {
            weight: self.parameter(&format!("{name}.weight"), &[width])?,
            bias: self.parameter(&format!("{name}.bias"), &[width])?,
            eps,
        })
    }

    pub fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear<B>, ClipError> {
        self.stacked(&[name], outputs, inputs)
    }

    /// Layers of one size computed as one product: their weights and biases below each other.
    pub fn stacked(&self, names: &[&str], outputs: usize, inputs: usize) -> Result<Linear<B>, ClipError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        let dtype = self.host_dtype();
        for name in names {
            let part = self.source.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
            weight.extend_from_slice(part.view().to_tensor(dtype)?.bytes());
            let part = self.source.tensor(&format!("{name}.bias"), &[outputs])?;
            bias.extend_from_slice(part.view().to_tensor(dtype)?.bytes());
        }
        let rows = names.len() * outputs;
        let target = self.backend.compute_dtype();
        Ok(Linear {
            weight: self.backend.weight(View::new([rows, inputs], dtype, &weight)?)?,
            bias: Some(self.backend.upload(View::new([rows], dtype, &bias)?, target)?),
        })
    }

    /// The type in which tensors are put together on the host: no narrower than the backend's.
    pub fn host_dtype(&self) -> DType {
        if self.backend.compute_dtype() == DType::F64 { DType::F64 } else { DType::F32 }
    }
}

impl WeightSource for super::weights::Weights {
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Loaded<'_>, ClipError> {
        Ok(Loaded::Borrowed(self.get(name, dims)?))
    }
}
