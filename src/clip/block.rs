//! One transformer block, forward and backward side by side.
//!
//! x ← x + Attention(LN₁ x), then x ← x + MLP(LN₂ x). The last vision block is asked for the class token
//! only: its queries, output projection and MLP run on that one row, keys and values on all.

use super::ClipError;
use super::config::TowerConfig;
use super::weight_source::Loader;
use crate::backend::{
    Activation, AddTo, AttentionGradient, AttentionInput, AttentionShape, Backend, DeviceTensor, Dropout,
    LayerNorm, Linear, LoraFold, LoraGradients, LoraSite, Result, copyable,
};
use crate::tensor::{DType, Tensor};
use crate::tune::dropout::{BlockDropout, Slot};
use crate::tune::lora::{BlockPlace, LoraInit};
use crate::tune::{BlockLora, LoraLayer, LoraSpec, ProjectionLora, Tower};

/// The linear layers in front of attention.
pub enum Projections<B: Backend> {
    /// Queries, keys and values as one product, \[3·D, D\].
    Packed(Linear<B>),
    /// Queries for chosen rows only, \[D, D\]; keys and values for all, \[2·D, D\].
    Split { q: Linear<B>, kv: Linear<B> },
}

/// The frozen weights of one block.
pub struct Block<B: Backend> {
    norm1: LayerNorm<B>,
    projections: Projections<B>,
    out: Linear<B>,
    norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
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

/// The linear layers of a block that have adapters, with these folded in. Layers without an adapter are not copied.
pub struct FoldedBlock<B: Backend> {
    qkv: Option<Linear<B>>,
    q: Option<Linear<B>>,
    kv: Option<Linear<B>>,
    out: Option<Linear<B>>,
    fc1: Option<Linear<B>>,
    fc2: Option<Linear<B>>,
}

/// Whether evaluation folds adapters into weights of this type.
///
/// A fold rounds to the grid of the weight, which takes every update below half a step of it away. bf16 keeps 8
/// bits of a number, and an adapter of few steps is lost in that; there the adapters stay beside the weights as in
/// training, which costs the low-rank products. The grid of f16 is eight times finer, and folding pays.
fn folds(dtype: DType) -> bool {
    dtype != DType::BF16
}

/// The adapters of a tower in evaluation.
pub struct Evaluated<'a, B: Backend> {
    /// One entry for each block, or none.
    pub lora: &'a [BlockLora<B>],
    /// The adapters folded into copies of the weights; empty where they stay beside the weights.
    pub folded: &'a [FoldedBlock<B>],
}

copyable!(Backend: Evaluated);

impl<'a, B: Backend> Evaluated<'a, B> {
    /// The tower as it is.
    pub const NONE: Self = Evaluated { lora: &[], folded: &[] };

    /// The adapters of block `layer`.
    pub(super) fn of(self, layer: usize) -> Adapters<'a, B> {
        match (self.folded.get(layer), self.lora.get(layer)) {
            (Some(folded), _) => Adapters::Folded(folded),
            (None, Some(lora)) => Adapters::Lora(lora, None),
            (None, None) => Adapters::None,
        }
    }
}

/// Adapters for all `blocks` of a tower, starting where `init` says; none where `spec` leaves the tower as it is.
pub(super) fn adapters<B: Backend>(
    backend: &B,
    blocks: &[Block<B>],
    (tower, config): (Tower, &TowerConfig),
    spec: &LoraSpec,
    init: &mut dyn LoraInit,
) -> Result<Vec<BlockLora<B>>> {
    if !spec.towers.contains(&tower) {
        return Ok(Vec::new());
    }
    let places = blocks.iter().enumerate().map(|(layer, block)| {
        let split = block.rows() == Rows::One;
        BlockPlace { tower, layer, width: config.width, mlp: config.mlp, split }
    });
    places.map(|place| BlockLora::new(backend, spec, place, init)).collect()
}

/// Folds the adapters of all `blocks` into `folded`.
pub(super) fn fold<B: Backend>(
    backend: &B,
    blocks: &[Block<B>],
    lora: &[BlockLora<B>],
    folded: &mut [FoldedBlock<B>],
) -> Result<()> {
    let mut layers = Vec::new();
    for ((block, lora), folded) in blocks.iter().zip(lora).zip(folded) {
        block.folds(lora, folded, &mut layers)?;
    }
    if layers.is_empty() {
        return Ok(());
    }
    backend.lora_fold(&mut layers)
}

/// Memory for the adapted layers of `blocks` with `lora` folded in; none where the adapters stay beside the weights.
pub(super) fn folded<B: Backend>(
    backend: &B,
    blocks: &[Block<B>],
    lora: &[BlockLora<B>],
) -> Result<Vec<FoldedBlock<B>>> {
    if !folds(backend.compute_dtype()) {
        return Ok(Vec::new());
    }
    blocks.iter().zip(lora).map(|(block, lora)| block.folded(backend, lora)).collect()
}

