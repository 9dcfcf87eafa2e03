//! Scaled dot-product attention.

use super::*;

/// Queries, keys and values, heads side by side in the last dimension.
pub enum AttentionInput<'a, B: Memory> {
    /// \[B, S, 3·D\]: queries, keys, values.
    Packed(&'a B::Tensor),
    /// Queries \[B, Sq, D\] for some rows, keys and values \[B, S, 2·D\] for all.
    Split {
        /// \[B, Sq, D\].
        q: &'a B::Tensor,
        /// \[B, S, 2·D\]: keys, values.
        kv: &'a B::Tensor,
    },
}

/// Where the gradients of an [`AttentionInput`] go; the same shapes.
pub enum AttentionGradient<'a, B: Memory> {
    /// For [`AttentionInput::Packed`]: dq, dk, dv side by side.
    Packed(&'a mut B::Tensor),
    /// For [`AttentionInput::Split`].
    Split {
        /// \[B, Sq, D\].
        dq: &'a mut B::Tensor,
        /// \[B, S, 2·D\]: dk, dv.
        dkv: &'a mut B::Tensor,
    },
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Heads; they divide D.
    pub heads: usize,
    /// A query sees no key after its own position.
    pub causal: bool,
}

/// Extents of one attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionExtents {
    /// B.
    pub batch: usize,
    /// Sq.
    pub queries: usize,
    /// S.
    pub keys: usize,
    /// D, the width of all heads together.
    pub width: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head: usize,
    /// See [`AttentionShape`].
    pub causal: bool,
}

impl AttentionExtents {
    /// Checks the shapes of `input` and reads the extents from them.
    pub(super) fn of<B: Memory>(
        op: &'static str,
        input: &AttentionInput<'_, B>,
        shape: AttentionShape,
    ) -> Result<Self> {
        let invalid = |problem: String| Err(BackendError::Invalid { op, problem });
        let (batch, queries, keys, width) = match input {
            AttentionInput::Packed(qkv) => match *qkv.shape().dims() {
                [batch, s, width] if width % 3 == 0 => (batch, s, s, width / 3),
                _ => return invalid(format!("qkv {} is not [B, S, 3·D]", qkv.shape())),
            },
            AttentionInput::Split { q, kv } => match (q.shape().dims(), kv.shape().dims()) {
                (&[batch, sq, width], &[same, s, double]) if batch == same && double == 2 * width => {
                    (batch, sq, s, width)
                }
                _ => {
                    let (q, kv) = (q.shape(), kv.shape());
                    return invalid(format!("q {q} and kv {kv} are not [B, Sq, D] and [B, S, 2·D]"));
                }
            },
        };
        let AttentionShape { heads, causal } = shape;
        if heads == 0 || width == 0 || width % heads != 0 {
            return invalid(format!("{heads} heads do not divide a width of {width}"));
        }
        if causal && matches!(input, AttentionInput::Split { .. }) {
            return invalid("a causal mask needs packed queries, keys and values".into());
        }
        if keys == 0 {
            return invalid("there are no keys".into());
        }
        Ok(AttentionExtents { batch, queries, keys, width, heads, head: width / heads, causal })
    }

    /// The shape of o.
    fn o(&self) -> [usize; 3] {
        [self.batch, self.queries, self.width]
    }
}

impl<B: Memory> AttentionGradient<'_, B> {
    /// Checks that it has the shapes of `input`.
    fn expect(&self, op: &'static str, input: &AttentionInput<'_, B>) -> Result<()> {
        match (self, input) {
            (AttentionGradient::Packed(dqkv), AttentionInput::Packed(qkv)) => {
                expect_shape(op, "dqkv", qkv.shape(), dqkv.shape())
            }
            (AttentionGradient::Split { dq, dkv }, AttentionInput::Split { q, kv }) => {
                expect_shape(op, "dq", q.shape(), dq.shape())?;
                expect_shape(op, "dkv", kv.shape(), dkv.shape())
            }
            _ => {
                let problem = "input and gradient must both be packed or both be split".into();
                Err(BackendError::Invalid { op, problem })
            }
        }
    }
}

/// Arguments of [`AttentionOp::attention_backward`].
pub struct AttentionBackward<'a, B: Memory> {
    /// Gradient of o \[B, Sq, D\].
    pub d_o: &'a B::Tensor,
    /// What [`AttentionOp::attention`] gave \[B, Sq, D\].
    pub o: &'a B::Tensor,
    /// Queries, keys and values.
    pub input: AttentionInput<'a, B>,
    /// As in the forward pass.
    pub shape: AttentionShape,
    /// What the forward pass kept.
    pub saved: &'a B::Tensor,
    /// Of the shape of `saved`.
    pub scratch: &'a mut B::Tensor,
    /// Of the input.
    pub gradient: AttentionGradient<'a, B>,
}

/// Scaled dot-product attention.
pub trait AttentionOp: Memory {
    /// Per head: o = softmax(q·kᵀ/√d)·v; `o` \[B, Sq, D\]. A causal mask needs packed input.
    fn attention(
        &self,
        input: AttentionInput<'_, Self>,
        shape: AttentionShape,
        saved: &mut Self::Tensor,
        o: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "attention";
        let e = AttentionExtents::of(OP, &input, shape)?;
        let kept = self.attention_saved(e.batch, e.heads, e.queries, e.keys);
        expect_shape(OP, "saved", kept, saved.shape())?;
        expect_shape(OP, "o", e.o(), o.shape())?;
        Self::attention_checked(Checked(self), input, e, saved, o)
    }

    /// With P = softmax(q·kᵀ/√d): dv = Pᵀ·do, dS = P∘(dP − rowsum(dP∘P))/√d where dP = do·vᵀ,
    /// dq = dS·k, dk = dSᵀ·q. With o at hand, rowsum(dP∘P) = rowsum(do∘o).
    fn attention_backward(&self, args: AttentionBackward<'_, Self>) -> Result<()> {
        const OP: &str = "attention_backward";
        let e = AttentionExtents::of(OP, &args.input, args.shape)?;
        let kept = self.attention_saved(e.batch, e.heads, e.queries, e.keys);
        expect_shape(OP, "do", e.o(), args.d_o.shape())?;
        expect_shape(OP, "o", e.o(), args.o.shape())?;
        expect_shape(OP, "saved", kept, args.saved.shape())?;
        expect_shape(OP, "scratch", kept, args.scratch.shape())?;
        args.gradient.expect(OP, &args.input)?;
        Self::attention_backward_checked(Checked(self), args, e)
    }

    /// [`Self::attention`] of what was checked.
    fn attention_checked(
        device: Checked<'_, Self>,
        input: AttentionInput<'_, Self>,
        e: AttentionExtents,
        saved: &mut Self::Tensor,
        o: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::attention_backward`] of what was checked.
    fn attention_backward_checked(
        device: Checked<'_, Self>,
        args: AttentionBackward<'_, Self>,
        e: AttentionExtents,
    ) -> Result<()>;

    /// Shape of what [`AttentionOp::attention`] keeps for its backward pass, and of the scratch memory there;
    /// both in the parameter dtype.
    fn attention_saved(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> Shape;
}
