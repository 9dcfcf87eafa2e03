//! Memory of blocks: what each keeps of a forward pass, and what all of one kind share.

use super::Rows;
use crate::backend::{AttentionInput, Backend, DeviceTensor, Kept, LoraGradients, Result};
use crate::tune::BlockLayers;
use crate::tune::adapted::{AdaptedLinear, AdapterScratch, PerLayer, Saved};
use crate::tune::dropout::Slot;

/// The sizes from which activations and scratch memory are made.
#[derive(Debug, Clone, Copy)]
pub struct BlockSizes {
    /// Sequences B: images, or prompts of the text tower.
    pub batch: usize,
    /// Tokens S of each sequence in front of the block, visual prompts included.
    pub tokens: usize,
    pub width: usize,
    pub mlp: usize,
    pub heads: usize,
    /// The rows that the block computes: S of them for a sequence, or one.
    pub rows: Rows,
}

impl BlockSizes {
    fn queries(&self) -> usize {
        if self.rows == Rows::One { 1 } else { self.tokens }
    }

    /// Rows of each sequence that the layer at `slot` is applied to.
    pub fn rows_of(&self, slot: Slot) -> usize {
        if slot == Slot::Projections { self.tokens } else { self.queries() }
    }

    /// Columns of queries, keys and values that are one product: all three, or the latter two.
    fn projected(&self) -> usize {
        if self.rows == Rows::One { 2 * self.width } else { 3 * self.width }
    }
}

/// Activations of a block's forward pass, which the backward pass reads. Leading dimension: sequences.
pub struct BlockActivations<B: Backend> {
    /// The block's input \[B, S, D\].
    pub input: B::Tensor,
    /// LN₁ of the input, and the statistics of its rows.
    pub(super) normed: B::Tensor,
    pub(super) stats1: B::Tensor,
    /// What queries are computed from where they are computed apart, and they.
    pub(super) chosen: Option<ChosenRows<B>>,
    /// Queries, keys and values, or keys and values alone.
    pub(super) projected: B::Tensor,
    /// Tensor that attention keeps for its backward pass, see [`Backend::attention_saved`].
    pub(super) attention: B::Tensor,
    pub(super) attended: B::Tensor,
    /// Tokens between attention and MLP.
    pub(super) middle: B::Tensor,
    pub(super) stats2: B::Tensor,
    /// LN₂ of `middle`, where fc1 has an adapter.
    pub(super) normed2: Option<B::Tensor>,
    /// Hidden layer of the MLP in front of the activation function, and whether it is without the bias.
    pub(super) hidden: B::Tensor,
    pub(super) kept: Kept,
    /// What each linear layer keeps for its adapter.
    pub(super) saved: PerLayer<Saved<B>>,
    /// The gradient kept for the layer behind attention has changed places with what carries the gradient from block to
    /// block.
    exchanged: bool,
}

/// The chosen row of each sequence.
pub(super) struct ChosenRows<B: Backend> {
    /// That of the block's input, and of LN₁ of it.
    pub input: B::Tensor,
    pub normed: B::Tensor,
    pub q: B::Tensor,
}

/// What attention reads.
pub(super) fn attention_input<'a, B: Backend>(
    chosen: &'a Option<ChosenRows<B>>,
    projected: &'a B::Tensor,
) -> AttentionInput<'a, B> {
    match chosen {
        Some(ChosenRows { q, .. }) => AttentionInput::Split { q, kv: projected },
        None => AttentionInput::Packed(projected),
    }
}

