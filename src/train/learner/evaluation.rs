//! Evaluation of a batch: adapters folded into the weights, no dropout, no mixing.

use super::{Input, Learner, Outputs, Work, classifier};
use crate::backend::{Backend, BackendError, Result, Targets};
use crate::tensor::{DType, View};
use crate::train::metrics::Accumulator;
use crate::tune::{BlockLayers, TowerTuning};

/// State of the towers in an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// The towers with the adapters and the prompts.
    Tuned,
    /// The towers as they were before training.
    Frozen,
}

impl<B: Backend> Learner<B> {
    /// Evaluates a batch; adapters are folded into the weights unless the compute type is bf16. Does not wait for the
    /// device.
    pub fn evaluate(&mut self, input: Input<'_>, labels: &[u32], which: Which) -> Result<()> {
        self.make_room(input, labels)?;
        self.buffers.load_plain(&self.backend, input, labels)?;
        if which == Which::Tuned {
            self.refresh()?;
        }
        self.run(Work::Evaluate { on_features: input.is_features(), which })
    }

    /// Features of plain CLIP for crops u32 \[n, 5\] of images u8 \[n, H, H, 3\], for [`Learner::features`]. Does not wait
    /// for the device.
    ///
    /// # Errors
    /// A learner that was made for no crops.
    pub(crate) fn embed_crops(&mut self, images: Input<'_>, crops: View<'_>, labels: &[u32]) -> Result<()> {
        self.make_room(images, labels)?;
        let (backend, buffers) = (&self.backend, &mut *self.buffers);
        let Some(to) = &mut buffers.crops else {
            let problem = "the learner was made for no crops".into();
            return Err(BackendError::Invalid { op: "crop_resize", problem });
        };
        backend.feed(vec![(images.source(), &mut to.images), (crops.into(), &mut to.rectangles)])?;
        backend.crop_resize(&to.images, &to.rectangles, &mut buffers.pixels)?;
        let a = &mut self.activations;
        self.tower.infer(backend, &buffers.pixels, None, TowerTuning::NONE, a)
    }

    /// Brings what evaluation uses up to date with the trained tensors: folded weights, class features, and
    /// the head that mirrors these.
    pub fn refresh(&mut self) -> Result<()> {
        if self.evaluation_is_current {
            return Ok(());
        }
        let (backend, trained) = (&self.backend, &mut self.trained);
        BlockLayers::fold(backend, &mut trained.lora)?;
        if let Some(t) = &mut self.text_tuning {
            BlockLayers::fold(backend, &mut trained.text_lora)?;
            t.tower.infer(backend, &trained.text_lora, &mut t.activations, &mut t.features)?;
        }
        if !trained.head.trained {
            let text = self.text_tuning.as_ref().map_or(&self.text, |t| &t.features);
            let mut weight = backend.download(text)?.view().to_tensor(DType::F64)?;
            weight.typed_mut::<f64>()?.iter_mut().for_each(|w| *w *= self.text_scale);
            backend.copy_from_host(weight.view(), &mut trained.head.weight.value)?;
            backend.clear(&mut trained.head.bias.value)?;
        }
        self.evaluation_is_current = true;
        Ok(())
    }

    /// For the results of a split.
    pub(crate) fn accumulator(&self) -> Accumulator {
        Accumulator::new(self.classes(), self.objective.evaluation())
    }

    pub(super) fn evaluation(&mut self, on_features: bool, which: Which) -> Result<()> {
        let tuned = which == Which::Tuned;
        if !on_features {
            let tuning = if tuned { self.trained.tower() } else { TowerTuning::NONE };
            let (pixels, a) = (&self.buffers.pixels, &mut self.activations);
            self.tower.infer(&self.backend, pixels, None, tuning, a)?;
        }
        let text = self.text_tuning.as_ref().filter(|_| tuned).map_or(&self.text, |t| &t.features);
        let classifier = classifier(&self.trained.head, text, self.text_scale);
        let targets = Targets::of(&self.buffers.labels);
        let Outputs { head_logits, text_logits, stats, .. } = &mut self.outputs;
        let features = self.buffers.features.or(&self.activations.ends.features);
        self.backend.head_loss(features, classifier, targets, head_logits, text_logits, stats)
    }
}