/// The adapters of one block in a forward pass.
pub enum Adapters<'a, B: Backend> {
    None,
    /// Adapters as training has them, and dropout in front of them where there is any.
    Lora(&'a BlockLora<B>, Option<BlockDropout<'a, B>>),
    /// Adapters folded into copies of the weights.
    Folded(&'a FoldedBlock<B>),
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
        let projections = match rows {
            Rows::All => Projections::Packed(loader.stacked(&[&q, &k, &v], d, d)?),
            Rows::One => {
                Projections::Split { q: loader.linear(&q, d, d)?, kv: loader.stacked(&[&k, &v], d, d)? }
            }
        };
        Ok(Block {
            norm1: loader.layer_norm(&name("layer_norm1"), d, tower.norm_eps)?,
            projections,
            out: loader.linear(&name("self_attn.out_proj"), d, d)?,
            norm2: loader.layer_norm(&name("layer_norm2"), d, tower.norm_eps)?,
            fc1: loader.linear(&name("mlp.fc1"), m, d)?,
            fc2: loader.linear(&name("mlp.fc2"), d, m)?,
            shape: AttentionShape { heads: tower.heads, causal },
            activation: tower.activation,
        })
    }

    /// The rows of its output that this block computes.
    pub fn rows(&self) -> Rows {
        match self.projections {
            Projections::Packed(_) => Rows::All,
            Projections::Split { .. } => Rows::One,
        }
    }

    /// output = block(`a.input`); keeps in `a` what the backward pass needs.
    pub fn forward(
        &self,
        backend: &B,
        adapters: Adapters<'_, B>,
        rows: &B::Tensor,
        a: &mut BlockActivations<B>,
        scratch: &mut Scratch<B>,
        output: &mut B::Tensor,
    ) -> Result<()> {
        backend.layer_norm(&a.input, &self.norm1, &mut a.normed, &mut a.stats1)?;
        let (lora, folded, dropout) = match adapters {
            Adapters::None => (None, None, None),
            Adapters::Lora(lora, dropout) => (Some(lora), None, dropout),
            Adapters::Folded(folded) => (None, Some(folded), None),
        };
        let drop = |slot| dropout.map(|dropout| dropout.of(slot));
        let seen = &mut scratch.seen;
        match (&self.projections, &mut a.projected) {
            (Projections::Packed(layer), Projected::Packed { qkv, u }) => {
                let lora = lora.and_then(|l| match &l.projections {
                    ProjectionLora::Packed(qkv) => qkv.as_ref(),
                    ProjectionLora::Split { .. } => None,
                });
                let layer = folded.and_then(|f| f.qkv.as_ref()).unwrap_or(layer);
                let with = (lora, drop(Slot::Projections));
                apply(backend, layer, with, &a.normed, None, seen, u, qkv)?;
                backend.attention(AttentionInput::Packed(qkv), self.shape, &mut a.saved, &mut a.attended)?;
            }
            (Projections::Split { q: q_layer, kv: kv_layer }, Projected::Split(s)) => {
                let (lora_q, lora_kv) = match lora.map(|l| &l.projections) {
                    Some(ProjectionLora::Split { q, kv }) => (q.as_ref(), kv.as_ref()),
                    _ => (None, None),
                };
                let q_layer = folded.and_then(|f| f.q.as_ref()).unwrap_or(q_layer);
                let kv_layer = folded.and_then(|f| f.kv.as_ref()).unwrap_or(kv_layer);
                backend.take_rows(&a.input, rows, &mut s.input)?;
                backend.take_rows(&a.normed, rows, &mut s.normed)?;
                let with = (lora_q, drop(Slot::Queries));
                apply(backend, q_layer, with, &s.normed, None, seen, &mut s.u_q, &mut s.q)?;
                let with = (lora_kv, drop(Slot::Projections));
                apply(backend, kv_layer, with, &a.normed, None, seen, &mut s.u_kv, &mut s.kv)?;
                let input = AttentionInput::Split { q: &s.q, kv: &s.kv };
                backend.attention(input, self.shape, &mut a.saved, &mut a.attended)?;
            }
            _ => return Err(mismatch()),
        }
        let residual = match &a.projected {
            Projected::Packed { .. } => &a.input,
            Projected::Split(s) => &s.input,
        };
        let with = (lora.and_then(|l| l.out.as_ref()), drop(Slot::Output));
        let out = folded.and_then(|f| f.out.as_ref()).unwrap_or(&self.out);
        apply(backend, out, with, &a.attended, Some(residual), seen, &mut a.u_out, &mut a.middle)?;
        let with = (lora.and_then(|l| l.fc1.as_ref()), drop(Slot::Expand));
        let fc1 = folded.and_then(|f| f.fc1.as_ref()).unwrap_or(&self.fc1);
        // Only an adapter of fc1 has a use for its input later.
        let normed = a.normed2.as_mut().unwrap_or(&mut scratch.narrow);
        backend.layer_norm(&a.middle, &self.norm2, normed, &mut a.stats2)?;
        match with {
            (None, _) => {
                backend.linear_activation(normed, fc1, self.activation, &mut a.hidden, &mut scratch.wide)?;
            }
            with => {
                apply(backend, fc1, with, normed, None, seen, &mut a.u_fc1, &mut a.hidden)?;
                backend.activation(self.activation, &a.hidden, &mut scratch.wide)?;
            }
        }
        let with = (lora.and_then(|l| l.fc2.as_ref()), drop(Slot::Contract));
        let fc2 = folded.and_then(|f| f.fc2.as_ref()).unwrap_or(&self.fc2);
        apply(backend, fc2, with, &scratch.wide, Some(&a.middle), seen, &mut a.u_fc2, output)
    }

    /// Walks back through the block. `d` holds the gradient of the output and is used up; where the
    /// gradient of the input is wanted it is left in `d` ([`Rows::All`]) or `d_input` ([`Rows::One`]).
    /// What no adapter of this block and no earlier one needs is not computed. Where the adapters are `folded`, what
    /// the gradients of those around attention need is kept for [`Block::gradients`].
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        backend: &B,
        lora: Option<&mut BlockLora<B>>,
        folded: Option<&FoldedBlock<B>>,
        dropout: Option<BlockDropout<'_, B>>,
        rows: &B::Tensor,
        a: &mut BlockActivations<B>,
        scratch: &mut Scratch<B>,
        d: &mut B::Tensor,
        d_input: Option<&mut B::Tensor>,
        wanted: bool,
    ) -> Result<()> {
        let (projection_lora, out_lora, mlp_lora) = match lora {
            Some(BlockLora { projections, out, fc1, fc2 }) => {
                (Some(projections), out.as_mut(), [fc1.as_mut(), fc2.as_mut()])
            }
            None => (None, None, [None, None]),
        };
        let into_attention = wanted || projection_lora.as_ref().is_some_and(|p| !p.is_empty());
        let into_out = into_attention || out_lora.is_some();
        self.mlp_backward(backend, mlp_lora, folded, dropout, a, scratch, d, into_out)?;
        if !into_out {
            return Ok(());
        }
        let drop = |slot| dropout.map(|dropout| dropout.of(slot));
        let seen = &mut scratch.seen;
        let d_attended = into_attention.then_some(&mut scratch.d_attended);
        let with = (out_lora, drop(Slot::Output));
        let (x, u, du) = (&a.attended, &a.u_out, &mut scratch.du);
        let out = folded.and_then(|f| f.out.as_ref()).unwrap_or(&self.out);
        apply_backward(backend, out, with, d, x, seen, u, du, d_attended)?;
        if !into_attention {
            if let Some(kept) = &mut a.kept {
                kept.exchange(d);
            }
            return Ok(());
        }
        match (&self.projections, &a.projected) {
            (Projections::Packed(layer), Projected::Packed { qkv, u }) => {
                let lora = projection_lora.and_then(|p| match p {
                    ProjectionLora::Packed(qkv) => qkv.as_mut(),
                    ProjectionLora::Split { .. } => None,
                });
                let dqkv = match (&mut a.kept, &mut scratch.gradients) {
                    (Some(kept), _) => &mut kept.dqkv,
                    (None, Gradients::Packed { dqkv }) => dqkv,
                    _ => return Err(mismatch()),
                };
                backend.attention_backward(
                    &scratch.d_attended,
                    &a.attended,
                    AttentionInput::Packed(qkv),
                    &a.saved,
                    self.shape,
                    &mut scratch.d_scores,
                    AttentionGradient::Packed(dqkv),
                )?;
                let d_normed = wanted.then_some(&mut scratch.narrow);
                let with = (lora, drop(Slot::Projections));
                let layer = folded.and_then(|f| f.qkv.as_ref()).unwrap_or(layer);
                apply_backward(backend, layer, with, dqkv, &a.normed, seen, u, &mut scratch.du, d_normed)?;
                let d_normed = wanted.then_some(&scratch.narrow);
                let norm = |to, dx: &mut B::Tensor| {
                    d_normed.map_or(Ok(()), |dy| {
                        backend.layer_norm_backward(dy, &a.input, &self.norm1, &a.stats1, to, dx)
                    })
                };
                match &mut a.kept {
                    Some(kept) => {
                        norm(AddTo::Tensor(d), &mut kept.d_middle)?;
                        kept.exchange(d);
                        Ok(())
                    }
                    None => norm(AddTo::Output, d),
                }
            }
            (Projections::Split { q, kv }, Projected::Split(s)) => {
                let (lora_q, lora_kv) = match projection_lora {
                    Some(ProjectionLora::Split { q, kv }) => (q.as_mut(), kv.as_mut()),
                    _ => (None, None),
                };
                let Gradients::Split(g) = &mut scratch.gradients else { return Err(mismatch()) };
                backend.attention_backward(
                    &scratch.d_attended,
                    &a.attended,
                    AttentionInput::Split { q: &s.q, kv: &s.kv },
                    &a.saved,
                    self.shape,
                    &mut scratch.d_scores,
                    AttentionGradient::Split { dq: &mut g.dq, dkv: &mut g.dkv },
                )?;
                let to_q = wanted.then_some(&mut scratch.narrow);
                let (with, du) = ((lora_q, drop(Slot::Queries)), &mut scratch.du);
                let q = folded.and_then(|f| f.q.as_ref()).unwrap_or(q);
                apply_backward(backend, q, with, &g.dq, &s.normed, seen, &s.u_q, du, to_q)?;
                let to_kv = wanted.then_some(&mut g.d_normed);
                let (with, du) = ((lora_kv, drop(Slot::Projections)), &mut g.du);
                let kv = folded.and_then(|f| f.kv.as_ref()).unwrap_or(kv);
                apply_backward(backend, kv, with, &g.dkv, &a.normed, seen, &s.u_kv, du, to_kv)?;
                if let (true, Some(d_input)) = (wanted, d_input) {
                    backend.take_rows_backward(&scratch.narrow, rows, &mut g.d_normed)?;
                    let (norm, to) = (&self.norm1, AddTo::Nothing);
                    backend.layer_norm_backward(&g.d_normed, &a.input, norm, &a.stats1, to, d_input)?;
                    backend.take_rows_backward(d, rows, d_input)?;
                }
                Ok(())
            }
            _ => Err(mismatch()),
        }
    }

    /// The MLP's part of [`Block::backward`]: down to its residual connection where that is `wanted`.
    #[allow(clippy::too_many_arguments)]
    fn mlp_backward(
        &self,
        backend: &B,
        [fc1, fc2]: [Option<&mut LoraLayer<B>>; 2],
        folded: Option<&FoldedBlock<B>>,
        dropout: Option<BlockDropout<'_, B>>,
        a: &BlockActivations<B>,
        scratch: &mut Scratch<B>,
        d: &mut B::Tensor,
        wanted: bool,
    ) -> Result<()> {
        let drop = |slot| dropout.map(|dropout| dropout.of(slot));
        let (seen, du) = (&mut scratch.seen, &mut scratch.du);
        let into_hidden = wanted || fc1.is_some();
        let d_hidden = into_hidden.then_some(&mut scratch.wide);
        let plain = fc2.is_none();
        match (fc2, &mut scratch.activated) {
            (None, _) => d_hidden.map_or(Ok(()), |to| {
                backend.linear_activation_backward(d, &self.fc2, self.activation, &a.hidden, to)
            })?,
            (Some(lora), Some(activated)) => {
                backend.activation(self.activation, &a.hidden, activated)?;
                let fc2 = folded.and_then(|f| f.fc2.as_ref()).unwrap_or(&self.fc2);
                let with = (Some(&mut *lora), drop(Slot::Contract));
                apply_backward(backend, fc2, with, d, activated, seen, &a.u_fc2, du, d_hidden)?;
                if folded.is_some() {
                    backend.lora_gradients(&mut [lora.gradients(activated, d)])?;
                }
            }
            (Some(_), None) => return Err(mismatch()),
        }
        if !into_hidden {
            return Ok(());
        }
        if !plain {
            backend.activation_backward(self.activation, &a.hidden, &mut scratch.wide)?;
        }
        let d_normed = wanted.then_some(&mut scratch.narrow);
        match (fc1, &a.normed2) {
            (None, _) => {
                d_normed.map_or(Ok(()), |to| backend.linear_backward(&scratch.wide, &self.fc1, to))?
            }
            (Some(lora), Some(x)) => {
                let fc1 = folded.and_then(|f| f.fc1.as_ref()).unwrap_or(&self.fc1);
                let with = (Some(&mut *lora), drop(Slot::Expand));
                apply_backward(backend, fc1, with, &scratch.wide, x, seen, &a.u_fc1, du, d_normed)?;
                if folded.is_some() {
                    backend.lora_gradients(&mut [lora.gradients(x, &scratch.wide)])?;
                }
            }
            (Some(_), None) => return Err(mismatch()),
        }
        if !wanted {
            return Ok(());
        }
        backend.layer_norm_backward(&scratch.narrow, &a.middle, &self.norm2, &a.stats2, AddTo::Output, d)
    }

    /// Adds to `layers` the adapters around attention, with what [`Block::backward`] kept for their gradients. `d` and
    /// `scratch` are as it left them, where the block computes one row of each sequence.
    pub(super) fn gradients<'a>(
        &self,
        lora: &'a mut BlockLora<B>,
        a: &'a BlockActivations<B>,
        scratch: &'a Scratch<B>,
        d: &'a B::Tensor,
        layers: &mut Vec<LoraGradients<'a, B>>,
    ) -> Result<()> {
        let mut add = |lora: &'a mut Option<LoraLayer<B>>, x: &'a B::Tensor, dy: &'a B::Tensor| {
            layers.extend(lora.as_mut().map(|lora| lora.gradients(x, dy)));
        };
        let d_middle = match (&mut lora.projections, &a.projected, &a.kept, &scratch.gradients) {
            (ProjectionLora::Packed(qkv), Projected::Packed { .. }, Some(kept), _) => {
                add(qkv, &a.normed, &kept.dqkv);
                &kept.d_middle
            }
            (ProjectionLora::Split { q, kv }, Projected::Split(s), _, Gradients::Split(g)) => {
                add(q, &s.normed, &g.dq);
                add(kv, &a.normed, &g.dkv);
                d
            }
            _ => return Err(mismatch()),
        };
        add(&mut lora.out, &a.attended, d_middle);
        Ok(())
    }

    /// Bytes that the block's weights will take besides, see [`Memory::weight_bytes_to_come`](crate::backend::Memory::weight_bytes_to_come).
    pub fn bytes_to_come(&self, backend: &B) -> usize {
        let of = |layer: &Linear<B>| backend.weight_bytes_to_come(&layer.weight);
        let projections = match &self.projections {
            Projections::Packed(qkv) => of(qkv),
            Projections::Split { q, kv } => of(q) + of(kv),
        };
        projections + of(&self.out) + of(&self.fc1) + of(&self.fc2)
    }

    /// Memory for this block's adapted layers with `lora` folded in.
    pub fn folded(&self, backend: &B, lora: &BlockLora<B>) -> Result<FoldedBlock<B>> {
        let copy = |layer: &Linear<B>, lora: &Option<LoraLayer<B>>| -> Result<Option<Linear<B>>> {
            if lora.is_none() {
                return Ok(None);
            }
            let dtype = backend.compute_dtype();
            let bias = match &layer.bias {
                Some(bias) => Some(backend.upload(backend.download(bias)?.view(), dtype)?),
                None => None,
            };
            let room = Tensor::zeros(backend.weight_shape(&layer.weight), dtype);
            Ok(Some(Linear { weight: backend.weight(room.view())?, bias }))
        };
        let (qkv, q, kv) = match (&self.projections, &lora.projections) {
            (Projections::Packed(layer), ProjectionLora::Packed(lora)) => (copy(layer, lora)?, None, None),
            (Projections::Split { q, kv }, ProjectionLora::Split { q: lora_q, kv: lora_kv }) => {
                (None, copy(q, lora_q)?, copy(kv, lora_kv)?)
            }
            _ => return Err(mismatch()),
        };
        let (fc1, fc2) = (copy(&self.fc1, &lora.fc1)?, copy(&self.fc2, &lora.fc2)?);
        Ok(FoldedBlock { qkv, q, kv, out: copy(&self.out, &lora.out)?, fc1, fc2 })
    }

    /// Adds every layer with an adapter to `sites`.
    pub(super) fn sites<'a>(
        &'a self,
        lora: &'a BlockLora<B>,
        s: BlockSizes,
        sites: &mut Vec<LoraSite<'a, B>>,
    ) -> Result<()> {
        let (keys, queries) = (s.batch * s.tokens, s.batch * s.queries());
        let mut add = |rows: usize, layer: &'a Linear<B>, lora: &'a Option<LoraLayer<B>>| {
            sites.extend(lora.as_ref().map(|lora| LoraSite { rows, layer, lora: lora.as_lora() }));
        };
        match (&self.projections, &lora.projections) {
            (Projections::Packed(layer), ProjectionLora::Packed(qkv)) => add(keys, layer, qkv),
            (Projections::Split { q, kv }, ProjectionLora::Split { q: lora_q, kv: lora_kv }) => {
                add(queries, q, lora_q);
                add(keys, kv, lora_kv);
            }
            _ => return Err(mismatch()),
        }
        add(queries, &self.out, &lora.out);
        add(queries, &self.fc1, &lora.fc1);
        add(queries, &self.fc2, &lora.fc2);
        Ok(())
    }

    /// Adds to `layers` what is to be folded into `folded`: every layer with an adapter.
    fn folds<'a>(
        &'a self,
        lora: &'a BlockLora<B>,
        folded: &'a mut FoldedBlock<B>,
        layers: &mut Vec<LoraFold<'a, B>>,
    ) -> Result<()> {
        let FoldedBlock { qkv, q, kv, out, fc1, fc2 } = folded;
        let mut add = |layer: &'a Linear<B>,
                       lora: &'a Option<LoraLayer<B>>,
                       to: &'a mut Option<Linear<B>>| match (lora, to) {
            (Some(lora), Some(to)) => {
                let (weight, lora, folded) = (&layer.weight, lora.as_lora(), &mut to.weight);
                layers.push(LoraFold { weight, lora, folded });
                Ok(())
            }
            (None, None) => Ok(()),
            _ => Err(mismatch()),
        };
        match (&self.projections, &lora.projections) {
            (Projections::Packed(layer), ProjectionLora::Packed(lora)) => add(layer, lora, qkv)?,
            (Projections::Split { q: to_q, kv: to_kv }, ProjectionLora::Split { q: lora_q, kv: lora_kv }) => {
                add(to_q, lora_q, q)?;
                add(to_kv, lora_kv, kv)?;
            }
            _ => return Err(mismatch()),
        }
        add(&self.fc1, &lora.fc1, fc1)?;
        add(&self.fc2, &lora.fc2, fc2)?;
        add(&self.out, &lora.out, out)
    }
}

