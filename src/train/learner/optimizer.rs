//! AdamW with its state on the device.

use super::{LearnerSpec, MicroBatch};
use crate::backend::{
    AdamwStep, AdamwTensor, Backend, BackendError, Control, DeviceTensor, LossScaling, Result,
};
use crate::optim::{Adamw, Rates};
use crate::tensor::Tensor;
use crate::tune::{Param, Place, add_up};

/// AdamW over all that is trained, and the numbers that it keeps on the device.
pub(super) struct Optimizer<B: Backend> {
    /// Whether there is memory for gradients and moments.
    pub exists: bool,
    adamw: Adamw,
    scaling: Option<LossScaling>,
    clip: Option<f64>,
    rates: Option<Rates>,
    /// See [`Control`].
    pub control: B::Tensor,
    /// Gradients over the micro-batches of a step so far; empty where a step is one batch.
    sums: Vec<B::Tensor>,
    /// Training steps so far, skipped ones included.
    pub steps: u64,
}

impl<B: Backend> Optimizer<B> {
    pub fn new(backend: &B, spec: &LearnerSpec, params: &[&Param<B>]) -> Result<Self> {
        let parameter = backend.parameter_dtype();
        let sum = |param: &&Param<B>| backend.empty(param.value.shape(), parameter);
        let summed = if spec.accumulate { params } else { &[] };
        let control = Tensor::from_slice([Control::COUNT], &Control::start(spec.scaling))?;
        Ok(Optimizer {
            exists: spec.trains,
            adamw: spec.adamw,
            scaling: spec.scaling,
            clip: spec.clip,
            rates: None,
            control: backend.upload(control.view(), parameter)?,
            sums: summed.iter().map(sum).collect::<Result<_>>()?,
            steps: 0,
        })
    }

    /// Back to before the first step.
    pub fn restart(&mut self, backend: &B) -> Result<()> {
        self.steps = 0;
        let control = Tensor::from_slice([Control::COUNT], &Control::start(self.scaling))?;
        backend.copy_from_host(control.view(), &mut self.control)
    }

    /// The loss scale, where the loss is scaled.
    pub fn control(&self) -> Option<&B::Tensor> {
        self.scaling.is_some().then_some(&self.control)
    }

    /// Prepares a micro-batch of a step. Returns whether the rates, which captured steps hold, are others than before.
    pub fn begin(&mut self, micro: MicroBatch, rates: &Rates) -> Result<bool> {
        if micro.place != Place::Alone && self.sums.is_empty() {
            let problem = "steps of several batches need a learner that was made for them".into();
            return Err(BackendError::Invalid { op: "train", problem });
        }
        let others = self.rates.replace(*rates) != Some(*rates);
        self.steps += u64::from(micro.place.completes());
        Ok(others)
    }

    /// Adds up the gradients of a micro-batch, and moves `params`, at `factor` \[1\] times the rates, where they complete
    /// the step.
    pub fn update(
        &mut self,
        backend: &B,
        mut params: Vec<&mut Param<B>>,
        (place, factor): (Place, &B::Tensor),
        stats: &mut B::Tensor,
    ) -> Result<()> {
        add_up(backend, params.iter_mut().map(|p| &mut p.gradient), &mut self.sums, place)?;
        if !place.completes() {
            return Ok(());
        }
        let Some(rates) = self.rates else {
            let problem = "no learning rates were given".into();
            return Err(BackendError::Invalid { op: "adamw", problem });
        };
        let step = AdamwStep {
            beta1: self.adamw.beta1,
            beta2: self.adamw.beta2,
            eps: self.adamw.eps,
            scaling: self.scaling,
            clip: self.clip,
            factor,
            control: &mut self.control,
        };
        let mut tensors: Vec<AdamwTensor<'_, B>> = params
            .into_iter()
            .map(|p| {
                let rate = rates.of(p.group);
                AdamwTensor {
                    value: &mut p.value,
                    gradient: &p.gradient,
                    first_moment: &mut p.first_moment,
                    second_moment: &mut p.second_moment,
                    learning_rate: rate.learning_rate,
                    weight_decay: rate.weight_decay,
                    scale: p.scale,
                }
            })
            .collect();
        backend.adamw(&mut tensors, step, stats)
    }
}
