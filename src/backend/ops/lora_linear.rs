//! Frozen linear layers with low-rank updates.

use super::*;

/// Low-rank updates beside a linear layer. `a` \[n·r, in\] stacks the A of n parts, `b` \[n, out, r\] their B;
/// part i adds `scale·(x·Aᵢᵀ)·Bᵢᵀ` to the `out` columns of y from `columns[i]` on.
pub struct Lora<'a, B: Memory> {
    /// A, in the parameter dtype.
    pub a: &'a B::Tensor,
    /// B, in the parameter dtype.
    pub b: &'a B::Tensor,
    /// One for each of the n parts.
    pub columns: &'a [usize],
    /// α/r, or α/√r for rank-stabilised LoRA.
    pub scale: f64,
}

/// A layer whose adapters a training step moves.
pub struct LoraSite<'a, B: Memory> {
    /// Rows of its input.
    pub rows: usize,
    /// The layer.
    pub layer: &'a Linear<B>,
    /// Adapters of it.
    pub lora: Lora<'a, B>,
}

impl<B: Memory> Lora<'_, B> {
    /// Columns of u: the ranks of all parts side by side; after its shapes were compared with the inputs of its layer.
    pub(super) fn width(&self, op: &'static str, inputs: usize) -> Result<usize> {
        let (count, shape) = (self.columns.len(), self.b.shape());
        let &[_, outputs, rank] = shape.dims() else {
            let problem = format!("b is {shape}, expected [parts, outputs, rank]");
            return Err(BackendError::Invalid { op, problem });
        };
        expect_shape(op, "b", [count, outputs, rank], shape)?;
        expect_shape(op, "a", [count * rank, inputs], self.a.shape())?;
        Ok(count * rank)
    }
}

/// Arguments of [`LoraLinearOp::lora_linear`].
pub struct LoraLinear<'a, B: Memory> {
    /// Input \[…, in\].
    pub x: &'a B::Tensor,
    /// What the adapters see in its place.
    pub seen: Option<&'a B::Tensor>,
    /// The frozen layer.
    pub layer: &'a Linear<B>,
    /// Its adapters.
    pub lora: Lora<'a, B>,
    /// Added to the output, of its shape.
    pub residual: Option<&'a B::Tensor>,
    /// x̃·Aᵀ \[…, n·r\], for the backward pass.
    pub u: &'a mut B::Tensor,
    /// Output \[…, out\].
    pub y: &'a mut B::Tensor,
}

/// Arguments of [`LoraLinearOp::lora_linear_backward`].
pub struct LoraLinearBackward<'a, B: Memory> {
    /// Gradient of the output \[…, out\].
    pub dy: &'a B::Tensor,
    /// What the adapters saw \[…, in\], x̃.
    pub x: &'a B::Tensor,
    /// What made it out of the input.
    pub dropout: Option<Dropout<'a, B>>,
    /// As the forward pass left it.
    pub u: &'a B::Tensor,
    /// The frozen layer.
    pub layer: &'a Linear<B>,
    /// Its adapters.
    pub lora: Lora<'a, B>,
    /// Scratch, of the shape of `u`.
    pub du: &'a mut B::Tensor,
    /// Gradient of A.
    pub da: &'a mut B::Tensor,
    /// Gradient of B.
    pub db: &'a mut B::Tensor,
    /// Gradient of the input \[…, in\].
    pub dx: Option<&'a mut B::Tensor>,
}

/// Frozen linear layers with low-rank updates beside them or in them.
pub trait LoraLinearOp: Memory {
    /// y = x·Wᵀ + b + scale·(x̃·Aᵀ)·Bᵀ (+ residual). The adapters see x̃ = `seen` in the place of x where it is given.
    fn lora_linear(&self, args: LoraLinear<'_, Self>) -> Result<()> {
        const OP: &str = "lora_linear";
        let (rows, inputs) = args.x.shape().matrix();
        expect_layer(self, OP, args.layer, inputs, args.y.shape().columns())?;
        expect_output::<Self>(OP, args.x, args.residual, args.y)?;
        expect_matrix(OP, "u", rows, args.lora.width(OP, inputs)?, args.u.shape())?;
        if let Some(seen) = args.seen {
            expect_matrix(OP, "seen", rows, inputs, seen.shape())?;
        }
        Self::lora_linear_checked(Checked(self), args)
    }

    /// du = scale·dy·B, dA = duᵀ·x̃, dB = scale·dyᵀ·u, and where the input's gradient is wanted
    /// dx = dy·W + du·A. Where the adapters saw `dropout` of the input, du·A goes through its mask.
    fn lora_linear_backward(&self, args: LoraLinearBackward<'_, Self>) -> Result<()> {
        const OP: &str = "lora_linear_backward";
        let ((rows, inputs), (_, outputs)) = (args.x.shape().matrix(), args.dy.shape().matrix());
        let width = args.lora.width(OP, inputs)?;
        expect_layer(self, OP, args.layer, inputs, outputs)?;
        expect_matrix(OP, "dy", rows, outputs, args.dy.shape())?;
        expect_matrix(OP, "u", rows, width, args.u.shape())?;
        expect_matrix(OP, "du", rows, width, args.du.shape())?;
        expect_shape(OP, "da", args.lora.a.shape(), args.da.shape())?;
        expect_shape(OP, "db", args.lora.b.shape(), args.db.shape())?;
        if let Some(dx) = &args.dx {
            expect_matrix(OP, "dx", rows, inputs, dx.shape())?;
        }
        args.dropout.map_or(Ok(()), |dropout| dropout.expect(OP))?;
        Self::lora_linear_backward_checked(Checked(self), args)
    }

    /// [`Self::lora_linear`] of what was checked.
    fn lora_linear_checked(device: Checked<'_, Self>, args: LoraLinear<'_, Self>) -> Result<()>;

    /// [`Self::lora_linear_backward`] of what was checked.
    fn lora_linear_backward_checked(
        device: Checked<'_, Self>,
        args: LoraLinearBackward<'_, Self>,
    ) -> Result<()>;

    /// Whether training steps can fold adapters without dropout into copies of the weights at their start, and compute
    /// the gradients of all of them together at their end ([`LoraGradientsOp::lora_gradients`]), in the place of
    /// [`LoraLinearOp::lora_linear`] and its backward pass for each layer.
    fn can_train_folded(&self) -> bool {
        false
    }

    /// Whether training steps of `layers` do so: where they can, and it is faster.
    fn trains_folded(&self, _layers: &[LoraSite<'_, Self>]) -> Result<bool> {
        Ok(false)
    }
}
