//! A frozen linear layer with its adapter, and all such layers of a block.
//!
//! The layer alone knows how its adapter is computed: beside the weight or folded into a copy of it, behind dropout
//! or not, its gradients at once or at the end of the step.

use super::dropout::{BlockDropout, Slot, TowerDropout};
use super::{LoraInit, LoraLayer, LoraSpec, Site, Target, Tower};
use crate::backend::{
    Activation, Backend, BackendError, DeviceTensor, Dropout, Kept, Linear, LoraFold, LoraGradients,
    LoraLinear, LoraLinearBackward, Result, copyable,
};
use crate::tensor::{DType, Tensor};
use std::sync::Arc;

/// How a pass takes the adapters of a block.
pub enum Form<'a, B: Backend> {
    /// Folded into copies of the weights; beside the weights where there are no copies, see [`fold`].
    Folded,
    /// Beside the weights, behind dropout where there is any.
    Beside(Option<BlockDropout<'a, B>>),
}

copyable!(Backend: Form);

impl<'a, B: Backend> Form<'a, B> {
    /// As training has the adapters of block `layer`, where they are not folded.
    pub(crate) fn beside(dropout: Option<TowerDropout<'a, B>>, tower: Tower, layer: usize) -> Self {
        Form::Beside(dropout.map(|dropout| dropout.of(tower, layer)))
    }

    fn dropout(self, slot: Slot) -> Option<Dropout<'a, B>> {
        match self {
            Form::Beside(dropout) => dropout.map(|dropout| dropout.of(slot)),
            Form::Folded => None,
        }
    }
}

/// Scratch memory of adapters, one layer's at a time.
pub struct AdapterScratch<B: Backend> {
    /// The adapter's input behind dropout.
    pub seen: Option<B::Tensor>,
    /// Gradient of x·Aᵀ.
    pub du: Option<B::Tensor>,
}

/// What a pass has for all adapters of a block.
pub struct AdapterPass<'a, B: Backend> {
    pub form: Form<'a, B>,
    pub scratch: &'a mut AdapterScratch<B>,
}

/// What a layer keeps for the gradients of its adapter.
pub struct Saved<B: Backend> {
    /// x·Aᵀ \[B, S, n·r\], where the adapter can be beside the weight.
    pub u: Option<B::Tensor>,
    /// The gradient of the layer's output \[B, S, out\], where the adapter's are computed at the end of the step.
    pub dy: Option<B::Tensor>,
}

impl<B: Backend> Saved<B> {
    /// The tensors that there are.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut B::Tensor> {
        self.u.iter_mut().chain(&mut self.dy)
    }
}

/// A frozen linear layer, which several models may share, with its adapter if it has one.
pub struct AdaptedLinear<B: Backend> {
    slot: Slot,
    frozen: Arc<Linear<B>>,
    adapter: Option<LoraLayer<B>>,
    /// A copy of the frozen layer with the adapter folded in.
    folded: Option<Linear<B>>,
}

impl<B: Backend> AdaptedLinear<B> {
    /// The layer at `slot` of its block, without an adapter.
    pub fn plain(slot: Slot, frozen: Linear<B>) -> Self {
        AdaptedLinear { slot, frozen: Arc::new(frozen), adapter: None, folded: None }
    }

    /// The same frozen layer with another adapter or none.
    fn with(&self, adapter: Option<LoraLayer<B>>) -> Self {
        AdaptedLinear { slot: self.slot, frozen: self.frozen.clone(), adapter, folded: None }
    }

    /// The frozen layer.
    pub fn frozen(&self) -> &Linear<B> {
        &self.frozen
    }

    /// The adapter, if there is one.
    pub fn adapter(&self) -> Option<&LoraLayer<B>> {
        self.adapter.as_ref()
    }

    /// The weight that a pass multiplies with, and the adapter that comes besides.
    fn taken(&self, form: Form<'_, B>) -> (&Linear<B>, Option<&LoraLayer<B>>) {
        match (form, &self.folded) {
            (Form::Folded, Some(folded)) => (folded, None),
            _ => (&self.frozen, self.adapter.as_ref()),
        }
    }

