//! Model, adapters, head and optimizer together: one training step, one evaluation batch.

use crate::backend::{
    AdamwStep, AdamwTensor, Backend, BackendError, Classifier, Control, DeviceTensor, LossScaling, Result,
    Stat, Targets,
};
use crate::clip::block::FoldedBlock;
use crate::clip::vision::{Purpose, VisionActivations, VisionTower};
use crate::objective::Objective;
use crate::optim::{Adamw, Rates};
use crate::tensor::{DType, Shape, Tensor, TensorError, View};
use crate::tune::{BlockLora, Head, Param};
use std::collections::HashMap;

/// Class features of the text tower and the scale of their logits.
pub struct TextClassifier {
    /// T \[C, E\], rows normalised.
    pub features: Tensor,
    /// exp(logit_scale).
    pub scale: f64,
}

/// Everything that is fixed before the first step.
pub struct LearnerSpec {
    /// Images per batch at the most.
    pub batch: usize,
    /// Shape of one image as it is handed in: \[S, S, 3\] for u8, \[3, S, S\] for numbers.
    pub image: Shape,
    pub image_dtype: DType,
    pub objective: Objective,
    pub adamw: Adamw,
    pub purpose: Purpose,
    /// For f16; the other types need none.
    pub scaling: Option<LossScaling>,
}

/// Loss scaling as the backend's number type needs it.
pub fn loss_scaling<B: Backend>(backend: &B) -> Option<LossScaling> {
    (backend.compute_dtype() == DType::F16).then(LossScaling::default)
}

/// What one batch left behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    pub loss: f64,
    pub loss_head: f64,
    pub loss_text: f64,
    pub correct: u64,
    pub text_correct: u64,
    /// Length of all gradients as one vector.
    pub grad_norm: f64,
    /// What the loss was multiplied with for the backward pass.
    pub loss_scale: f64,
    /// True where a gradient was not finite and loss scaling left the trained tensors alone.
    pub skipped: bool,
}

/// The numbers of a step, on their way from the device.
pub struct PendingStats<B: Backend> {
    pending: B::Pending,
    objective: Objective,
}

impl<B: Backend> PendingStats<B> {
    /// The numbers, if they are here; `wait` until they are.
    pub fn arrived(&mut self, backend: &B, wait: bool) -> Result<Option<StepStats>> {
        let stats = backend.arrived(&mut self.pending, wait)?;
        stats.map(|stats| StepStats::from_tensor(&stats, self.objective)).transpose()
    }
}

impl StepStats {
    fn from_tensor(stats: &Tensor, objective: Objective) -> Result<Self> {
        let stats = stats.view().to_tensor(DType::F64)?;
        let stats = stats.typed::<f64>()?;
        let at = |stat: Stat| stats[stat as usize];
        let (loss_head, loss_text) = (at(Stat::LossHead), at(Stat::LossText));
        Ok(StepStats {
            loss: objective.total(loss_head, loss_text),
            loss_head,
            loss_text,
            correct: at(Stat::Correct) as u64,
            text_correct: at(Stat::TextCorrect) as u64,
            grad_norm: at(Stat::GradientSquared).sqrt(),
            loss_scale: at(Stat::LossScale),
            skipped: at(Stat::Skipped) != 0.0,
        })
    }
}

/// What is run on a batch, and recorded where the backend records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    /// Forward, backward, optimizer.
    Train,
    /// Evaluation with the adapters folded into the weights.
    Tuned,
    /// Evaluation without adapters.
    Frozen,
}

/// The frozen tower with what is trained on it. All memory is allocated by [`Learner::new`].
pub struct Learner<B: Backend> {
    backend: B,
    tower: VisionTower<B>,
    lora: Vec<BlockLora<B>>,
    head: Head<B>,
    /// The adapters folded into the weights, and whether that is up to date.
    folded: Vec<FoldedBlock<B>>,
    folded_is_current: bool,
    text: B::Tensor,
    text_scale: f64,
    activations: VisionActivations<B>,
    pixels: B::Tensor,
    labels: B::Tensor,
    head_logits: B::Tensor,
    text_logits: B::Tensor,
    stats: B::Tensor,
    /// See [`Control`].
    control: B::Tensor,
    /// The schedule's factor \[1\], and its value.
    factor: B::Tensor,
    factor_value: f64,
    rates: Option<Rates>,
    scaling: Option<LossScaling>,
    objective: Objective,
    adamw: Adamw,
    steps: u64,
    /// What has run so far for a number of images; recorded when it runs for the second time, because the
    /// first time may choose algorithms and allocate.
    recordings: HashMap<(Work, usize), Option<B::Recording>>,
    recording: bool,
}