impl<B: Backend> BlockActivations<B> {
    /// Memory for one block; with room for x·Aᵀ where `layers` have adapters that are not folded into the weights, and
    /// for the gradients of sequences of up to as many tokens as `folded` says where they are.
    pub fn new(
        backend: &B,
        s: BlockSizes,
        layers: Option<&BlockLayers<B>>,
        folded: Option<usize>,
    ) -> Result<Self> {
        let (n, keys, queries, d) = (s.batch, s.tokens, s.queries(), s.width);
        let make = |dims: [usize; 3]| backend.empty(dims, backend.compute_dtype());
        let stats = |rows| backend.empty([n, rows, 2], backend.parameter_dtype());
        let adapter = |slot| layers.and_then(|layers| layers.of(slot).adapter());
        let split = s.rows == Rows::One;
        let saved = PerLayer::new(split, |slot| {
            let (mut saved, rows) = (Saved { u: None, dy: None }, s.rows_of(slot));
            match folded {
                None => saved.u = adapter(slot).map(|a| make([n, rows, a.width()])).transpose()?,
                Some(longest) => {
                    saved.dy = match slot {
                        Slot::Queries => Some(make([n, rows, d])?),
                        Slot::Projections => Some(make([n, rows, s.projected()])?),
                        // It changes places with a tensor for sequences of any length.
                        Slot::Output => Some(make([n, if split { 1 } else { longest }, d])?),
                        Slot::Expand | Slot::Contract => None,
                    }
                }
            }
            Ok(saved)
        })?;
        let chosen = || -> Result<_> {
            Ok(ChosenRows { input: make([n, 1, d])?, normed: make([n, 1, d])?, q: make([n, 1, d])? })
        };
        let attention = backend.attention_saved(n, s.heads, queries, keys);
        Ok(BlockActivations {
            input: make([n, keys, d])?,
            normed: make([n, keys, d])?,
            stats1: stats(keys)?,
            chosen: split.then(chosen).transpose()?,
            projected: make([n, keys, s.projected()])?,
            attention: backend.empty(attention, backend.parameter_dtype())?,
            attended: make([n, queries, d])?,
            middle: make([n, queries, d])?,
            stats2: stats(queries)?,
            normed2: adapter(Slot::Expand).map(|_| make([n, queries, d])).transpose()?,
            hidden: make([n, queries, s.mlp])?,
            kept: Kept::Sum,
            saved,
            exchanged: false,
        })
    }

    /// Keeps what `d` holds, where the gradient of the layer behind attention is kept; the gradient goes on in the
    /// other's memory.
    pub(super) fn exchange(&mut self, d: &mut B::Tensor) {
        if let Some(kept) = &mut self.saved.out.dy {
            std::mem::swap(d, kept);
            self.exchanged = !self.exchanged;
        }
    }

    /// Undoes what [`super::Block::backward`] exchanged with `d`, so that the next step finds every tensor in its
    /// place.
    pub fn put_back(&mut self, d: &mut B::Tensor) {
        if self.exchanged {
            self.exchange(d);
        }
    }

    /// Adds to `gradients` the adapters in `layers` whose gradients [`super::Block::backward`] left to the end of the
    /// step.
    pub fn gradients<'a>(
        &'a self,
        layers: &'a mut BlockLayers<B>,
        gradients: &mut Vec<LoraGradients<'a, B>>,
    ) {
        let mut add = |layer: &'a mut AdaptedLinear<B>, x: &'a B::Tensor, saved: &'a Saved<B>| {
            gradients.extend(layer.gradients(x, saved));
        };
        if let (Some(layer), Some(chosen), Some(saved)) =
            (&mut layers.queries, &self.chosen, &self.saved.queries)
        {
            add(layer, &chosen.normed, saved);
        }
        add(&mut layers.projections, &self.normed, &self.saved.projections);
        add(&mut layers.out, &self.attended, &self.saved.out);
    }

    /// The tensors that keep gradients for the end of the step.
    #[cfg(test)]
    pub fn kept(&self) -> impl Iterator<Item = &B::Tensor> {
        self.saved.iter().filter_map(|(_, saved)| saved.dy.as_ref())
    }

    /// Sets the numbers of images and tokens, up to those that the memory was made for.
    pub fn set_extent(&mut self, backend: &B, s: BlockSizes) -> Result<()> {
        let (n, keys, queries) = (s.batch, s.tokens, s.queries());
        let all = [&mut self.input, &mut self.normed, &mut self.stats1, &mut self.projected];
        all.into_iter().try_for_each(|tensor| set_tokens(tensor, n, keys))?;
        let chosen = self.chosen.iter_mut().flat_map(|c| [&mut c.input, &mut c.normed, &mut c.q]);
        let behind = [&mut self.attended, &mut self.middle, &mut self.stats2, &mut self.hidden];
        let behind = behind.into_iter().chain(&mut self.normed2).chain(chosen);
        behind.into_iter().try_for_each(|tensor| set_tokens(tensor, n, queries))?;
        self.attention.set_shape(backend.attention_saved(n, s.heads, queries, keys))?;
        self.saved.iter_mut().try_for_each(|(slot, saved)| {
            saved.tensors_mut().try_for_each(|tensor| set_tokens(tensor, n, s.rows_of(slot)))
        })
    }
}