    /// The layer as a pass of this form multiplies with it, if that is all it computes: no adapter comes besides.
    pub fn alone(&self, form: Form<'_, B>) -> Option<&Linear<B>> {
        let (layer, adapter) = self.taken(form);
        adapter.is_none().then_some(layer)
    }

    /// y = layer(x) (+ residual).
    pub fn forward(
        &self,
        backend: &B,
        pass: &mut AdapterPass<'_, B>,
        x: &B::Tensor,
        residual: Option<&B::Tensor>,
        saved: &mut Saved<B>,
        y: &mut B::Tensor,
    ) -> Result<()> {
        let (layer, adapter) = self.taken(pass.form);
        let Some(adapter) = adapter else { return backend.linear(x, layer, residual, y) };
        let u = saved.u.as_mut().ok_or_else(no_memory)?;
        let seen = match pass.form.dropout(self.slot) {
            Some(dropout) => Some(dropped(backend, x, dropout, &mut pass.scratch.seen)?),
            None => None,
        };
        let lora = adapter.as_lora();
        backend.lora_linear(LoraLinear { x, seen, layer, lora, residual, u, y })
    }

    /// g = act(z) with z = layer(x), and in `z` what is kept of it, as is said.
    pub fn forward_activated(
        &self,
        backend: &B,
        pass: &mut AdapterPass<'_, B>,
        x: &B::Tensor,
        kind: Activation,
        saved: &mut Saved<B>,
        (z, g): (&mut B::Tensor, &mut B::Tensor),
    ) -> Result<Kept> {
        match self.taken(pass.form) {
            (layer, None) => backend.linear_activation(x, layer, kind, z, g),
            _ => {
                self.forward(backend, pass, x, None, saved, z)?;
                backend.activation(kind, z, None, g)?;
                Ok(Kept::Sum)
            }
        }
    }

    /// From the gradient `dy` of the output to that of the input, where `dx` is given, and to those of the adapter: at
    /// once, unless `saved` keeps `dy` for [`AdaptedLinear::gradients`]. Only an adapter needs the input `x`.
    pub fn backward(
        &mut self,
        backend: &B,
        pass: &mut AdapterPass<'_, B>,
        dy: &B::Tensor,
        x: Option<&B::Tensor>,
        saved: &Saved<B>,
        dx: Option<&mut B::Tensor>,
    ) -> Result<()> {
        let frozen_backward =
            |layer, dx: Option<_>| dx.map_or(Ok(()), |dx| backend.linear_backward(dy, layer, dx));
        let Some(adapter) = &mut self.adapter else { return frozen_backward(&self.frozen, dx) };
        let x = x.ok_or_else(no_memory)?;
        if let (Form::Folded, Some(folded)) = (pass.form, &self.folded) {
            frozen_backward(folded, dx)?;
            return match saved.dy {
                Some(_) => Ok(()),
                None => backend.lora_gradients(&mut [adapter.gradients(x, dy)]),
            };
        }
        let AdapterScratch { seen, du } = &mut *pass.scratch;
        let (u, du) = (saved.u.as_ref().ok_or_else(no_memory)?, du.as_mut().ok_or_else(no_memory)?);
        du.set_shape(u.shape())?;
        // The mask is made again, which costs less than keeping what came through it.
        let dropout = pass.form.dropout(self.slot);
        let x = match dropout {
            Some(dropout) => dropped(backend, x, dropout, seen)?,
            None => x,
        };
        let LoraGradients { lora, da, db, .. } = adapter.gradients(x, dy);
        let layer = &self.frozen;
        backend.lora_linear_backward(LoraLinearBackward { dy, x, dropout, u, layer, lora, du, da, db, dx })
    }