/// Activations, adapters and weights of one block must agree on whether queries are computed apart.
fn mismatch() -> crate::backend::BackendError {
    crate::backend::BackendError::Invalid {
        op: "block",
        problem: "packed and split projections do not go together".into(),
    }
}

/// A linear layer with or without an adapter and dropout in front of that. `seen` has room for what the adapter
/// sees then.
#[allow(clippy::too_many_arguments)]
fn apply<B: Backend>(
    backend: &B,
    layer: &Linear<B>,
    (lora, dropout): (Option<&LoraLayer<B>>, Option<Dropout<'_, B>>),
    x: &B::Tensor,
    residual: Option<&B::Tensor>,
    seen: &mut Option<B::Tensor>,
    u: &mut Option<B::Tensor>,
    y: &mut B::Tensor,
) -> Result<()> {
    match (lora, u) {
        (Some(lora), Some(u)) => {
            let seen = dropout.map(|dropout| dropped(backend, x, dropout, seen)).transpose()?;
            backend.lora_linear(x, seen, layer, lora.as_lora(), residual, u, y)
        }
        (None, _) => backend.linear(x, layer, residual, y),
        (Some(_), None) => Err(mismatch()),
    }
}

/// `x` after dropout, in the memory of `seen`.
fn dropped<'a, B: Backend>(
    backend: &B,
    x: &B::Tensor,
    dropout: Dropout<'_, B>,
    seen: &'a mut Option<B::Tensor>,
) -> Result<&'a B::Tensor> {
    let Some(seen) = seen else { return Err(mismatch()) };
    seen.set_shape(x.shape())?;
    backend.dropout(x, dropout, seen)?;
    Ok(seen)
}

