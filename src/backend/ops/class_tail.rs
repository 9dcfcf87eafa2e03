//! What stands behind the keys and values of a block that computes one row of each sequence, to the features.

use super::*;

/// The frozen layers of it, with adapters folded in where there are any.
pub struct TailLayers<'a, B: Memory> {
    /// Queries \[D, D\].
    pub q: &'a Linear<B>,
    /// The projection behind attention \[D, D\].
    pub out: &'a Linear<B>,
    /// The norm in front of the MLP.
    pub norm: &'a LayerNorm<B>,
    /// The MLP's first layer \[M, D\].
    pub fc1: &'a Linear<B>,
    /// The MLP's second layer \[D, M\].
    pub fc2: &'a Linear<B>,
    /// The norm behind the block.
    pub end_norm: &'a LayerNorm<B>,
    /// The projection to features \[E, D\].
    pub projection: &'a Linear<B>,
    /// Attention's heads; without a causal mask.
    pub shape: AttentionShape,
    /// The MLP's function.
    pub activation: Activation,
}

/// Arguments of [`ClassTailOp::class_tail`]. Of n sequences of S tokens.
pub struct ClassTail<'a, B: Memory> {
    /// The layers.
    pub layers: TailLayers<'a, B>,
    /// The block's input \[n, S, D\].
    pub input: &'a B::Tensor,
    /// Layer norm of it.
    pub normed: &'a B::Tensor,
    /// u32 \[n\]: the row of each sequence that is computed.
    pub rows: &'a B::Tensor,
    /// Keys and values \[n, S, 2·D\].
    pub kv: &'a B::Tensor,
    /// That row of the input, and of its norm \[n, 1, D\].
    pub chosen: &'a mut B::Tensor,
    /// See `chosen`.
    pub chosen_normed: &'a mut B::Tensor,
    /// Queries \[n, 1, D\].
    pub q: &'a mut B::Tensor,
    /// What attention keeps.
    pub saved: &'a mut B::Tensor,
    /// Behind attention \[n, 1, D\].
    pub attended: &'a mut B::Tensor,
    /// Between attention and MLP \[n, 1, D\].
    pub middle: &'a mut B::Tensor,
    /// Layer norm of `middle`, and the statistics of its rows.
    pub middle_normed: &'a mut B::Tensor,
    /// See `middle_normed`.
    pub stats: &'a mut B::Tensor,
    /// Hidden layer of the MLP in front of its function \[n, 1, M\], and behind it.
    pub hidden: &'a mut B::Tensor,
    /// See `hidden`.
    pub activated: &'a mut B::Tensor,
    /// Behind the block \[n, 1, D\].
    pub last: &'a mut B::Tensor,
    /// Layer norm of `last`, and the statistics of its rows.
    pub last_normed: &'a mut B::Tensor,
    /// See `last_normed`.
    pub last_stats: &'a mut B::Tensor,
    /// \[n, E\].
    pub projected: &'a mut B::Tensor,
    /// Lengths of the rows of `projected` \[n\].
    pub norms: &'a mut B::Tensor,
    /// Those rows with length one \[n, E\], in the parameter dtype.
    pub features: &'a mut B::Tensor,
}