    /// The adapter, if its gradients are still to be computed from what `saved` keeps, with its input `x`.
    pub fn gradients<'a>(
        &'a mut self,
        x: &'a B::Tensor,
        saved: &'a Saved<B>,
    ) -> Option<LoraGradients<'a, B>> {
        let (adapter, dy) = (self.adapter.as_mut()?, saved.dy.as_ref()?);
        Some(adapter.gradients(x, dy))
    }

    /// Memory for a copy of the layer with the adapter folded in; none without an adapter.
    fn room_to_fold(&self, backend: &B) -> Result<Option<Linear<B>>> {
        let dtype = backend.compute_dtype();
        if self.adapter.is_none() || !folds(dtype) {
            return Ok(None);
        }
        let bias = match &self.frozen.bias {
            Some(bias) => Some(backend.upload(backend.download(bias)?.view(), dtype)?),
            None => None,
        };
        let room = Tensor::zeros(backend.weight_shape(&self.frozen.weight), dtype);
        Ok(Some(Linear { weight: backend.weight(room.view())?, bias }))
    }

    fn make_room_to_fold(&mut self, backend: &B) -> Result<()> {
        if self.folded.is_none() {
            self.folded = self.room_to_fold(backend)?;
        }
        Ok(())
    }

    fn fold(&mut self) -> Option<LoraFold<'_, B>> {
        let (adapter, folded) = (self.adapter.as_ref()?, self.folded.as_mut()?);
        Some(LoraFold { weight: &self.frozen.weight, lora: adapter.as_lora(), folded: &mut folded.weight })
    }
}

/// `x` after dropout, in the memory of `seen`.
fn dropped<'a, B: Backend>(
    backend: &B,
    x: &B::Tensor,
    dropout: Dropout<'_, B>,
    seen: &'a mut Option<B::Tensor>,
) -> Result<&'a B::Tensor> {
    let seen = seen.as_mut().ok_or_else(no_memory)?;
    seen.set_shape(x.shape())?;
    backend.dropout(x, dropout, seen)?;
    Ok(seen)
}

/// Memory must have been made for the adapters, and for the pass, that it is used for.
pub(crate) fn no_memory() -> BackendError {
    let problem = "the memory was made for other adapters or another pass".into();
    BackendError::Invalid { op: "block", problem }
}

/// Whether adapters are folded into weights of this type.
///
/// A fold rounds to the grid of the weight, which takes every update below half a step of it away. bf16 keeps 8
/// bits of a number, and an adapter of few steps is lost in that; there the adapters stay beside the weights as in
/// training, which costs the low-rank products. The grid of f16 is eight times finer, and folding pays.
fn folds(dtype: DType) -> bool {
    dtype != DType::BF16
}

/// One thing for each linear layer of a block.
pub struct PerLayer<T> {
    /// Queries of chosen rows \[D, D\], where they are computed apart.
    pub queries: Option<T>,
    /// Queries, keys and values as one product \[3·D, D\]; keys and values alone, \[2·D, D\], where the queries are
    /// apart.
    pub projections: T,
    /// The projection behind attention \[D, D\].
    pub out: T,
    /// The MLP's first layer.
    pub fc1: T,
    /// The MLP's second layer.
    pub fc2: T,
}

impl<T> PerLayer<T> {
    /// What `make` makes for each layer; `split` says whether queries are apart.
    pub fn new(split: bool, mut make: impl FnMut(Slot) -> Result<T>) -> Result<Self> {
        Ok(PerLayer {
            queries: split.then(|| make(Slot::Queries)).transpose()?,
            projections: make(Slot::Projections)?,
            out: make(Slot::Output)?,
            fc1: make(Slot::Expand)?,
            fc2: make(Slot::Contract)?,
        })
    }

    /// What belongs to the layer that computes what is at `slot`.
    pub fn of(&self, slot: Slot) -> &T {
        match slot {
            Slot::Queries => self.queries.as_ref().unwrap_or(&self.projections),
            Slot::Projections => &self.projections,
            Slot::Output => &self.out,
            Slot::Expand => &self.fc1,
            Slot::Contract => &self.fc2,
        }
    }