/// The same backward. Without x·Aᵀ the adapter is folded into `layer`, and its gradients are computed elsewhere.
#[allow(clippy::too_many_arguments)]
fn apply_backward<B: Backend>(
    backend: &B,
    layer: &Linear<B>,
    (lora, dropout): (Option<&mut LoraLayer<B>>, Option<Dropout<'_, B>>),
    dy: &B::Tensor,
    x: &B::Tensor,
    seen: &mut Option<B::Tensor>,
    u: &Option<B::Tensor>,
    du: &mut DuScratch<B>,
    dx: Option<&mut B::Tensor>,
) -> Result<()> {
    match (lora, u) {
        (Some(lora), Some(u)) => {
            let du = du.of_shape(u.shape())?;
            // The mask is made again, which costs less than keeping what came through it.
            let x = match dropout {
                Some(dropout) => dropped(backend, x, dropout, seen)?,
                None => x,
            };
            let LoraGradients { lora, da, db, .. } = lora.gradients(x, dy);
            backend.lora_linear_backward(dy, x, dropout, u, layer, lora, du, da, db, dx)
        }
        _ => match dx {
            Some(dx) => backend.linear_backward(dy, layer, dx),
            None => Ok(()),
        },
    }
}

/// Scratch for the gradient of x·Aᵀ, one buffer per width that occurs.
pub struct DuScratch<B: Backend> {
    buffers: Vec<B::Tensor>,
}

impl<B: Backend> DuScratch<B> {
    fn of_shape(&mut self, shape: crate::tensor::Shape) -> Result<&mut B::Tensor> {
        self.buffers.iter_mut().find(|b| b.shape() == shape).ok_or_else(mismatch)
    }
}

/// Activations of a block's forward pass, which the backward pass reads. Leading dimension: sequences.
pub struct BlockActivations<B: Backend> {
    /// The block's input \[B, S, D\].
    pub input: B::Tensor,
    /// LN₁ of the input, and the statistics of its rows.
    normed: B::Tensor,
    stats1: B::Tensor,
    projected: Projected<B>,
    /// Tensor that attention keeps for its backward pass, see [`AttentionOp::attention_saved`](crate::backend::AttentionOp::attention_saved).
    saved: B::Tensor,
    attended: B::Tensor,
    u_out: Option<B::Tensor>,
    /// Tokens between attention and MLP.
    middle: B::Tensor,
    stats2: B::Tensor,
    /// LN₂ of `middle`, where fc1 has an adapter.
    normed2: Option<B::Tensor>,
    u_fc1: Option<B::Tensor>,
    /// Hidden layer of the MLP in front of the activation function.
    hidden: B::Tensor,
    u_fc2: Option<B::Tensor>,
    /// Where gradients of adapters wait for those of all blocks, in blocks that compute every row.
    kept: Option<KeptGradients<B>>,
}

/// What the gradients of the adapters around attention are computed from, when the backward pass has ended.
struct KeptGradients<B: Backend> {
    dqkv: B::Tensor,
    /// Gradient of the tokens between attention and MLP.
    d_middle: B::Tensor,
    /// `d_middle` has changed places with what carries the gradient from block to block.
    exchanged: bool,
}

impl<B: Backend> KeptGradients<B> {
    /// Keeps what `d` holds; the gradient goes on in the other's memory.
    fn exchange(&mut self, d: &mut B::Tensor) {
        std::mem::swap(d, &mut self.d_middle);
        self.exchanged = !self.exchanged;
    }
}

/// Queries, keys and values, and x·Aᵀ of their adapters.
enum Projected<B: Backend> {
    Packed { qkv: B::Tensor, u: Option<B::Tensor> },
    Split(Box<SplitProjected<B>>),
}

struct SplitProjected<B: Backend> {
    /// The chosen rows of the input, and of LN₁ of it.
    input: B::Tensor,
    normed: B::Tensor,
    q: B::Tensor,
    kv: B::Tensor,
    u_q: Option<B::Tensor>,
    u_kv: Option<B::Tensor>,
}

/// Memory that blocks of one kind share.
pub struct Scratch<B: Backend> {
    narrow: B::Tensor,
    wide: B::Tensor,
    /// Hidden layer of the MLP behind the activation function, for the gradients of an adapter of fc2.
    activated: Option<B::Tensor>,
    /// Input of one layer's adapters behind dropout.
    seen: Option<B::Tensor>,
    d_attended: B::Tensor,
    d_scores: B::Tensor,
    du: DuScratch<B>,
    gradients: Gradients<B>,
}

/// Gradients of what attention reads; empty where no backward pass will run.
enum Gradients<B: Backend> {
    None,
    /// Every block has its own, see [`KeptGradients`].
    Kept,
    Packed {
        dqkv: B::Tensor,
    },
    Split(Box<SplitGradients<B>>),
}

struct SplitGradients<B: Backend> {
    dq: B::Tensor,
    dkv: B::Tensor,
    d_normed: B::Tensor,
    du: DuScratch<B>,
}

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
}