/// Arguments of [`ClassTailOp::class_tail_backward`]: what the forward pass left, and gradients of it.
pub struct ClassTailBackward<'a, B: Memory> {
    /// The layers.
    pub layers: TailLayers<'a, B>,
    /// As [`ClassTail::q`], and so on.
    pub q: &'a B::Tensor,
    /// Keys and values.
    pub kv: &'a B::Tensor,
    /// What attention kept.
    pub saved: &'a B::Tensor,
    /// Behind attention.
    pub attended: &'a B::Tensor,
    /// Between attention and MLP.
    pub middle: &'a B::Tensor,
    /// Statistics of its rows.
    pub stats: &'a B::Tensor,
    /// Hidden layer of the MLP.
    pub hidden: &'a B::Tensor,
    /// Behind the block.
    pub last: &'a B::Tensor,
    /// Statistics of its rows.
    pub last_stats: &'a B::Tensor,
    /// Lengths in front of the features.
    pub norms: &'a B::Tensor,
    /// The features.
    pub features: &'a B::Tensor,
    /// Gradient of the features \[n, E\], where it starts.
    pub d_features: &'a B::Tensor,
    /// Scratch \[n, E\].
    pub d_projected: &'a mut B::Tensor,
    /// Scratch \[n, 1, D\].
    pub d_last_normed: &'a mut B::Tensor,
    /// Gradient of the output of the projection behind attention \[n, 1, D\].
    pub d_middle: &'a mut B::Tensor,
    /// Scratch \[n, 1, M\].
    pub d_hidden: &'a mut B::Tensor,
    /// Gradient of the chosen rows of the norm through queries alone \[n, 1, D\], where it is wanted; else scratch.
    pub d_chosen: &'a mut B::Tensor,
    /// Scratch \[n, 1, D\].
    pub d_attended: &'a mut B::Tensor,
    /// Scratch, of the shape of `saved`.
    pub d_scores: &'a mut B::Tensor,
    /// Gradient of queries \[n, 1, D\].
    pub dq: &'a mut B::Tensor,
    /// Gradient of keys and values \[n, S, 2·D\].
    pub dkv: &'a mut B::Tensor,
    /// Whether `d_chosen` is.
    pub wanted: bool,
}

/// Extents of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailExtents {
    /// Those of attention.
    pub attention: AttentionExtents,
    /// M.
    pub mlp: usize,
    /// E.
    pub features: usize,
}

impl TailExtents {
    /// Checks queries, keys and values, and the layers; reads the extents from them.
    fn of<B: Memory>(
        op: &'static str,
        device: &B,
        layers: &TailLayers<'_, B>,
        (q, kv): (&B::Tensor, &B::Tensor),
        (hidden, features): (Shape, Shape),
    ) -> Result<Self> {
        let input: AttentionInput<'_, B> = AttentionInput::Split { q, kv };
        let attention = AttentionExtents::of(op, &input, layers.shape)?;
        let (d, mlp, features) = (attention.width, hidden.columns(), features.columns());
        if attention.queries != 1 {
            let problem = format!("q {} is not [n, 1, D]", q.shape());
            return Err(BackendError::Invalid { op, problem });
        }
        expect_layer(device, op, layers.q, d, d)?;
        expect_layer(device, op, layers.out, d, d)?;
        layers.norm.expect(op, d)?;
        expect_layer(device, op, layers.fc1, d, mlp)?;
        expect_layer(device, op, layers.fc2, mlp, d)?;
        layers.end_norm.expect(op, d)?;
        expect_layer(device, op, layers.projection, d, features)?;
        Ok(TailExtents { attention, mlp, features })
    }

