//! Adapters added to the weights they belong to.

use crate::clip::weights::expected_tensors;
use crate::settings::flag;
use crate::tensor::{DType, Tensor};
use crate::train::adapter::Adapter;
use crate::train::model::Model;
use crate::train::{Result, TrainError};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// A model with an adapter in its weights.
pub(super) struct Merged<'a> {
    model: &'a Model,
    /// A and B by the name of their W in the checkpoint.
    pairs: BTreeMap<String, &'a (Tensor, Tensor)>,
    scale: f64,
}

impl<'a> Merged<'a> {
    /// `model` as it is without an adapter.
    pub fn new(model: &'a Model, adapter: Option<&'a Adapter>) -> Self {
        let tensors = adapter.into_iter().flat_map(Adapter::tensors);
        let pairs = tensors.map(|(site, pair)| (format!("{site}.weight"), pair)).collect();
        Merged { model, pairs, scale: adapter.map_or(0.0, |adapter| adapter.spec.scale()) }
    }

    /// The tensor `name` of the checkpoint, which has the extents `dims`, with W + scale·B·A in the place of W where
    /// the adapter has one, computed in f64 and stored as `dtype`.
    ///
    /// # Errors
    /// Weights beyond the largest number of `dtype`.
    pub fn tensor(&self, name: &str, dims: &[usize], dtype: DType) -> Result<Tensor> {
        let mut tensor = self.model.weights.get(name, dims)?.to_tensor(DType::F32)?;
        if let Some((a, b)) = self.pairs.get(name) {
            let inputs = a.shape().columns();
            add_product(tensor.typed_mut()?, a.typed()?, b.typed()?, inputs, self.scale);
        }
        let stored = tensor.view().to_tensor(dtype)?;
        let back = stored.view().to_tensor(DType::F32)?;
        if !back.typed::<f32>()?.iter().all(|value| value.is_finite()) {
            return Err(TrainError::file(
                self.model.dir(),
                format!("{name} has values that {dtype} cannot hold; export with {} f32", flag::EXPORT_DTYPE),
            ));
        }
        Ok(stored)
    }
}

/// The tensors of `model` by their names in the checkpoint, with W + scale·B·A in the place of W where the
/// adapter has one, computed in f64 and stored as `dtype`.
///
/// # Errors
/// Weights beyond the largest number of `dtype`.
pub fn merged_tensors(
    model: &Model,
    adapter: Option<&Adapter>,
    dtype: DType,
) -> Result<BTreeMap<String, Tensor>> {
    let merged = Merged::new(model, adapter);
    let tensors = expected_tensors(&model.config).into_iter();
    tensors
        .map(|(name, shape)| merged.tensor(&name, shape.dims(), dtype).map(|tensor| (name, tensor)))
        .collect()
}

/// W += scale·B·A, for W \[out, in\], A \[r, in\] and B \[out, r\].
fn add_product(w: &mut [f32], a: &[f32], b: &[f32], inputs: usize, scale: f64) {
    let rank = a.len() / inputs;
    w.par_chunks_mut(inputs).zip(b.par_chunks(rank)).for_each(|(w, b)| {
        for (column, w) in w.iter_mut().enumerate() {
            let terms = b.iter().enumerate().map(|(k, &b)| f64::from(b) * f64::from(a[k * inputs + column]));
            *w = (f64::from(*w) + scale * terms.sum::<f64>()) as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_added_row_by_row() {
        // W [2, 3], A [2, 3], B [2, 2].
        let mut w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let a = [1.0, 0.0, 2.0, 0.0, 3.0, 1.0];
        let b = [1.0, 10.0, 2.0, 0.0];
        add_product(&mut w, &a, &b, 3, 0.5);
        assert_eq!(w, [1.5, 17.0, 9.0, 5.0, 5.0, 8.0]);
    }
}
