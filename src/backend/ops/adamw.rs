//! AdamW over all trained tensors, loss scaling and clipping.

use super::*;

/// Positions in the vector that the optimizer keeps on the device from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Steps that moved the trained tensors.
    Steps = 0,
    /// The loss scale of the next step.
    LossScale = 1,
    /// Good steps since the scale last changed.
    GoodSteps = 2,
}

impl Control {
    /// Length of the vector.
    pub const COUNT: usize = 3;

    /// The vector before the first step.
    pub fn start(scaling: Option<LossScaling>) -> [f32; Control::COUNT] {
        [0.0, scaling.map_or(1.0, |s| s.start as f32), 0.0]
    }
}

/// Dynamic loss scaling as in `torch.amp.GradScaler`: gradients are computed `scale` times too large, so
/// that small ones survive f16; a step with a gradient that is not finite is skipped and the scale reduced,
/// after `interval` good steps in a row it grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScaling {
    /// The scale of the first step; 65536 by default.
    pub start: f64,
    /// Factor by which the scale grows; 2 by default.
    pub growth: f64,
    /// Factor on the scale after a step that was skipped; 0.5 by default.
    pub backoff: f64,
    /// Good steps in a row after which the scale grows; 2000 by default.
    pub interval: u32,
}

impl Default for LossScaling {
    fn default() -> Self {
        LossScaling { start: 65536.0, growth: 2.0, backoff: 0.5, interval: 2000 }
    }
}

/// One trained tensor as the optimizer sees it; all of one shape. The learning rate is the one before the
/// schedule's factor.
pub struct AdamwTensor<'a, B: Memory> {
    /// The trained tensor; like the other three in the parameter dtype.
    pub value: &'a mut B::Tensor,
    /// Gradient of the loss; with loss scaling, that gradient times the loss scale.
    pub gradient: &'a B::Tensor,
    /// m, the running mean of the gradients; zero before the first step.
    pub first_moment: &'a mut B::Tensor,
    /// v, the running mean of the squared gradients; zero before the first step.
    pub second_moment: &'a mut B::Tensor,
    /// η.
    pub learning_rate: f64,
    /// λ: a step multiplies the value by 1 − η·λ, schedule included.
    pub weight_decay: f64,
    /// c, above 0: AdamW moves value/c, whose gradient is c times that of the value. 1 is plain AdamW.
    pub scale: f64,
}

/// The constants of AdamW and of loss scaling, and where the optimizer keeps its state.
pub struct AdamwStep<'a, B: Memory> {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε, added to the root of the corrected v.
    pub eps: f64,
    /// None where the gradients are those of the loss itself; no step is skipped then.
    pub scaling: Option<LossScaling>,
    /// The greatest length of all gradients as one vector: longer ones are multiplied by clip/(length +
    /// 1e-6), as `torch.nn.utils.clip_grad_norm_` does.
    pub clip: Option<f64>,
    /// The schedule's factor on all learning rates \[1\].
    pub factor: &'a B::Tensor,
    /// See [`Control`].
    pub control: &'a mut B::Tensor,
}

/// The optimizer.
pub trait AdamwOp: Memory {
    /// AdamW with decoupled decay and bias correction as in `torch.optim.AdamW`, over all trained tensors.
    /// With loss scaling the gradients are divided by the scale first, and [`LossScaling`] says what
    /// happens when one is not finite. Gradient norm, scale and skip go to `stats`.
    fn adamw(
        &self,
        tensors: &mut [AdamwTensor<'_, Self>],
        step: AdamwStep<'_, Self>,
        stats: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "adamw";
        expect_shape(OP, "control", [Control::COUNT], step.control.shape())?;
        expect_shape(OP, "factor", [1], step.factor.shape())?;
        expect_shape(OP, "stats", [Stat::COUNT], stats.shape())?;
        for tensor in tensors.iter() {
            let shape = tensor.value.shape();
            expect_shape(OP, "gradient", shape, tensor.gradient.shape())?;
            expect_shape(OP, "first moment", shape, tensor.first_moment.shape())?;
            expect_shape(OP, "second moment", shape, tensor.second_moment.shape())?;
        }
        Self::adamw_checked(Checked(self), tensors, step, stats)
    }

    /// [`Self::adamw`] of what was checked.
    fn adamw_checked(
        device: Checked<'_, Self>,
        tensors: &mut [AdamwTensor<'_, Self>],
        step: AdamwStep<'_, Self>,
        stats: &mut Self::Tensor,
    ) -> Result<()>;
}

/// Checks the vector that holds the loss scale, where there is one.
pub(super) fn expect_control<B: Memory>(op: &'static str, control: Option<&B::Tensor>) -> Result<()> {
    control.map_or(Ok(()), |control| expect_shape(op, "control", [Control::COUNT], control.shape()))
}