/// Makes `tensor` \[batch, tokens, …\] of what was \[B, S, …\].
fn set_tokens<T: DeviceTensor>(tensor: &mut T, batch: usize, tokens: usize) -> Result<()> {
    tensor.set_shape([batch, tokens, tensor.shape().columns()].into())
}

/// Memory that blocks of one kind share.
pub struct Scratch<B: Backend> {
    pub(super) narrow: B::Tensor,
    pub(super) wide: B::Tensor,
    /// Hidden layer of the MLP behind the activation function, for the gradients of an adapter of fc2.
    pub(super) activated: Option<B::Tensor>,
    pub(super) adapters: AdapterScratch<B>,
    /// None where no backward pass will run.
    pub(super) attention: Option<AttentionScratch<B>>,
}

/// Scratch memory of attention's backward pass.
pub(super) struct AttentionScratch<B: Backend> {
    pub d_attended: B::Tensor,
    pub d_scores: B::Tensor,
    /// Gradients of what attention reads; none where every block keeps its own, see [`Saved::dy`].
    pub d_queries: Option<B::Tensor>,
    pub d_projections: Option<B::Tensor>,
    /// Gradient of LN₁ of all rows, where queries are computed apart.
    pub d_normed: Option<B::Tensor>,
}

impl<B: Backend> Scratch<B> {
    /// Memory shared by all blocks of these sizes. `blocks` are those with adapters that will be trained, `dropout`
    /// says whether there is any in front of them, and `folded` whether they are folded into the weights; with none,
    /// and `backward` false, only a forward pass is possible.
    pub fn new(
        backend: &B,
        s: BlockSizes,
        blocks: &[&BlockLayers<B>],
        dropout: bool,
        folded: bool,
        backward: bool,
    ) -> Result<Self> {
        let (n, keys, queries, d) = (s.batch, s.tokens, s.queries(), s.width);
        let make = |dims: [usize; 3]| backend.empty(dims, backend.compute_dtype());
        let one = |wanted: bool, dims| wanted.then(|| make(dims)).transpose();
        let layers = blocks.iter().flat_map(|block| block.iter());
        let du = layers.filter_map(|(slot, layer)| Some(s.rows_of(slot) * layer.adapter()?.width()));
        let du = du.max().filter(|_| backward && !folded);
        let (split, scores) = (s.rows == Rows::One, backend.attention_saved(n, s.heads, queries, keys));
        let attention = || -> Result<_> {
            Ok(AttentionScratch {
                d_attended: make([n, queries, d])?,
                d_scores: backend.empty(scores, backend.parameter_dtype())?,
                d_queries: one(split && !folded, [n, 1, d])?,
                d_projections: one(!folded, [n, keys, s.projected()])?,
                d_normed: one(split, [n, keys, d])?,
            })
        };
        Ok(Scratch {
            narrow: make([n, queries, d])?,
            wide: make([n, queries, s.mlp])?,
            activated: {
                let adapted = blocks.iter().any(|block| block.fc2.adapter().is_some());
                one(backward && adapted, [n, queries, s.mlp])?
            },
            adapters: AdapterScratch {
                seen: one(backward && dropout, [n, 1, (keys * d).max(queries * s.mlp)])?,
                du: du.map(|elements| make([n, 1, elements])).transpose()?,
            },
            attention: backward.then(attention).transpose()?,
        })
    }

    /// Sets the numbers of images and tokens, up to those that the memory was made for.
    pub fn set_extent(&mut self, backend: &B, s: BlockSizes) -> Result<()> {
        let (n, keys, queries) = (s.batch, s.tokens, s.queries());
        let narrow = [&mut self.narrow, &mut self.wide].into_iter().chain(&mut self.activated);
        narrow.into_iter().try_for_each(|tensor| set_tokens(tensor, n, queries))?;
        let Some(g) = &mut self.attention else { return Ok(()) };
        g.d_scores.set_shape(backend.attention_saved(n, s.heads, queries, keys))?;
        [&mut g.d_attended]
            .into_iter()
            .chain(&mut g.d_queries)
            .try_for_each(|t| set_tokens(t, n, queries))?;
        g.d_projections.iter_mut().chain(&mut g.d_normed).try_for_each(|t| set_tokens(t, n, keys))
    }
}