impl<B: Backend> BlockActivations<B> {
    /// Memory for one block; with room for x·Aᵀ where `lora` has adapters that are not folded into the weights, and for
    /// the gradients of sequences of up to as many tokens as `folded` says where they are.
    pub fn new(
        backend: &B,
        s: BlockSizes,
        lora: Option<&BlockLora<B>>,
        folded: Option<usize>,
    ) -> Result<Self> {
        let (n, keys, queries, d) = (s.batch, s.tokens, s.queries(), s.width);
        let make = |dims: [usize; 3]| backend.empty(dims, backend.compute_dtype());
        let stats = |rows| backend.empty([n, rows, 2], backend.parameter_dtype());
        let u = |rows: usize, layer: Option<&LoraLayer<B>>| match layer {
            Some(layer) if folded.is_none() => make([n, rows, layer.width()]).map(Some),
            _ => Ok(None),
        };
        let kept = match folded.filter(|_| s.rows == Rows::All) {
            Some(longest) => {
                let (dqkv, d_middle) = (make([n, keys, 3 * d])?, make([n, longest, d])?);
                Some(KeptGradients { dqkv, d_middle, exchanged: false })
            }
            None => None,
        };
        let projected = match (s.rows, lora.map(|l| &l.projections)) {
            (Rows::All, lora) => {
                let lora = match lora {
                    Some(ProjectionLora::Packed(qkv)) => qkv.as_ref(),
                    _ => None,
                };
                Projected::Packed { qkv: make([n, keys, 3 * d])?, u: u(keys, lora)? }
            }
            (Rows::One, lora) => {
                let (lora_q, lora_kv) = match lora {
                    Some(ProjectionLora::Split { q, kv }) => (q.as_ref(), kv.as_ref()),
                    _ => (None, None),
                };
                Projected::Split(Box::new(SplitProjected {
                    input: make([n, 1, d])?,
                    normed: make([n, 1, d])?,
                    q: make([n, 1, d])?,
                    kv: make([n, keys, 2 * d])?,
                    u_q: u(1, lora_q)?,
                    u_kv: u(keys, lora_kv)?,
                }))
            }
        };
        let saved = backend.attention_saved(n, s.heads, queries, keys);
        Ok(BlockActivations {
            input: make([n, keys, d])?,
            normed: make([n, keys, d])?,
            stats1: stats(keys)?,
            projected,
            saved: backend.empty(saved, backend.parameter_dtype())?,
            attended: make([n, queries, d])?,
            u_out: u(queries, lora.and_then(|l| l.out.as_ref()))?,
            middle: make([n, queries, d])?,
            stats2: stats(queries)?,
            normed2: match lora.is_some_and(|l| l.fc1.is_some()) {
                true => Some(make([n, queries, d])?),
                false => None,
            },
            u_fc1: u(queries, lora.and_then(|l| l.fc1.as_ref()))?,
            hidden: make([n, queries, s.mlp])?,
            u_fc2: u(queries, lora.and_then(|l| l.fc2.as_ref()))?,
            kept,
        })
    }