    /// Checks tensors of one row of so many columns for each sequence.
    fn expect_rows<const N: usize>(
        &self,
        op: &'static str,
        rows: [(&'static str, usize, Shape); N],
    ) -> Result<()> {
        rows.into_iter().try_for_each(|(what, columns, found)| {
            expect_matrix(op, what, self.attention.batch, columns, found)
        })
    }
}

/// The layers behind the keys and values of a block that computes one row of each sequence, and those behind the block.
pub trait ClassTailOp: TakeRowsOp + AttentionOp + LayerNormOp + LinearOp + L2NormOp {
    /// With c the chosen rows: q = LN₁(c)·Wqᵀ + bq, a = attention(q, k, v), m = c + a·Woᵀ + bo,
    /// y = m + act(LN₂(m)·W1ᵀ + b1)·W2ᵀ + b2, p = LN(y)·Pᵀ, f = p/|p|.
    fn class_tail(&self, args: ClassTail<'_, Self>) -> Result<()> {
        const OP: &str = "class_tail";
        let a = &args;
        let of = (a.hidden.shape(), a.features.shape());
        let e = TailExtents::of(OP, self, &a.layers, (a.q, a.kv), of)?;
        let AttentionExtents { batch, keys, width: d, heads, .. } = e.attention;
        for (what, tensor) in [("input", a.input), ("normed", a.normed)] {
            expect_shape(OP, what, [batch, keys, d], tensor.shape())?;
        }
        expect_shape(OP, "rows", [batch], a.rows.shape())?;
        expect_shape(OP, "saved", self.attention_saved(batch, heads, 1, keys), a.saved.shape())?;
        expect_shape(OP, "attended", [batch, 1, d], a.attended.shape())?;
        expect_shape(OP, "norms", [batch], a.norms.shape())?;
        e.expect_rows(
            OP,
            [
                ("chosen", d, a.chosen.shape()),
                ("chosen_normed", d, a.chosen_normed.shape()),
                ("middle", d, a.middle.shape()),
                ("middle_normed", d, a.middle_normed.shape()),
                ("stats", 2, a.stats.shape()),
                ("hidden", e.mlp, a.hidden.shape()),
                ("activated", e.mlp, a.activated.shape()),
                ("last", d, a.last.shape()),
                ("last_normed", d, a.last_normed.shape()),
                ("last_stats", 2, a.last_stats.shape()),
                ("projected", e.features, a.projected.shape()),
                ("features", e.features, a.features.shape()),
            ],
        )?;
        Self::class_tail_checked(Checked(self), args, e)
    }

    /// The same backwards, from df to the gradients of c's norm through the queries, of the queries, and of keys and
    /// values. `d_middle` is that of m, as [`ClassTail`] has it.
    fn class_tail_backward(&self, args: ClassTailBackward<'_, Self>) -> Result<()> {
        const OP: &str = "class_tail_backward";
        let a = &args;
        let of = (a.hidden.shape(), a.features.shape());
        let e = TailExtents::of(OP, self, &a.layers, (a.q, a.kv), of)?;
        let AttentionExtents { batch, keys, width: d, heads, .. } = e.attention;
        let saved = self.attention_saved(batch, heads, 1, keys);
        for (what, tensor) in [("saved", a.saved), ("d_scores", &*a.d_scores)] {
            expect_shape(OP, what, saved, tensor.shape())?;
        }
        for (what, tensor) in [("attended", a.attended), ("d_attended", &*a.d_attended), ("dq", &*a.dq)] {
            expect_shape(OP, what, [batch, 1, d], tensor.shape())?;
        }
        expect_shape(OP, "dkv", a.kv.shape(), a.dkv.shape())?;
        expect_shape(OP, "norms", [batch], a.norms.shape())?;
        for (what, tensor) in [("d_features", a.d_features), ("d_projected", &*a.d_projected)] {
            expect_shape(OP, what, a.features.shape(), tensor.shape())?;
        }
        e.expect_rows(
            OP,
            [
                ("middle", d, a.middle.shape()),
                ("stats", 2, a.stats.shape()),
                ("hidden", e.mlp, a.hidden.shape()),
                ("last", d, a.last.shape()),
                ("last_stats", 2, a.last_stats.shape()),
                ("features", e.features, a.features.shape()),
                ("d_last_normed", d, a.d_last_normed.shape()),
                ("d_middle", d, a.d_middle.shape()),
                ("d_hidden", e.mlp, a.d_hidden.shape()),
                ("d_chosen", d, a.d_chosen.shape()),
            ],
        )?;
        Self::class_tail_backward_checked(Checked(self), args, e)
    }

    /// [`Self::class_tail`] of what was checked: one operation after another where a device has no better form.
    fn class_tail_checked(
        device: Checked<'_, Self>,
        mut args: ClassTail<'_, Self>,
        extents: TailExtents,
    ) -> Result<()> {
        tail_by_operations(device, &mut args, extents)
    }

    /// [`Self::class_tail_backward`] of what was checked: one operation after another where a device has no better form.
    fn class_tail_backward_checked(
        device: Checked<'_, Self>,
        mut args: ClassTailBackward<'_, Self>,
        extents: TailExtents,
    ) -> Result<()> {
        tail_backward_by_operations(device, &mut args, extents)
    }
}

/// [`ClassTailOp::class_tail_checked`] by the operations that it is made of.
pub(in crate::backend) fn tail_by_operations<B: ClassTailOp>(
    device: Checked<'_, B>,
    args: &mut ClassTail<'_, B>,
    extents: TailExtents,
) -> Result<()> {
    let layers = &args.layers;
    B::take_rows_checked(device, args.input, args.rows, args.chosen)?;
    B::take_rows_checked(device, args.normed, args.rows, args.chosen_normed)?;
    B::linear_checked(device, args.chosen_normed, layers.q, None, args.q)?;
    let split = AttentionInput::Split { q: args.q, kv: args.kv };
    B::attention_checked(device, split, extents.attention, args.saved, args.attended)?;
    B::linear_checked(device, args.attended, layers.out, Some(args.chosen), args.middle)?;
    B::layer_norm_checked(device, args.middle, layers.norm, args.middle_normed, args.stats)?;
    // What is kept is the sum, as in one launch, whichever of the two the backward pass takes.
    B::linear_checked(device, args.middle_normed, layers.fc1, None, args.hidden)?;
    B::activation_checked(device, layers.activation, args.hidden, None, args.activated)?;
    B::linear_checked(device, args.activated, layers.fc2, Some(args.middle), args.last)?;
    B::layer_norm_checked(device, args.last, layers.end_norm, args.last_normed, args.last_stats)?;
    B::linear_checked(device, args.last_normed, layers.projection, None, args.projected)?;
    B::l2_norm_checked(device, args.projected, args.features, args.norms)
}

/// [`ClassTailOp::class_tail_backward_checked`] by the operations that it is made of.
pub(in crate::backend) fn tail_backward_by_operations<B: ClassTailOp>(
    device: Checked<'_, B>,
    args: &mut ClassTailBackward<'_, B>,
    extents: TailExtents,
) -> Result<()> {
    let layers = &args.layers;
    B::l2_norm_backward_checked(device, args.d_features, args.features, args.norms, args.d_projected)?;
    B::linear_backward_checked(device, args.d_projected, layers.projection, args.d_last_normed)?;
    let (norm, to) = (layers.end_norm, AddTo::Nothing);
    let (dy, d) = (&*args.d_last_normed, &mut *args.d_middle);
    B::layer_norm_backward_checked(device, dy, args.last, norm, args.last_stats, to, d)?;
    let (kind, dz) = (layers.activation, &mut *args.d_hidden);
    B::linear_activation_backward_checked(device, args.d_middle, layers.fc2, kind, args.hidden, None, dz)?;
    B::linear_backward_checked(device, args.d_hidden, layers.fc1, args.d_chosen)?;
    let (dy, d) = (&*args.d_chosen, &mut *args.d_middle);
    B::layer_norm_backward_checked(device, dy, args.middle, layers.norm, args.stats, AddTo::Output, d)?;
    B::linear_backward_checked(device, args.d_middle, layers.out, args.d_attended)?;
    let attention = AttentionBackward {
        d_o: args.d_attended,
        o: args.attended,
        input: AttentionInput::Split { q: args.q, kv: args.kv },
        shape: layers.shape,
        saved: args.saved,
        scratch: args.d_scores,
        gradient: AttentionGradient::Split { dq: args.dq, dkv: args.dkv },
    };
    B::attention_backward_checked(device, attention, extents.attention)?;
    if args.wanted {
        B::linear_backward_checked(device, args.dq, layers.q, args.d_chosen)?;
    }
    Ok(())
}
