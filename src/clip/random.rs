//! A model with random weights: for benchmarks and gradient checks, where only shapes matter.

use super::ClipError;
use super::weight_source::{Loaded, WeightSource};
use crate::random;
use crate::tensor::{DType, Shape, Tensor};
use rand_distr::{Distribution, Normal};

/// Gives every tensor normal values that depend only on its name and the seed, scaled so that activations
/// keep their size; norms and biases are moved off 1 and 0, so that a forgotten one would be noticed.
#[derive(Debug, Clone, Copy)]
pub struct RandomWeights {
    /// Another seed gives all tensors other values.
    pub seed: u64,
}

impl WeightSource for RandomWeights {
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Loaded<'_>, ClipError> {
        let shape = Shape::try_from(dims).unwrap_or(Shape::from([dims.iter().product()]));
        let is_norm = name.contains("norm") && name.ends_with(".weight");
        let (mean, deviation) = match dims {
            [] => (2.659_260_036_932_778, 0.0),
            [_] if is_norm => (1.0, 0.1),
            [_] => (0.0, 0.05),
            _ => (0.0, 1.0 / (shape.row_elements() as f64).sqrt()),
        };
        let mut rng = random::of_name(self.seed, name);
        let mut tensor = Tensor::zeros(shape, DType::F64);
        if let Ok(normal) = Normal::new(mean, deviation) {
            for value in tensor.typed_mut::<f64>()? {
                *value = normal.sample(&mut rng);
            }
        }
        Ok(Loaded::Owned(tensor))
    }
}
