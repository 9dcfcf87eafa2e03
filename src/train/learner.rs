//! Model, adapters, head and optimizer together: one training step, one evaluation batch.

use crate::backend::{AdamwStep, AdamwTensor, Backend, Classifier, DeviceTensor, Result, Stat};
use crate::clip::block::FoldedBlock;
use crate::clip::vision::{Purpose, VisionActivations, VisionTower};
use crate::objective::Objective;
use crate::optim::{Adamw, Rates};
use crate::tensor::{DType, Shape, Tensor, TensorError, View};
use crate::tune::{BlockLora, Head, Param};

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
    objective: Objective,
    adamw: Adamw,
    steps: u64,
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
        let head_logits = backend.zeros([batch, classes], compute)?;
        let text_logits = backend.zeros([batch, classes], compute)?;
        let stats = backend.zeros([Stat::COUNT], master)?;
        let text_features = backend.upload(text.features.view(), compute)?;
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
            objective: spec.objective,
            adamw: spec.adamw,
            steps: 0,
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

    /// Optimizer steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of optimizer steps taken, when a run is resumed.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
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
    pub fn train_step(&mut self, images: View<'_>, labels: &[u32], rates: &Rates, factor: f64) -> Result<()> {
        self.gradients(images, labels)?;
        self.steps += 1;
        self.folded_is_current = false;
        let step = AdamwStep {
            step: self.steps,
            beta1: self.adamw.beta1,
            beta2: self.adamw.beta2,
            eps: self.adamw.eps,
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
                    learning_rate: rate.learning_rate * factor,
                    weight_decay: rate.weight_decay,
                }
            })
            .collect();
        self.backend.adamw(&mut tensors, step, &mut self.stats)
    }

    /// Forward and backward only: afterwards every trained tensor holds its gradient.
    pub fn gradients(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_batch(images, labels)?;
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
            &self.labels,
            self.objective.weights(),
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

    /// The loss of a batch with adapters beside the weights, as training computes it; no gradients.
    pub fn loss(&mut self, images: View<'_>, labels: &[u32]) -> Result<f64> {
        self.load_batch(images, labels)?;
        self.forward()?;
        self.head_loss()?;
        Ok(self.stats()?.loss)
    }

    /// Evaluates a batch with the adapters folded into the weights.
    pub fn evaluate(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_batch(images, labels)?;
        if !self.lora.is_empty() && !self.folded_is_current {
            self.tower.fold(&self.backend, &self.lora, &mut self.folded)?;
            self.folded_is_current = true;
        }
        self.tower.infer(&self.backend, &self.pixels, &self.folded, &mut self.activations)?;
        self.head_loss()
    }

    /// Evaluates a batch with the tower as it was before training: no adapters.
    pub fn evaluate_frozen(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_batch(images, labels)?;
        self.tower.infer(&self.backend, &self.pixels, &[], &mut self.activations)?;
        self.head_loss()
    }

    /// Logits of the last batch that was evaluated: head \[n, C\] and text \[n, C\].
    pub fn logits(&self) -> Result<(Tensor, Tensor)> {
        Ok((self.backend.download(&self.head_logits)?, self.backend.download(&self.text_logits)?))
    }

    /// Normalised features of the last batch \[n, E\].
    pub fn features(&self) -> Result<Tensor> {
        self.backend.download(&self.activations.features)
    }

    /// Losses and counts of the last batch; the gradient norm is that of the last training step.
    pub fn stats(&self) -> Result<StepStats> {
        let stats = self.backend.download(&self.stats)?.view().to_tensor(DType::F64)?;
        let stats = stats.typed::<f64>()?;
        let at = |stat: Stat| stats[stat as usize];
        let (loss_head, loss_text) = (at(Stat::LossHead), at(Stat::LossText));
        Ok(StepStats {
            loss: self.objective.total(loss_head, loss_text),
            loss_head,
            loss_text,
            correct: at(Stat::Correct) as u64,
            text_correct: at(Stat::TextCorrect) as u64,
            grad_norm: at(Stat::GradientSquared).sqrt(),
        })
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
        let (features, labels) = (&self.activations.features, &self.labels);
        let (head, text) = (&mut self.head_logits, &mut self.text_logits);
        self.backend.head_loss(features, classifier, labels, head, text, &mut self.stats)
    }

    /// Uploads a batch and sets every buffer to its size.
    fn load_batch(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        let batch = labels.len();
        let expected = Shape::from([batch]);
        if images.shape().rows() != batch {
            let found = images.shape();
            return Err(TensorError::shape("labels of a batch of images", expected, found).into());
        }
        if self.labels.shape().rows() != batch {
            self.activations.set_batch(batch)?;
            let buffers = [&mut self.pixels, &mut self.head_logits, &mut self.text_logits, &mut self.labels];
            buffers.into_iter().try_for_each(|t| t.set_rows(batch))?;
        }
        self.backend.write(images, &mut self.pixels)?;
        let labels = View::new(expected, DType::U32, bytemuck::cast_slice(labels))?;
        self.backend.write(labels, &mut self.labels)
    }
}

/// The trained tensors of a model's parts, in a fixed order.
fn trained<'a, B: Backend>(lora: &'a mut [BlockLora<B>], head: &'a mut Head<B>) -> Vec<&'a mut Param<B>> {
    let lora = lora.iter_mut().flat_map(|l| l.layers_mut()).flat_map(|l| [&mut l.a, &mut l.b]);
    [&mut head.weight, &mut head.bias].into_iter().chain(lora).collect()
}