    /// All layers in the order of the block's computation.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        let queries = self.queries.iter().map(|_| Slot::Queries);
        let slots = queries.chain([Slot::Projections, Slot::Output, Slot::Expand, Slot::Contract]);
        slots.map(|slot| (slot, self.of(slot)))
    }

    /// The same for writing.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut T)> {
        let PerLayer { queries, projections, out, fc1, fc2 } = self;
        let others = [
            (Slot::Projections, projections),
            (Slot::Output, out),
            (Slot::Expand, fc1),
            (Slot::Contract, fc2),
        ];
        queries.iter_mut().map(|queries| (Slot::Queries, queries)).chain(others)
    }

    /// What `make` makes of each layer.
    pub fn map<U>(&self, mut make: impl FnMut(Slot, &T) -> Result<U>) -> Result<PerLayer<U>> {
        PerLayer::new(self.queries.is_some(), |slot| make(slot, self.of(slot)))
    }
}

/// The linear layers of one block, with their adapters.
pub type BlockLayers<B> = PerLayer<AdaptedLinear<B>>;

/// Where a block stands, and how large its layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPlace {
    pub tower: Tower,
    pub layer: usize,
    pub width: usize,
    pub mlp: usize,
}

impl<B: Backend> BlockLayers<B> {
    /// The same frozen layers without adapters.
    pub(crate) fn plain(&self) -> Result<Self> {
        self.map(|_, layer| Ok(layer.with(None)))
    }

    /// The same frozen layers, those of the block at `place`, with the adapters that `spec` names.
    pub(crate) fn adapted(
        &self,
        backend: &B,
        spec: &LoraSpec,
        place: BlockPlace,
        init: &mut dyn LoraInit,
    ) -> Result<Self> {
        let BlockPlace { tower, layer, width, mlp } = place;
        self.map(|slot, frozen| {
            let members = match slot {
                Slot::Queries => &[Target::Query][..],
                Slot::Projections if self.queries.is_some() => &[Target::Key, Target::Value],
                Slot::Projections => &[Target::Query, Target::Key, Target::Value],
                Slot::Output => &[Target::Output],
                Slot::Expand => &[Target::Expand],
                Slot::Contract => &[Target::Contract],
            };
            let sites: Vec<Site> = members.iter().map(|&target| Site { tower, layer, target }).collect();
            let sizes = members[0].sizes(width, mlp);
            Ok(frozen.with(LoraLayer::new(backend, spec, &sites, sizes, init)?))
        })
    }

    /// Whether a layer in front of attention has an adapter.
    pub(crate) fn adapts_projections(&self) -> bool {
        [self.queries.as_ref(), Some(&self.projections)].into_iter().flatten().any(|l| l.adapter.is_some())
    }

    /// The adapters that there are, in the order of the block's computation.
    pub fn adapters(&self) -> impl Iterator<Item = &LoraLayer<B>> {
        self.iter().filter_map(|(_, layer)| layer.adapter.as_ref())
    }

    /// The adapters of [`BlockLayers::adapters`], for writing, in the same order.
    pub fn adapters_mut(&mut self) -> impl Iterator<Item = &mut LoraLayer<B>> {
        self.iter_mut().filter_map(|(_, layer)| layer.adapter.as_mut())
    }

    /// Memory for copies of all adapted layers of a tower with the adapters folded in; none where they stay beside the
    /// weights.
    pub(crate) fn room_to_fold(backend: &B, blocks: &[Self]) -> Result<Vec<PerLayer<Option<Linear<B>>>>> {
        blocks.iter().map(|block| block.map(|_, layer| layer.room_to_fold(backend))).collect()
    }

    /// Gives all adapted layers of a tower that memory, if they have none yet.
    pub(crate) fn make_room_to_fold(backend: &B, blocks: &mut [Self]) -> Result<()> {
        let mut layers = blocks.iter_mut().flat_map(|block| block.iter_mut());
        layers.try_for_each(|(_, layer)| layer.make_room_to_fold(backend))
    }

    /// Folds the adapters of a tower as they are now into copies of the weights, which evaluation takes. In bf16 they
    /// stay beside the weights.
    pub fn fold(backend: &B, blocks: &mut [Self]) -> Result<()> {
        Self::make_room_to_fold(backend, blocks)?;
        let layers = blocks.iter_mut().flat_map(|block| block.iter_mut());
        let mut layers: Vec<_> = layers.filter_map(|(_, layer)| layer.fold()).collect();
        if layers.is_empty() {
            return Ok(());
        }
        backend.lora_fold(&mut layers)
    }
}
