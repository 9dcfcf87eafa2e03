//! One transformer block, forward and backward side by side.
//!
//! x ← x + Attention(LN₁ x), then x ← x + MLP(LN₂ x). The last vision block is asked for the class token
//! only: its queries, output projection and MLP run on that one row, keys and values on all.

mod memory;

pub use memory::{BlockActivations, BlockSizes, Scratch};

use super::ClipError;
use super::config::TowerConfig;
use super::end::{End, EndGradients, Ends};
use super::weight_source::Loader;
use crate::backend::{
    Activation, AddTo, AttentionBackward, AttentionGradient, AttentionShape, Backend, ClassTail,
    ClassTailBackward, Kept, LayerNorm, LoraSite, Result, TailLayers, copyable,
};
use crate::tune::adapted::{AdaptedLinear, AdapterPass, BlockPlace, Form, PerLayer, no_memory};
use crate::tune::dropout::Slot;
use crate::tune::{BlockLayers, LoraInit, LoraSpec, Tower};
use memory::attention_input;

/// The frozen weights of one block.
pub struct Block<B: Backend> {
    norm1: LayerNorm<B>,
    norm2: LayerNorm<B>,
    /// The linear layers without adapters.
    layers: BlockLayers<B>,
    shape: AttentionShape,
    activation: Activation,
}

/// Which rows of its output a block is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Every row: as many as the input has.
    All,
    /// One row of each sequence.
    One,
}

/// What a pass has for a block beside its linear layers.
pub struct Pass<'a, B: Backend> {
    /// How the adapters are taken.
    pub form: Form<'a, B>,
    /// u32 \[B\]: for each sequence the row that the block computes, where it is one.
    pub rows: &'a B::Tensor,
}

copyable!(Backend: Pass);

/// Memory of a block in a pass.
pub struct BlockMemory<'a, B: Backend> {
    /// The block's own. `own.input` is what the block is applied to.
    pub own: &'a mut BlockActivations<B>,
    /// Shared with other blocks.
    pub scratch: &'a mut Scratch<B>,
}

/// The gradient on its way back through a block.
pub struct Gradient<'a, B: Backend> {
    /// That of the output, which is used up; where the block computes every row, that of the input takes its place.
    pub d: &'a mut B::Tensor,
    /// Where that of the input goes from a block that computes one row of each sequence.
    pub d_input: Option<&'a mut B::Tensor>,
    /// Whether that of the input is wanted.
    pub wanted: bool,
}

/// Layers with adapters for all `blocks` of a tower, starting where `init` says; none where `spec` leaves the tower as
/// it is.
pub(super) fn adapted<B: Backend>(
    backend: &B,
    blocks: &[Block<B>],
    (tower, config): (Tower, &TowerConfig),
    spec: &LoraSpec,
    init: &mut dyn LoraInit,
) -> Result<Vec<BlockLayers<B>>> {
    if !spec.towers.contains(&tower) {
        return Ok(Vec::new());
    }
    let adapted = |(layer, block): (usize, &Block<B>)| {
        let place = BlockPlace { tower, layer, width: config.width, mlp: config.mlp };
        block.layers.adapted(backend, spec, place, init)
    };
    blocks.iter().enumerate().map(adapted).collect()
}

