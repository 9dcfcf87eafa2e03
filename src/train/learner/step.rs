//! A training step, from top to bottom: batch, forward, loss, backward, update.

use super::batch::{BatchBuffers, counting};
use super::{Batch, Learner, MicroBatch, Triplets, Work, classifier};
use crate::backend::{Backend, BackendError, Classifier, HeadLossBackward, LossWeights, Result, Targets};
use crate::objective::MixOn;
use crate::optim::Rates;
use crate::tune::{BlockLayers, TowerTuning, Trained};

impl<B: Backend> Learner<B> {
    /// One step of one batch at `factor` times `rates`. Does not wait for the device.
    pub fn train_step(&mut self, batch: Batch<'_>, rates: &Rates, factor: f64) -> Result<()> {
        self.train(batch, MicroBatch::ALONE, rates, factor)
    }

    /// One micro-batch of a step: forward and backward; the optimizer where it completes the step. Does not wait for
    /// the device.
    ///
    /// # Errors
    /// Features in the place of images for a learner that trains something in the vision tower, or mixes or crops
    /// pixels.
    pub fn train(&mut self, batch: Batch<'_>, micro: MicroBatch, rates: &Rates, factor: f64) -> Result<()> {
        self.load(batch, factor)?;
        if self.optimizer.begin(micro, rates)? {
            self.graphs.forget(|(work, _)| matches!(work, Work::Train { .. }));
        }
        self.evaluation_is_current = false;
        let (on_features, MicroBatch { place, share }) = (batch.input.is_features(), micro);
        self.run(Work::Train { on_features, place, share: share.to_bits() })
    }

    /// Forward and backward only: afterwards every trained tensor holds its gradient, times the loss scale
    /// where there is one.
    pub fn gradients(&mut self, batch: Batch<'_>) -> Result<()> {
        self.load(batch, 1.0)?;
        self.forward()?;
        self.loss_forward()?;
        self.backward(1.0)
    }

    /// The loss of a batch as training computes it; no gradients.
    pub fn loss(&mut self, batch: Batch<'_>) -> Result<f64> {
        self.load(batch, 1.0)?;
        self.forward()?;
        self.loss_forward()?;
        Ok(self.stats()?.loss)
    }

    pub(super) fn training_step(&mut self, on_features: bool, micro: MicroBatch) -> Result<()> {
        if !on_features {
            self.forward()?;
        }
        self.loss_forward()?;
        self.backward(micro.share)?;
        let (params, stats) = (self.trained.params_mut(), &mut self.outputs.stats);
        self.optimizer.update(&self.backend, params, (micro.place, &self.buffers.factor), stats)
    }

    /// Uploads a batch to train on, at `factor` times the learning rates.
    fn load(&mut self, batch: Batch<'_>, factor: f64) -> Result<()> {
        if !self.optimizer.exists {
            let problem = "the learner was made for evaluation alone".into();
            return Err(BackendError::Invalid { op: "train", problem });
        }
        let in_pixels = self.buffers.pixel_mix().is_some() || batch.crops.is_some();
        if batch.input.is_features() && (in_pixels || !self.trained.tower().is_none()) {
            let problem = "the vision tower is trained, or pixels are mixed or cropped: features do not stand for images";
            return Err(BackendError::Invalid { op: "train", problem: problem.into() });
        }
        self.make_room(batch.input, batch.labels)?;
        self.buffers.load(&self.backend, batch, factor)
    }

    /// From pixels to features; where nothing in the tower is trained, no activation is kept.
    fn forward(&mut self) -> Result<()> {
        let (backend, buffers, a) = (&self.backend, &mut *self.buffers, &mut self.activations);
        if let Some(crops) = &buffers.crops {
            backend.crop_resize(&crops.images, &crops.rectangles, &mut buffers.pixels)?;
        }
        let (pixels, mix) = (&buffers.pixels, buffers.pixel_mix());
        if self.trained.tower().is_none() {
            return self.tower.infer(backend, pixels, mix, TowerTuning::NONE, a);
        }
        if a.trains_folded() {
            BlockLayers::fold(backend, &mut self.trained.lora)?;
        }
        let tuning = TowerTuning { dropout: buffers.dropout(), ..self.trained.tower() };
        self.tower.forward(backend, pixels, mix, tuning, a)
    }