    /// Undoes what [`Block::backward`] exchanged with `d`, so that the next step finds every tensor in its place.
    pub(super) fn put_back(&mut self, d: &mut B::Tensor) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.exchanged) {
            kept.exchange(d);
        }
    }

    /// Sets the numbers of images and tokens, up to those that the memory was made for.
    pub fn set_extent(&mut self, backend: &B, s: BlockSizes) -> Result<()> {
        let (n, keys, queries) = (s.batch, s.tokens, s.queries());
        for tensor in [&mut self.input, &mut self.normed, &mut self.stats1] {
            set_tokens(tensor, n, keys)?;
        }
        for tensor in [&mut self.attended, &mut self.middle, &mut self.stats2, &mut self.hidden] {
            set_tokens(tensor, n, queries)?;
        }
        self.saved.set_shape(backend.attention_saved(n, s.heads, queries, keys))?;
        if let Some(KeptGradients { dqkv, d_middle, .. }) = &mut self.kept {
            set_tokens(dqkv, n, keys)?;
            set_tokens(d_middle, n, keys)?;
        }
        match &mut self.projected {
            Projected::Packed { qkv, u } => {
                set_tokens(qkv, n, keys)?;
                u.iter_mut().try_for_each(|u| set_tokens(u, n, keys))?;
            }
            Projected::Split(s) => {
                set_tokens(&mut s.kv, n, keys)?;
                s.u_kv.iter_mut().try_for_each(|u| set_tokens(u, n, keys))?;
                for tensor in [&mut s.input, &mut s.normed, &mut s.q].into_iter().chain(&mut s.u_q) {
                    set_tokens(tensor, n, 1)?;
                }
            }
        }
        let optional = [&mut self.u_out, &mut self.normed2, &mut self.u_fc1, &mut self.u_fc2];
        optional.into_iter().flatten().try_for_each(|tensor| set_tokens(tensor, n, queries))
    }
}

