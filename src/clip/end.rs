//! The end of a tower: from the row that stands for a sequence behind the blocks to its normalised features, and back.

use super::ClipError;
use super::config::TowerConfig;
use super::weight_source::Loader;
use crate::backend::{AddTo, Backend, DeviceTensor, LayerNorm, Linear, Result};

/// The frozen layers behind a tower's blocks.
pub(super) struct End<B: Backend> {
    pub norm: LayerNorm<B>,
    pub projection: Linear<B>,
}

/// Activations behind the blocks, for n sequences.
pub struct Ends<B: Backend> {
    /// The row that stands for each sequence, and the layer norm of it \[n, 1, D\].
    pub last: B::Tensor,
    pub(super) normed: B::Tensor,
    pub(super) stats: B::Tensor,
    pub(super) projected: B::Tensor,
    pub(super) norms: B::Tensor,
    /// Normalised features \[n, E\].
    pub features: B::Tensor,
}

/// Gradients of what [`Ends`] has.
pub struct EndGradients<B: Backend> {
    /// \[n, E\], where the backward pass starts.
    pub features: B::Tensor,
    pub(super) projected: B::Tensor,
    pub(super) normed: B::Tensor,
    /// \[n, 1, D\], where it goes on.
    pub last: B::Tensor,
}

impl<B: Backend> End<B> {
    /// Loads the layers of these names.
    pub fn load(
        loader: &Loader<'_, B>,
        [norm, projection]: [&str; 2],
        tower: &TowerConfig,
        features: usize,
    ) -> Result<Self, ClipError> {
        let norm = loader.layer_norm(norm, tower.width, tower.norm_eps)?;
        let weight = loader.weight(projection, &[features, tower.width])?;
        Ok(End { norm, projection: Linear { weight, bias: None } })
    }

    /// From `a.last` to `a.features`.
    pub fn forward(&self, backend: &B, a: &mut Ends<B>) -> Result<()> {
        backend.layer_norm(&a.last, &self.norm, &mut a.normed, &mut a.stats)?;
        backend.linear(&a.normed, &self.projection, None, &mut a.projected)?;
        backend.l2_norm(&a.projected, &mut a.features, &mut a.norms)
    }

    /// From `d.features` to `d.last`.
    pub fn backward(&self, backend: &B, a: &Ends<B>, d: &mut EndGradients<B>) -> Result<()> {
        backend.l2_norm_backward(&d.features, &a.features, &a.norms, &mut d.projected)?;
        backend.linear_backward(&d.projected, &self.projection, &mut d.normed)?;
        let to = AddTo::Nothing;
        backend.layer_norm_backward(&d.normed, &a.last, &self.norm, &a.stats, to, &mut d.last)
    }
}

impl<B: Backend> Ends<B> {
    /// Memory for `n` sequences.
    pub fn new(backend: &B, n: usize, width: usize, features: usize) -> Result<Self> {
        let (compute, parameter) = (backend.compute_dtype(), backend.parameter_dtype());
        Ok(Ends {
            last: backend.empty([n, 1, width], compute)?,
            normed: backend.empty([n, 1, width], compute)?,
            stats: backend.empty([n, 1, 2], parameter)?,
            projected: backend.empty([n, features], compute)?,
            norms: backend.empty([n], parameter)?,
            features: backend.empty([n, features], parameter)?,
        })
    }

    /// Sets the number of sequences, up to the number that the memory was made for.
    pub fn set_batch(&mut self, n: usize) -> Result<()> {
        let Ends { last, normed, stats, projected, norms, features } = self;
        [last, normed, stats, projected, norms, features].into_iter().try_for_each(|t| t.set_rows(n))
    }
}

impl<B: Backend> EndGradients<B> {
    /// Memory for `n` sequences.
    pub fn new(backend: &B, n: usize, width: usize, features: usize) -> Result<Self> {
        let compute = backend.compute_dtype();
        Ok(EndGradients {
            features: backend.empty([n, features], backend.parameter_dtype())?,
            projected: backend.empty([n, features], compute)?,
            normed: backend.empty([n, 1, width], compute)?,
            last: backend.empty([n, 1, width], compute)?,
        })
    }

    /// Sets the number of sequences, up to the number that the memory was made for.
    pub fn set_batch(&mut self, n: usize) -> Result<()> {
        let EndGradients { features, projected, normed, last } = self;
        [features, projected, normed, last].into_iter().try_for_each(|t| t.set_rows(n))
    }
}