impl<B: Backend> Block<B> {
    /// Loads the block whose tensors begin with `prefix`.
    pub(super) fn load(
        loader: &Loader<'_, B>,
        prefix: &str,
        tower: &TowerConfig,
        causal: bool,
        rows: Rows,
    ) -> Result<Self, ClipError> {
        let (d, m) = (tower.width, tower.mlp);
        let name = |part: &str| format!("{prefix}.{part}");
        let (q, k, v) = (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let (queries, projections) = match rows {
            Rows::All => (None, loader.stacked(&[&q, &k, &v], d, d)?),
            Rows::One => (Some(loader.linear(&q, d, d)?), loader.stacked(&[&k, &v], d, d)?),
        };
        let layers = PerLayer {
            queries: queries.map(|queries| AdaptedLinear::plain(Slot::Queries, queries)),
            projections: AdaptedLinear::plain(Slot::Projections, projections),
            out: AdaptedLinear::plain(Slot::Output, loader.linear(&name("self_attn.out_proj"), d, d)?),
            fc1: AdaptedLinear::plain(Slot::Expand, loader.linear(&name("mlp.fc1"), m, d)?),
            fc2: AdaptedLinear::plain(Slot::Contract, loader.linear(&name("mlp.fc2"), d, m)?),
        };
        Ok(Block {
            norm1: loader.layer_norm(&name("layer_norm1"), d, tower.norm_eps)?,
            norm2: loader.layer_norm(&name("layer_norm2"), d, tower.norm_eps)?,
            layers,
            shape: AttentionShape { heads: tower.heads, causal },
            activation: tower.activation,
        })
    }

    /// The rows of its output that this block computes.
    pub fn rows(&self) -> Rows {
        if self.layers.queries.is_some() { Rows::One } else { Rows::All }
    }

    /// output = block(input), with `layers` in the place of the frozen ones where they are given; keeps what the
    /// backward pass needs.
    pub fn forward(
        &self,
        backend: &B,
        layers: Option<&BlockLayers<B>>,
        pass: Pass<'_, B>,
        memory: BlockMemory<'_, B>,
        output: &mut B::Tensor,
    ) -> Result<()> {
        let (layers, BlockMemory { own: a, scratch }) = (layers.unwrap_or(&self.layers), memory);
        let adapters = &mut AdapterPass { form: pass.form, scratch: &mut scratch.adapters };
        backend.layer_norm(&a.input, &self.norm1, &mut a.normed, &mut a.stats1)?;
        if let (Some(layer), Some(chosen), Some(saved)) =
            (&layers.queries, &mut a.chosen, &mut a.saved.queries)
        {
            backend.take_rows(&a.input, pass.rows, &mut chosen.input)?;
            backend.take_rows(&a.normed, pass.rows, &mut chosen.normed)?;
            layer.forward(backend, adapters, &chosen.normed, None, saved, &mut chosen.q)?;
        }
        let saved = &mut a.saved;
        layers.projections.forward(
            backend,
            adapters,
            &a.normed,
            None,
            &mut saved.projections,
            &mut a.projected,
        )?;
        let input = attention_input(&a.chosen, &a.projected);
        backend.attention(input, self.shape, &mut a.attention, &mut a.attended)?;
        let residual = Some(a.chosen.as_ref().map_or(&a.input, |chosen| &chosen.input));
        layers.out.forward(backend, adapters, &a.attended, residual, &mut saved.out, &mut a.middle)?;
        // Only an adapter of fc1 has a use for its input later.
        let normed = a.normed2.as_mut().unwrap_or(&mut scratch.narrow);
        backend.layer_norm(&a.middle, &self.norm2, normed, &mut a.stats2)?;
        let hidden = (&mut a.hidden, &mut scratch.wide);
        let (kind, saved_fc1) = (self.activation, &mut saved.fc1);
        a.kept = layers.fc1.forward_activated(backend, adapters, normed, kind, saved_fc1, hidden)?;
        layers.fc2.forward(backend, adapters, &scratch.wide, Some(&a.middle), &mut saved.fc2, output)
    }

    /// [`Block::forward`] of a block that computes one row of each sequence, and `end` behind it: to the features.
    pub(super) fn forward_to_features(
        &self,
        backend: &B,
        layers: Option<&BlockLayers<B>>,
        pass: Pass<'_, B>,
        memory: BlockMemory<'_, B>,
        (end, ends): (&End<B>, &mut Ends<B>),
    ) -> Result<()> {
        let taken = layers.unwrap_or(&self.layers);
        let (Some(tail), true) = (self.tail(taken, pass.form, end), memory.own.chosen.is_some()) else {
            self.forward(backend, layers, pass, memory, &mut ends.last)?;
            return end.forward(backend, ends);
        };
        let BlockMemory { own: a, scratch } = memory;
        let adapters = &mut AdapterPass { form: pass.form, scratch: &mut scratch.adapters };
        backend.layer_norm(&a.input, &self.norm1, &mut a.normed, &mut a.stats1)?;
        let saved = &mut a.saved.projections;
        taken.projections.forward(backend, adapters, &a.normed, None, saved, &mut a.projected)?;
        let chosen = a.chosen.as_mut().ok_or_else(no_memory)?;
        a.kept = Kept::Sum;
        backend.class_tail(ClassTail {
            layers: tail,
            input: &a.input,
            normed: &a.normed,
            rows: pass.rows,
            kv: &a.projected,
            chosen: &mut chosen.input,
            chosen_normed: &mut chosen.normed,
            q: &mut chosen.q,
            saved: &mut a.attention,
            attended: &mut a.attended,
            middle: &mut a.middle,
            middle_normed: a.normed2.as_mut().unwrap_or(&mut scratch.narrow),
            stats: &mut a.stats2,
            hidden: &mut a.hidden,
            activated: &mut scratch.wide,
            last: &mut ends.last,
            last_normed: &mut ends.normed,
            last_stats: &mut ends.stats,
            projected: &mut ends.projected,
            norms: &mut ends.norms,
            features: &mut ends.features,
        })
    }

    /// What stands behind the keys and values of a block that computes one row of each sequence, and `end`; none where
    /// an adapter is beside one of the layers.
    fn tail<'a>(
        &'a self,
        layers: &'a BlockLayers<B>,
        form: Form<'_, B>,
        end: &'a End<B>,
    ) -> Option<TailLayers<'a, B>> {
        Some(TailLayers {
            q: layers.queries.as_ref()?.alone(form)?,
            out: layers.out.alone(form)?,
            norm: &self.norm2,
            fc1: layers.fc1.alone(form)?,
            fc2: layers.fc2.alone(form)?,
            end_norm: &end.norm,
            projection: &end.projection,
            shape: self.shape,
            activation: self.activation,
        })
    }

    /// Walks back from the gradient of the features, in `d_ends`, through `end` and a block that computes one row of
    /// each sequence, as [`Block::backward`] does; the gradient of the block's input goes to `d_input`.
    pub(super) fn backward_from_features(
        &self,
        backend: &B,
        layers: Option<&mut BlockLayers<B>>,
        pass: Pass<'_, B>,
        mut memory: BlockMemory<'_, B>,
        (end, ends, d_ends): (&End<B>, &Ends<B>, &mut EndGradients<B>),
        (d_input, wanted): (&mut B::Tensor, bool),
    ) -> Result<()> {
        let mut plain;
        let layers = match layers {
            Some(layers) => layers,
            None => {
                plain = self.layers.plain()?;
                &mut plain
            }
        };
        // The gradients of adapters of the MLP are computed on the way.
        let adapted_mlp = layers.fc1.adapter().is_some() || layers.fc2.adapter().is_some();
        let into_attention = wanted || layers.adapts_projections();
        let tail = self.tail(layers, pass.form, end).filter(|_| into_attention && !adapted_mlp);
        let Some(tail) = tail else {
            end.backward(backend, ends, d_ends)?;
            let gradient = Gradient { d: &mut d_ends.last, d_input: Some(d_input), wanted };
            return self.backward(backend, Some(layers), pass, memory, gradient);
        };
        let BlockMemory { own: a, scratch } = &mut memory;
        let g = scratch.attention.as_mut().ok_or_else(no_memory)?;
        let chosen = a.chosen.as_ref().ok_or_else(no_memory)?;
        let queries = a.saved.queries.as_mut().ok_or_else(no_memory)?;
        let dkv = a.saved.projections.dy.as_mut().or(g.d_projections.as_mut()).ok_or_else(no_memory)?;
        backend.class_tail_backward(ClassTailBackward {
            layers: tail,
            q: &chosen.q,
            kv: &a.projected,
            saved: &a.attention,
            attended: &a.attended,
            middle: &a.middle,
            stats: &a.stats2,
            hidden: &a.hidden,
            last: &ends.last,
            last_stats: &ends.stats,
            norms: &ends.norms,
            features: &ends.features,
            d_features: &d_ends.features,
            d_projected: &mut d_ends.projected,
            d_last_normed: &mut d_ends.normed,
            d_middle: &mut d_ends.last,
            d_hidden: &mut scratch.wide,
            d_chosen: &mut scratch.narrow,
            d_attended: &mut g.d_attended,
            d_scores: &mut g.d_scores,
            dq: queries.dy.as_mut().or(g.d_queries.as_mut()).ok_or_else(no_memory)?,
            dkv,
            wanted,
        })?;
        let mut gradient = Gradient { d: &mut d_ends.last, d_input: Some(d_input), wanted };
        self.input_backward(backend, layers, pass, &mut memory, &mut gradient)?;
        memory.own.exchange(gradient.d);
        Ok(())
    }

    /// Walks back through the block, after [`Block::forward`] with the same layers and form. What no adapter of this
    /// block and no earlier one needs is not computed. Where the adapters are folded, what the gradients of those around
    /// attention need is kept for [`BlockActivations::gradients`].
    pub fn backward(
        &self,
        backend: &B,
        layers: Option<&mut BlockLayers<B>>,
        pass: Pass<'_, B>,
        mut memory: BlockMemory<'_, B>,
        mut gradient: Gradient<'_, B>,
    ) -> Result<()> {
        let mut plain;
        let layers = match layers {
            Some(layers) => layers,
            None => {
                plain = self.layers.plain()?;
                &mut plain
            }
        };
        let into_attention = gradient.wanted || layers.adapts_projections();
        let into_out = into_attention || layers.out.adapter().is_some();
        self.mlp_backward(backend, layers, pass.form, &mut memory, gradient.d, into_out)?;
        if !into_out {
            return Ok(());
        }
        let BlockMemory { own: a, scratch } = &mut memory;
        let adapters = &mut AdapterPass { form: pass.form, scratch: &mut scratch.adapters };
        let attention = scratch.attention.as_mut().ok_or_else(no_memory)?;
        let d_attended = into_attention.then_some(&mut attention.d_attended);
        layers.out.backward(backend, adapters, gradient.d, Some(&a.attended), &a.saved.out, d_attended)?;
        if into_attention {
            self.attention_backward(backend, layers, pass, &mut memory, &mut gradient)?;
        }
        memory.own.exchange(gradient.d);
        Ok(())
    }

    /// The MLP's part of [`Block::backward`]: down to its residual connection where that is `wanted`.
    fn mlp_backward(
        &self,
        backend: &B,
        BlockLayers { fc1, fc2, .. }: &mut BlockLayers<B>,
        form: Form<'_, B>,
        BlockMemory { own: a, scratch }: &mut BlockMemory<'_, B>,
        d: &mut B::Tensor,
        wanted: bool,
    ) -> Result<()> {
        let adapters = &mut AdapterPass { form, scratch: &mut scratch.adapters };
        let into_hidden = wanted || fc1.adapter().is_some();
        let (kind, bias) = (self.activation, a.kept.bias(fc1.frozen()));
        if fc2.adapter().is_some() {
            let activated = scratch.activated.as_mut().ok_or_else(no_memory)?;
            backend.activation(kind, &a.hidden, bias, activated)?;
            let d_hidden = into_hidden.then_some(&mut scratch.wide);
            fc2.backward(backend, adapters, d, Some(activated), &a.saved.fc2, d_hidden)?;
            if into_hidden {
                backend.activation_backward(kind, &a.hidden, bias, &mut scratch.wide)?;
            }
        } else if into_hidden {
            let dz = &mut scratch.wide;
            backend.linear_activation_backward(d, fc2.frozen(), kind, &a.hidden, bias, dz)?;
        }
        if !into_hidden {
            return Ok(());
        }
        let (x, d_normed) = (a.normed2.as_ref(), wanted.then_some(&mut scratch.narrow));
        fc1.backward(backend, adapters, &scratch.wide, x, &a.saved.fc1, d_normed)?;
        if !wanted {
            return Ok(());
        }
        backend.layer_norm_backward(&scratch.narrow, &a.middle, &self.norm2, &a.stats2, AddTo::Output, d)
    }

    /// Attention's part of [`Block::backward`], from the gradient of its result to that of the block's input where
    /// that is wanted.
    fn attention_backward(
        &self,
        backend: &B,
        layers: &mut BlockLayers<B>,
        pass: Pass<'_, B>,
        memory: &mut BlockMemory<'_, B>,
        gradient: &mut Gradient<'_, B>,
    ) -> Result<()> {
        let (BlockMemory { own: a, scratch }, wanted) = (&mut *memory, gradient.wanted);
        let adapters = &mut AdapterPass { form: pass.form, scratch: &mut scratch.adapters };
        let g = scratch.attention.as_mut().ok_or_else(no_memory)?;
        let (input, saved) = (attention_input(&a.chosen, &a.projected), &mut a.saved);
        let dkv = saved.projections.dy.as_mut().or(g.d_projections.as_mut()).ok_or_else(no_memory)?;
        let to = match &mut saved.queries {
            None => AttentionGradient::Packed(dkv),
            Some(saved) => {
                let dq = saved.dy.as_mut().or(g.d_queries.as_mut()).ok_or_else(no_memory)?;
                AttentionGradient::Split { dq, dkv }
            }
        };
        backend.attention_backward(AttentionBackward {
            d_o: &g.d_attended,
            o: &a.attended,
            input,
            shape: self.shape,
            saved: &a.attention,
            scratch: &mut g.d_scores,
            gradient: to,
        })?;
        if let (Some(layer), Some(chosen), Some(saved)) = (&mut layers.queries, &a.chosen, &saved.queries) {
            let dq = saved.dy.as_ref().or(g.d_queries.as_ref()).ok_or_else(no_memory)?;
            let dx = wanted.then_some(&mut scratch.narrow);
            layer.backward(backend, adapters, dq, Some(&chosen.normed), saved, dx)?;
        }
        self.input_backward(backend, layers, pass, memory, gradient)
    }

    /// The end of [`Block::backward`]: from the gradients of the projections, and where queries are apart of what these
    /// were computed from, to that of the block's input where that is wanted.
    fn input_backward(
        &self,
        backend: &B,
        layers: &mut BlockLayers<B>,
        pass: Pass<'_, B>,
        BlockMemory { own: a, scratch }: &mut BlockMemory<'_, B>,
        Gradient { d, d_input, wanted }: &mut Gradient<'_, B>,
    ) -> Result<()> {
        let adapters = &mut AdapterPass { form: pass.form, scratch: &mut scratch.adapters };
        let g = scratch.attention.as_mut().ok_or_else(no_memory)?;
        let saved = &a.saved;
        let dkv = saved.projections.dy.as_ref().or(g.d_projections.as_ref()).ok_or_else(no_memory)?;
        let dx = wanted.then_some(g.d_normed.as_mut().unwrap_or(&mut scratch.narrow));
        layers.projections.backward(backend, adapters, dkv, Some(&a.normed), &saved.projections, dx)?;
        if !*wanted {
            return Ok(());
        }
        let (norm, stats) = (&self.norm1, &a.stats1);
        match (d_input, &mut g.d_normed, &mut a.saved.out.dy) {
            (Some(d_input), Some(d_normed), _) => {
                backend.take_rows_backward(&scratch.narrow, pass.rows, d_normed)?;
                backend.layer_norm_backward(d_normed, &a.input, norm, stats, AddTo::Nothing, d_input)?;
                backend.take_rows_backward(d, pass.rows, d_input)
            }
            // What `d` holds is kept, and changes places with the gradient of the input.
            (_, _, Some(other)) => {
                backend.layer_norm_backward(&scratch.narrow, &a.input, norm, stats, AddTo::Tensor(d), other)
            }
            _ => backend.layer_norm_backward(&scratch.narrow, &a.input, norm, stats, AddTo::Output, d),
        }
    }

    /// Bytes that the block's weights will take besides, see [`Backend::weight_bytes_to_come`].
    pub fn bytes_to_come(&self, backend: &B) -> usize {
        self.layers.iter().map(|(_, layer)| backend.weight_bytes_to_come(&layer.frozen().weight)).sum()
    }
}

/// The layers of a block of these sizes that have adapters.
pub(super) fn sites<B: Backend>(
    layers: &BlockLayers<B>,
    sizes: BlockSizes,
) -> impl Iterator<Item = LoraSite<'_, B>> {
    layers.iter().filter_map(move |(slot, layer)| {
        let (rows, lora) = (sizes.batch * sizes.rows_of(slot), layer.adapter()?.as_lora());
        Some(LoraSite { rows, layer: layer.frozen(), lora })
    })
}