/// Makes `tensor` \[batch, tokens, …\] of what was \[B, S, …\].
fn set_tokens<T: DeviceTensor>(tensor: &mut T, batch: usize, tokens: usize) -> Result<()> {
    tensor.set_shape([batch, tokens, tensor.shape().columns()].into())
}

impl<B: Backend> Scratch<B> {
    /// Memory shared by all blocks of these sizes. `lora` lists the adapters that will be trained, `dropout`
    /// says whether there is any in front of them, and `folded` whether they are folded into the weights; with none,
    /// and `backward` false, only a forward pass is possible.
    pub fn new(
        backend: &B,
        s: BlockSizes,
        lora: &[&BlockLora<B>],
        dropout: bool,
        folded: bool,
        backward: bool,
    ) -> Result<Self> {
        let (n, keys, queries, d) = (s.batch, s.tokens, s.queries(), s.width);
        let make = |dims: [usize; 3]| backend.empty(dims, backend.compute_dtype());
        let du = |rows: usize, layers: Vec<&LoraLayer<B>>| -> Result<DuScratch<B>> {
            let mut widths: Vec<usize> = layers.iter().map(|l| l.width()).collect();
            widths.sort_unstable();
            widths.dedup();
            let buffers = widths.into_iter().map(|w| make([n, rows, w])).collect::<Result<_>>()?;
            Ok(DuScratch { buffers })
        };
        let every = || lora.iter().filter(|_| !folded).flat_map(|l| l.layers()).collect::<Vec<_>>();
        let gradients = match (backward, s.rows) {
            (false, _) => Gradients::None,
            (true, Rows::All) if folded => Gradients::Kept,
            (true, Rows::All) => Gradients::Packed { dqkv: make([n, keys, 3 * d])? },
            (true, Rows::One) => Gradients::Split(Box::new(SplitGradients {
                dq: make([n, 1, d])?,
                dkv: make([n, keys, 2 * d])?,
                d_normed: make([n, keys, d])?,
                du: du(keys, every())?,
            })),
        };
        let (rows, scores) = if backward {
            (queries, backend.attention_saved(n, s.heads, queries, keys))
        } else {
            (0, [n, 0].into())
        };
        Ok(Scratch {
            narrow: make([n, queries, d])?,
            wide: make([n, queries, s.mlp])?,
            activated: match backward && lora.iter().any(|l| l.fc2.is_some()) {
                true => Some(make([n, queries, s.mlp])?),
                false => None,
            },
            seen: match backward && dropout {
                true => Some(make([n, 1, (keys * d).max(queries * s.mlp)])?),
                false => None,
            },
            d_attended: make([n, rows, d])?,
            d_scores: backend.empty(scores, backend.parameter_dtype())?,
            du: du(queries, every())?,
            gradients,
        })
    }