    /// From features to logits and losses.
    fn loss_forward(&mut self) -> Result<()> {
        let (backend, dropout) = (&self.backend, self.buffers.dropout());
        if let Some(t) = &mut self.text_tuning {
            let lora = &self.trained.text_lora;
            t.tower.forward(backend, lora, dropout, &mut t.activations, &mut t.features)?;
            // Evaluation has its class features, without dropout, in the same place.
            self.evaluation_is_current = false;
        }
        let BatchBuffers { mixing, labels, class_weights, features, .. } = &mut *self.buffers;
        let own = features.or(&self.activations.ends.features);
        let (features, mix) = match mixing {
            Some(m) if m.on == MixOn::Features => {
                backend.mix_rows(own, &m.mix, &mut m.features)?;
                (&m.features, Some(&m.mix))
            }
            mixing => (own, mixing.as_ref().map(|m| &m.mix)),
        };
        let targets = Targets { labels, mix, counting: counting(self.objective, class_weights.as_ref()) };
        let out = &mut self.outputs;
        let text = self.text_tuning.as_ref().map_or(&self.text, |t| &t.features);
        let classifier = classifier(&self.trained.head, text, self.text_scale);
        let (head, text) = (&mut out.head_logits, &mut out.text_logits);
        backend.head_loss(features, classifier, targets, head, text, &mut out.stats)?;
        if let Some(Triplets { pairs, distances }) = &mut out.triplets {
            let margin = self.objective.margin;
            backend.triplet(own, labels, margin, pairs, distances, &mut out.stats)?;
        }
        Ok(())
    }

    /// From the losses to the gradients of everything that is trained, times `share`.
    fn backward(&mut self, share: f64) -> Result<()> {
        let in_tower = !self.trained.tower().is_none();
        let weights = self.objective.weights();
        let weights = LossWeights { head: weights.head * share, text: weights.text * share };
        let (backend, control) = (&self.backend, self.optimizer.control());
        let (a, out) = (&mut self.activations, &mut self.outputs);
        let Trained { head, lora, text_lora, prompts } = &mut self.trained;
        let (text, d_text) = match &mut self.text_tuning {
            Some(t) => (&t.features, Some(&mut t.d_features)),
            None => (&self.text, None),
        };
        let (weight, bias) = (&head.weight.value, &head.bias.value);
        let classifier = Classifier { weight, bias, text, text_scale: self.text_scale };
        let BatchBuffers { mixing, labels, class_weights, features, .. } = &mut *self.buffers;
        let (features, d_features, mix) = match mixing {
            Some(m) if m.on == MixOn::Features => (&m.features, &mut m.d_features, Some(&m.mix)),
            mixing => {
                (features.or(&a.ends.features), &mut a.d_ends.features, mixing.as_ref().map(|m| &m.mix))
            }
        };
        let targets = Targets { labels, mix, counting: counting(self.objective, class_weights.as_ref()) };
        backend.head_loss_backward(HeadLossBackward {
            f: features,
            classifier,
            targets,
            weights,
            control,
            head: &mut out.head_logits,
            text: &mut out.text_logits,
            d_weight: &mut head.weight.gradient,
            d_bias: &mut head.bias.gradient,
            df: in_tower.then_some(d_features),
            d_text,
        })?;
        let dropout = self.buffers.dropout();
        if let Some(t) = &mut self.text_tuning {
            t.tower.backward(backend, text_lora, dropout, &mut t.activations, &t.d_features)?;
        }
        if !in_tower {
            return Ok(());
        }
        if let Some(m) = self.buffers.mixing.as_ref().filter(|m| m.on == MixOn::Features) {
            backend.mix_rows_backward(&m.d_features, &m.mix, &mut a.d_ends.features)?;
        }
        if let Some(Triplets { pairs, distances }) = &out.triplets {
            let weight = self.objective.triplet * share;
            let (f, df) = (&a.ends.features, &mut a.d_ends.features);
            backend.triplet_backward(f, pairs, distances, weight, control, df)?;
        }
        self.tower.backward(backend, lora, prompts.as_mut(), dropout, a)
    }
}