impl<B: Backend> Learner<B> {
    /// `lora` is empty when the tower stays as it is and only the head trains.
    pub fn new(
        backend: B,
        tower: VisionTower<B>,
        lora: Vec<BlockLora<B>>,
        head: Head<B>,
        text: &TextClassifier,
        spec: &LearnerSpec,
    ) -> Result<Self> {
        let (compute, master) = (backend.compute_dtype(), backend.master_dtype());
        let classes = head.bias.value.shape().rows();
        let batch = spec.batch;
        let activations = VisionActivations::new(&backend, &tower, batch, &lora, spec.purpose)?;
        let folded = tower.folded(&backend, &lora)?;
        let pixel_dtype = if spec.image_dtype == DType::U8 { DType::U8 } else { compute };
        let image = spec.image.dims();
        let [a, b, c] = [0, 1, 2].map(|i| image.get(i).copied().unwrap_or(1));
        let pixels = backend.zeros([batch, a, b, c], pixel_dtype)?;
        let labels = backend.zeros([batch], DType::U32)?;
        let head_logits = backend.empty([batch, classes], master)?;
        let text_logits = backend.empty([batch, classes], master)?;
        let stats = backend.zeros([Stat::COUNT], master)?;
        let text_features = backend.upload(text.features.view(), master)?;
        let control = Tensor::from_slice([Control::COUNT], &Control::start(spec.scaling))?;
        let control = backend.upload(control.view(), master)?;
        let factor = backend.upload(Tensor::from_slice([1], &[1.0f32])?.view(), master)?;
        let recording = backend.can_record();
        Ok(Learner {
            backend,
            tower,
            lora,
            head,
            folded,
            folded_is_current: false,
            text: text_features,
            text_scale: text.scale,
            activations,
            pixels,
            labels,
            head_logits,
            text_logits,
            stats,
            control,
            factor,
            factor_value: 1.0,
            rates: None,
            scaling: spec.scaling,
            objective: spec.objective,
            adamw: spec.adamw,
            steps: 0,
            recordings: HashMap::new(),
            recording,
        })
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    pub fn tower(&self) -> &VisionTower<B> {
        &self.tower
    }

    pub fn lora(&self) -> &[BlockLora<B>] {
        &self.lora
    }

    pub fn head(&self) -> &Head<B> {
        &self.head
    }

    pub fn classes(&self) -> usize {
        self.head.bias.value.shape().rows()
    }

    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// Training steps so far, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The optimizer's own state, see [`Control`].
    pub fn control(&self) -> Result<Tensor> {
        self.backend.download(&self.control)
    }

    /// Whether steps are recorded and replayed where the backend can; operations that are started one by
    /// one are easier to watch with a profiler.
    pub fn set_recording(&mut self, recording: bool) {
        self.recording = recording && self.backend.can_record();
    }

    /// Continues from the number of steps and the optimizer's state of an earlier run.
    pub fn resume(&mut self, steps: u64, control: View<'_>) -> Result<()> {
        self.steps = steps;
        self.backend.write(control, &mut self.control)
    }

    /// Every trained tensor, in a fixed order.
    pub fn params(&self) -> Vec<&Param<B>> {
        let lora = self.lora.iter().flat_map(|l| l.layers()).flat_map(|l| [&l.a, &l.b]);
        [&self.head.weight, &self.head.bias].into_iter().chain(lora).collect()
    }

    /// A name for each of [`Learner::params`], in the same order.
    pub fn param_names(&self) -> Vec<String> {
        let lora = self.lora.iter().enumerate().flat_map(|(l, block)| {
            block.layers().flat_map(move |layer| {
                let targets: Vec<&str> = layer.targets.iter().map(|t| t.name()).collect();
                ["lora_A", "lora_B"].map(|part| format!("layers.{l}.{}.{part}", targets.join("+")))
            })
        });
        ["head.weight", "head.bias"].map(String::from).into_iter().chain(lora).collect()
    }

    /// Elements of all trained tensors.
    pub fn trained_elements(&self) -> usize {
        self.params().into_iter().map(|p| p.value.shape().elements()).sum()
    }

    /// Every trained tensor for writing, in the order of [`Learner::params`].
    pub fn params_mut(&mut self) -> Vec<&mut Param<B>> {
        self.folded_is_current = false;
        trained(&mut self.lora, &mut self.head)
    }

    /// One step on `images` \[n, …\] with labels \[n\]: forward, backward, AdamW at `factor` times `rates`.
    /// Does not wait for the device.
    pub fn train_step(&mut self, images: View<'_>, labels: &[u32], rates: &Rates, factor: f64) -> Result<()> {
        self.load_batch(images, labels)?;
        if self.rates != Some(*rates) {
            self.rates = Some(*rates);
            self.recordings.retain(|(work, _), _| *work != Work::Train);
        }
        if self.factor_value != factor {
            self.factor_value = factor;
            self.backend.feed(Tensor::from_slice([1], &[factor])?.view(), &mut self.factor)?;
        }
        self.steps += 1;
        self.folded_is_current = false;
        self.run(Work::Train)
    }

    /// Forward and backward only: afterwards every trained tensor holds its gradient, times the loss scale
    /// where there is one.
    pub fn gradients(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_batch(images, labels)?;
        self.forward_and_backward()
    }

    /// The loss of a batch with adapters beside the weights, as training computes it; no gradients.
    pub fn loss(&mut self, images: View<'_>, labels: &[u32]) -> Result<f64> {
        self.load_batch(images, labels)?;
        self.forward()?;
        self.head_loss()?;
        Ok(self.stats()?.loss)
    }

    /// Evaluates a batch with the adapters folded into the weights. Does not wait for the device.
    pub fn evaluate(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_batch(images, labels)?;
        if !self.lora.is_empty() && !self.folded_is_current {
            self.tower.fold(&self.backend, &self.lora, &mut self.folded)?;
            self.folded_is_current = true;
        }
        self.run(Work::Tuned)
    }

    /// Evaluates a batch with the tower as it was before training: no adapters.
    pub fn evaluate_frozen(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_batch(images, labels)?;
        self.run(Work::Frozen)
    }

    /// Runs work on the batch that was loaded: from its recording, where there is one.
    fn run(&mut self, work: Work) -> Result<()> {
        if !self.recording {
            return self.enqueue(work);
        }
        let key = (work, self.labels.shape().rows());
        match self.recordings.get(&key) {
            Some(Some(recording)) => self.backend.replay(recording),
            Some(None) => {
                let backend = self.backend.clone();
                let recording = backend.record(|| self.enqueue(work))?;
                backend.replay(&recording)?;
                self.recordings.insert(key, Some(recording));
                Ok(())
            }
            None => {
                self.enqueue(work)?;
                self.recordings.insert(key, None);
                Ok(())
            }
        }
    }

    /// Calls for the operations of a piece of work.
    fn enqueue(&mut self, work: Work) -> Result<()> {
        let folded = match work {
            Work::Train => {
                self.forward_and_backward()?;
                return self.optimizer_step();
            }
            Work::Tuned => &*self.folded,
            Work::Frozen => &[],
        };
        self.tower.infer(&self.backend, &self.pixels, folded, &mut self.activations)?;
        self.head_loss()
    }

    fn optimizer_step(&mut self) -> Result<()> {
        let Some(rates) = self.rates else {
            let problem = "no learning rates were given".into();
            return Err(BackendError::Invalid { op: "adamw", problem });
        };
        let step = AdamwStep {
            beta1: self.adamw.beta1,
            beta2: self.adamw.beta2,
            eps: self.adamw.eps,
            scaling: self.scaling,
            factor: &self.factor,
            control: &mut self.control,
        };
        let mut tensors: Vec<AdamwTensor<'_, B>> = trained(&mut self.lora, &mut self.head)
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
                }
            })
            .collect();
        self.backend.adamw(&mut tensors, step, &mut self.stats)
    }

    fn forward_and_backward(&mut self) -> Result<()> {
        self.forward()?;
        self.head_loss()?;
        let classifier = Classifier {
            weight: &self.head.weight.value,
            bias: &self.head.bias.value,
            text: &self.text,
            text_scale: self.text_scale,
        };
        let d_features = (!self.lora.is_empty()).then_some(&mut self.activations.d_features);
        self.backend.head_loss_backward(
            &self.activations.features,
            classifier,
            Targets { labels: &self.labels, mix: None },
            self.objective.weights(),
            self.scaling.is_some().then_some(&self.control),
            &mut self.head_logits,
            &mut self.text_logits,
            &mut self.head.weight.gradient,
            &mut self.head.bias.gradient,
            d_features,
        )?;
        if self.lora.is_empty() {
            return Ok(());
        }
        self.tower.backward(&self.backend, &mut self.lora, &mut self.activations)
    }

    /// Logits of the last batch that was evaluated: head \[n, C\] and text \[n, C\].
    pub fn logits(&self) -> Result<(Tensor, Tensor)> {
        Ok((self.backend.download(&self.head_logits)?, self.backend.download(&self.text_logits)?))
    }

    /// Normalised features of the last batch \[n, E\].
    pub fn features(&self) -> Result<Tensor> {
        self.backend.download(&self.activations.features)
    }

    /// Losses and counts of the last batch; the gradient norm is that of the last training step. Waits for
    /// the device.
    pub fn stats(&self) -> Result<StepStats> {
        StepStats::from_tensor(&self.backend.download(&self.stats)?, self.objective)
    }

    /// As [`Learner::stats`], without waiting.
    pub fn fetch_stats(&self) -> Result<PendingStats<B>> {
        Ok(PendingStats { pending: self.backend.fetch(&self.stats)?, objective: self.objective })
    }

    /// As [`Learner::logits`], without waiting; for [`Backend::arrived`].
    pub fn fetch_logits(&self) -> Result<[B::Pending; 2]> {
        Ok([self.backend.fetch(&self.head_logits)?, self.backend.fetch(&self.text_logits)?])
    }

    /// Copies the values of all trained tensors to the host, in the order of [`Learner::params`].
    pub fn snapshot(&self) -> Result<Vec<Tensor>> {
        self.params().into_iter().map(|p| self.backend.download(&p.value)).collect()
    }

    /// Puts values from [`Learner::snapshot`] back.
    pub fn restore(&mut self, values: &[Tensor]) -> Result<()> {
        self.folded_is_current = false;
        let params = trained(&mut self.lora, &mut self.head);
        params.into_iter().zip(values).try_for_each(|(p, v)| self.backend.write(v.view(), &mut p.value))
    }

    /// The tower's forward pass; where nothing in it is trained, no activation is kept.
    fn forward(&mut self) -> Result<()> {
        if self.lora.is_empty() {
            return self.tower.infer(&self.backend, &self.pixels, &[], &mut self.activations);
        }
        self.tower.forward(&self.backend, &self.pixels, &self.lora, &mut self.activations)
    }

    fn head_loss(&mut self) -> Result<()> {
        let classifier = Classifier {
            weight: &self.head.weight.value,
            bias: &self.head.bias.value,
            text: &self.text,
            text_scale: self.text_scale,
        };
        let features = &self.activations.features;
        let targets = Targets { labels: &self.labels, mix: None };
        let (head, text) = (&mut self.head_logits, &mut self.text_logits);
        self.backend.head_loss(features, classifier, targets, head, text, &mut self.stats)
    }

    /// Uploads a batch and sets every buffer to its size.
    fn load_batch(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        let batch = labels.len();
        let expected = Shape::from([batch]);
        if images.shape().rows() != batch {
            let found = images.shape();
            return Err(TensorError::shape("labels of a batch of images", expected, found).into());
        }
        let classes = self.classes();
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            let problem = format!("label {label} among {classes} classes");
            return Err(BackendError::Invalid { op: "batch", problem });
        }
        if self.labels.shape().rows() != batch {
            self.activations.set_batch(batch)?;
            let buffers = [&mut self.pixels, &mut self.head_logits, &mut self.text_logits, &mut self.labels];
            buffers.into_iter().try_for_each(|t| t.set_rows(batch))?;
        }
        self.backend.feed(images, &mut self.pixels)?;
        let labels = View::new(expected, DType::U32, bytemuck::cast_slice(labels))?;
        self.backend.feed(labels, &mut self.labels)
    }
}

/// The trained tensors of a model's parts, in a fixed order.
fn trained<'a, B: Backend>(lora: &'a mut [BlockLora<B>], head: &'a mut Head<B>) -> Vec<&'a mut Param<B>> {
    let lora = lora.iter_mut().flat_map(|l| l.layers_mut()).flat_map(|l| [&mut l.a, &mut l.b]);
    [&mut head.weight, &mut head.bias].into_iter().chain(lora).collect()
}