    /// Sets the numbers of images and tokens, up to those that the memory was made for.
    pub fn set_extent(&mut self, backend: &B, s: BlockSizes) -> Result<()> {
        let (n, keys, queries) = (s.batch, s.tokens, s.queries());
        set_tokens(&mut self.narrow, n, queries)?;
        set_tokens(&mut self.wide, n, queries)?;
        self.activated.iter_mut().try_for_each(|b| set_tokens(b, n, queries))?;
        self.du.buffers.iter_mut().try_for_each(|b| set_tokens(b, n, queries))?;
        if !matches!(self.gradients, Gradients::None) {
            set_tokens(&mut self.d_attended, n, queries)?;
            self.d_scores.set_shape(backend.attention_saved(n, s.heads, queries, keys))?;
        }
        match &mut self.gradients {
            Gradients::None | Gradients::Kept => Ok(()),
            Gradients::Packed { dqkv } => set_tokens(dqkv, n, keys),
            Gradients::Split(g) => {
                set_tokens(&mut g.dq, n, 1)?;
                set_tokens(&mut g.dkv, n, keys)?;
                set_tokens(&mut g.d_normed, n, keys)?;
                g.du.buffers.iter_mut().try_for_each(|b| set_tokens(b, n, keys))
            }
        }
    }
}
