//! Model, adapters, head and optimizer together: one training step, one evaluation batch.

use super::metrics::Accumulator;
use crate::backend::{
    AdamwStep, AdamwTensor, Backend, BackendError, Classifier, Control, Counting, DeviceTensor, LossScaling,
    LossWeights, Mix, Result, Stat, Targets,
};
use crate::clip::block::{Evaluated, FoldedBlock};
use crate::clip::text::{EmbeddedPrompts, TextActivations, TextTower};
use crate::clip::vision::{Purpose, VisionActivations, VisionTower};
use crate::objective::{MixDraw, MixOn, Objective};
use crate::optim::{Adamw, Rates};
use crate::tensor::{DType, Shape, Tensor, TensorError, View};
use crate::tune::{BlockLora, Head, MicroBatch, Param, Prompts, TowerDropout, TowerTuning, Trained, add_up};
use std::collections::HashMap;
use std::sync::Arc;

/// Class features of the text tower and the scale of their logits.
#[derive(Debug, Clone)]
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
    /// Element type of the images as they are handed in; numbers are converted to the compute type, u8 stays.
    pub image_dtype: DType,
    /// What training minimises.
    pub objective: Objective,
    /// Where training batches are mixed.
    pub mix: Option<MixOn>,
    /// Side of the images that training batches are crops of; none where they are taken as they are.
    pub crops_of: Option<usize>,
    /// The optimizer's constants.
    pub adamw: Adamw,
    /// What the tower's memory is for: [`Purpose::Inference`] where nothing in the tower is trained.
    pub purpose: Purpose,
    /// For f16; the other types need none.
    pub scaling: Option<LossScaling>,
    /// In front of the adapters.
    pub dropout: Option<DropoutSpec>,
    /// See [`AdamwStep::clip`].
    pub clip: Option<f64>,
    /// Whether several batches may make up a step.
    pub accumulate: bool,
}

/// Dropout in front of the adapters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutSpec {
    /// Share of their inputs that is set to zero.
    pub probability: f64,
    /// The run's, which with [`Batch::number`] decides what is drawn.
    pub seed: u64,
}

/// Loss scaling as the backend's number type needs it.
pub fn loss_scaling<B: Backend>(backend: &B) -> Option<LossScaling> {
    (backend.compute_dtype() == DType::F16).then(LossScaling::default)
}

/// A batch on the host.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// \[n, …\]: images; those that crops are taken of where there are `crops`.
    pub images: View<'a>,
    /// \[n\]
    pub labels: &'a [u32],
    /// How it is mixed, as [`LearnerSpec::mix`] says.
    pub mix: Option<&'a MixDraw>,
    /// u32 \[n, 5\], for [`Backend::crop_resize`].
    pub crops: Option<View<'a>>,
    /// Which batch of the run it is, for dropout to draw by.
    pub number: u32,
    /// What each class counts in it \[C\], as the objective's [`ClassCounts`](crate::objective::ClassCounts) say.
    pub class_weights: Option<&'a [f32]>,
}

/// A batch's part in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Where the batch stands among those of its step.
    pub place: MicroBatch,
    /// Of the step's images.
    pub of_images: f64,
}

impl Share {
    /// A step of one batch.
    pub const ALL: Share = Share { place: MicroBatch::Alone, of_images: 1.0 };
}

impl<'a> Batch<'a> {
    /// Images as they are.
    pub fn new(images: View<'a>, labels: &'a [u32]) -> Self {
        Batch { images, labels, mix: None, crops: None, number: 0, class_weights: None }
    }
}

/// What one batch left behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// The objective, from the parts below as it weights them; the loss scale is not in it.
    pub loss: f64,
    /// Mean cross entropy of the head; 0 without a head.
    pub loss_head: f64,
    /// Mean cross entropy of the text logits.
    pub loss_text: f64,
    /// Mean triplet loss; 0 where none is computed.
    pub loss_triplet: f64,
    /// See [`Stat::TripletsActive`]; these three are 0 where no triplet loss is computed.
    pub triplets_active: f64,
    /// See [`Stat::DistancePositive`].
    pub distance_positive: f64,
    /// See [`Stat::DistanceNegative`].
    pub distance_negative: f64,
    /// Images whose class is the first choice of the head, or without a head of the text logits; see
    /// [`Stat::Correct`] for mixed ones.
    pub correct: f64,
    /// The same for the text logits alone.
    pub text_correct: f64,
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

impl Default for StepStats {
    /// Before anything is added; what the optimizer says is not known.
    fn default() -> Self {
        StepStats {
            loss: 0.0,
            loss_head: 0.0,
            loss_text: 0.0,
            loss_triplet: 0.0,
            triplets_active: 0.0,
            distance_positive: 0.0,
            distance_negative: 0.0,
            correct: 0.0,
            text_correct: 0.0,
            grad_norm: f64::NAN,
            loss_scale: f64::NAN,
            skipped: false,
        }
    }
}

impl StepStats {
    /// Adds `weight` times the means of other images: the losses and what is known of the triplets.
    pub(super) fn add(&mut self, other: &StepStats, weight: f64) {
        self.loss += weight * other.loss;
        self.loss_head += weight * other.loss_head;
        self.loss_text += weight * other.loss_text;
        self.loss_triplet += weight * other.loss_triplet;
        self.triplets_active += weight * other.triplets_active;
        self.distance_positive += weight * other.distance_positive;
        self.distance_negative += weight * other.distance_negative;
    }

    fn from_tensor(stats: &Tensor, objective: Objective) -> Result<Self> {
        let stats = stats.view().to_tensor(DType::F64)?;
        let stats = stats.typed::<f64>()?;
        let at = |stat: Stat| stats[stat as usize];
        let loss_text = at(Stat::LossText);
        // Without a head the images are classified by their text logits.
        let (loss_head, correct) = match objective.head {
            0.0 => (0.0, at(Stat::TextCorrect)),
            _ => (at(Stat::LossHead), at(Stat::Correct)),
        };
        let loss_triplet = at(Stat::LossTriplet);
        Ok(StepStats {
            loss: objective.total(loss_head, loss_text, loss_triplet),
            loss_head,
            loss_text,
            loss_triplet,
            triplets_active: at(Stat::TripletsActive),
            distance_positive: at(Stat::DistancePositive),
            distance_negative: at(Stat::DistanceNegative),
            correct,
            text_correct: at(Stat::TextCorrect),
            grad_norm: at(Stat::GradientSquared).sqrt(),
            loss_scale: at(Stat::LossScale),
            skipped: at(Stat::Skipped) != 0.0,
        })
    }
}

/// What is run on a batch, and recorded where the backend records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    /// Forward, backward, and where the step is complete the optimizer.
    Train(Recorded),
    /// The same for what is behind the vision tower, on features that are there already.
    TrainOnFeatures(Recorded),
    /// Evaluation with the adapters and the prompts.
    Tuned,
    /// Evaluation of the tower as it was.
    Frozen,
    /// Evaluation of what is behind the vision tower, on features that are there already.
    Head,
    /// The same with the text tower as it was.
    FrozenHead,
}

/// A [`Share`] as the key of a recording, which holds it: the share of the images by its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Recorded(MicroBatch, u64);

impl From<Share> for Recorded {
    fn from(share: Share) -> Self {
        Recorded(share.place, share.of_images.to_bits())
    }
}

impl From<Recorded> for Share {
    fn from(Recorded(place, bits): Recorded) -> Self {
        Share { place, of_images: f64::from_bits(bits) }
    }
}

/// The text tower, where it is trained.
struct TextTuning<B: Backend> {
    tower: Arc<TextTower<B>>,
    activations: TextActivations<B>,
    folded: Vec<FoldedBlock<B>>,
    /// T with the adapters, and its gradient \[C, E\].
    features: B::Tensor,
    d_features: B::Tensor,
}

/// The random numbers of dropout.
struct Draw<B: Backend> {
    /// See [`crate::backend::Dropout::draw`].
    values: B::Tensor,
    spec: DropoutSpec,
}

impl<B: Backend> Draw<B> {
    fn of_tower(&self) -> TowerDropout<'_, B> {
        TowerDropout { draw: &self.values, probability: self.spec.probability, part: 0 }
    }
}

/// The frozen towers with what is trained on them. All memory is allocated by [`Learner::new`]
/// and [`Learner::with_text_tower`].
pub struct Learner<B: Backend> {
    backend: B,
    tower: Arc<VisionTower<B>>,
    trained: Trained<B>,
    /// The adapters folded into the weights, where evaluation has them there.
    folded: Vec<FoldedBlock<B>>,
    /// Whether these and the class features are those of the trained tensors.
    evaluation_is_current: bool,
    /// T of the frozen tower.
    text: B::Tensor,
    text_scale: f64,
    text_tuning: Option<TextTuning<B>>,
    draw: Option<Draw<B>>,
    clip: Option<f64>,
    /// Gradients over the batches of a step so far; empty where a step is one batch.
    sums: Vec<B::Tensor>,
    activations: VisionActivations<B>,
    pixels: B::Tensor,
    crops: Option<Crops<B>>,
    mixing: Option<Mixing<B>>,
    /// See [`Batch::class_weights`].
    class_weights: Option<B::Tensor>,
    labels: B::Tensor,
    head_logits: B::Tensor,
    text_logits: B::Tensor,
    triplets: Option<Triplets<B>>,
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
    recordings: HashMap<(Work, usize), Option<B::Graph>>,
    recording: bool,
}

/// What training batches are cut out of.
struct Crops<B: Backend> {
    /// u8 \[B, H, H, 3\]
    images: B::Tensor,
    /// u32 \[B, 5\]
    rectangles: B::Tensor,
}

/// How training batches are mixed.
struct Mixing<B: Backend> {
    on: MixOn,
    mix: Mix<B>,
    /// Features after mixing, and their gradient \[B, E\]; unused where pixels are mixed.
    features: B::Tensor,
    d_features: B::Tensor,
}

impl<B: Backend> Mixing<B> {
    fn new(backend: &B, on: MixOn, batch: usize, width: usize) -> Result<Self> {
        let parameter = backend.parameter_dtype();
        let rows = if on == MixOn::Features { batch } else { 0 };
        let mix = Mix {
            partner: backend.zeros([batch], DType::U32)?,
            inverse: backend.zeros([batch], DType::U32)?,
            lambda: backend.zeros([batch], parameter)?,
        };
        let (features, d_features) =
            (backend.empty([rows, width], parameter)?, backend.empty([rows, width], parameter)?);
        Ok(Mixing { on, mix, features, d_features })
    }

    fn tensors(&mut self) -> Vec<&mut B::Tensor> {
        let mix = [&mut self.mix.partner, &mut self.mix.inverse, &mut self.mix.lambda];
        let features = [&mut self.features, &mut self.d_features];
        let features = features.into_iter().filter(|_| self.on == MixOn::Features);
        mix.into_iter().chain(features).collect()
    }
}

/// What the triplet loss keeps for its gradient: see [`Backend::triplet`].
struct Triplets<B: Backend> {
    pairs: B::Tensor,
    distances: B::Tensor,
}

impl<B: Backend> Learner<B> {
    /// A learner before its first step: `trained` is what its steps move, `text` are the class features of
    /// the frozen tower, for as many classes as the head has.
    pub fn new(
        backend: B,
        tower: Arc<VisionTower<B>>,
        trained: Trained<B>,
        text: &TextClassifier,
        spec: &LearnerSpec,
    ) -> Result<Self> {
        let (compute, parameter) = (backend.compute_dtype(), backend.parameter_dtype());
        let classes = trained.head.bias.value.shape().rows();
        let batch = spec.batch;
        let draw = spec
            .dropout
            .map(|spec| Ok::<_, BackendError>(Draw { values: backend.zeros([4], DType::U32)?, spec }));
        let draw = draw.transpose()?;
        let tuning = TowerTuning { dropout: draw.as_ref().map(Draw::of_tower), ..trained.tower() };
        let activations = VisionActivations::new(&backend, &tower, batch, tuning, spec.purpose)?;
        let sums = match spec.accumulate {
            true => trained.params().iter().map(|p| backend.empty(p.value.shape(), parameter)).collect(),
            false => Ok(Vec::new()),
        };
        let folded = tower.folded(&backend, &trained.lora)?;
        let pixel_dtype = if spec.image_dtype == DType::U8 { DType::U8 } else { compute };
        let image = spec.image.dims();
        let [a, b, c] = [0, 1, 2].map(|i| image.get(i).copied().unwrap_or(1));
        let pixels = backend.zeros([batch, a, b, c], pixel_dtype)?;
        let crops = match spec.crops_of {
            Some(side) => Some(Crops {
                images: backend.zeros([batch, side, side, 3], DType::U8)?,
                rectangles: backend.zeros([batch, 5], DType::U32)?,
            }),
            None => None,
        };
        let width = tower.features();
        let mixing = spec.mix.map(|on| Mixing::new(&backend, on, batch, width)).transpose()?;
        let triplets = match spec.objective.triplet {
            0.0 => None,
            _ => Some(Triplets {
                pairs: backend.zeros([batch, 2], DType::U32)?,
                distances: backend.empty([batch, 2], parameter)?,
            }),
        };
        let class_weights = match spec.objective.counts.weighted {
            true => Some(backend.zeros([classes], parameter)?),
            false => None,
        };
        let labels = backend.zeros([batch], DType::U32)?;
        let head_logits = backend.empty([batch, classes], parameter)?;
        let text_logits = backend.empty([batch, classes], parameter)?;
        let stats = backend.zeros([Stat::COUNT], parameter)?;
        let text_features = backend.upload(text.features.view(), parameter)?;
        let control = Tensor::from_slice([Control::COUNT], &Control::start(spec.scaling))?;
        let control = backend.upload(control.view(), parameter)?;
        let factor = backend.upload(Tensor::from_slice([1], &[1.0f32])?.view(), parameter)?;
        let recording = backend.can_capture();
        Ok(Learner {
            backend,
            tower,
            trained,
            folded,
            evaluation_is_current: false,
            text: text_features,
            text_scale: text.scale,
            text_tuning: None,
            draw,
            clip: spec.clip,
            sums: sums?,
            activations,
            pixels,
            crops,
            mixing,
            class_weights,
            labels,
            head_logits,
            text_logits,
            triplets,
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

    /// Trains the text tower too: its adapters are among what is trained. Up to `part` prompts are computed
    /// together.
    pub fn with_text_tower(
        mut self,
        tower: Arc<TextTower<B>>,
        prompts: &EmbeddedPrompts,
        part: usize,
    ) -> Result<Self> {
        let (backend, lora) = (&self.backend, &self.trained.text_lora);
        let dropout = self.draw.is_some();
        let (shape, parameter) = (self.text.shape(), backend.parameter_dtype());
        self.text_tuning = Some(TextTuning {
            activations: TextActivations::new(backend, &tower, prompts, lora, dropout, part)?,
            folded: tower.folded(backend, lora)?,
            features: backend.empty(shape, parameter)?,
            d_features: backend.empty(shape, parameter)?,
            tower,
        });
        Ok(self)
    }

    /// The device that all tensors are on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The vision tower, whose own weights stay as they were loaded.
    pub fn tower(&self) -> &Arc<VisionTower<B>> {
        &self.tower
    }

    /// The adapters of the vision tower, block by block; empty where it has none.
    pub fn lora(&self) -> &[BlockLora<B>] {
        &self.trained.lora
    }

    /// The adapters of the text tower.
    pub fn text_lora(&self) -> &[BlockLora<B>] {
        &self.trained.text_lora
    }

    /// The prompts of the vision tower, where these are trained.
    pub fn prompts(&self) -> Option<&Prompts<B>> {
        self.trained.prompts.as_ref()
    }

    /// The head; where none is trained, the class features in the form of one as of the last
    /// [`Learner::refresh`].
    pub fn head(&self) -> &Head<B> {
        &self.trained.head
    }

    /// Number of classes C.
    pub fn classes(&self) -> usize {
        self.trained.head.bias.value.shape().rows()
    }

    /// What training minimises.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// Changes the weights of the parts of the loss; a triplet loss cannot come in that was not there.
    pub(crate) fn set_objective(&mut self, objective: Objective) {
        self.objective = objective;
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
    pub fn set_capture(&mut self, recording: bool) {
        self.recording = recording && self.backend.can_capture();
    }

    /// Continues from the number of steps and the optimizer's state of an earlier run.
    pub fn resume(&mut self, steps: u64, control: View<'_>) -> Result<()> {
        self.steps = steps;
        self.backend.copy_from_host(control, &mut self.control)
    }

    /// Every trained tensor, in a fixed order.
    pub fn params(&self) -> Vec<&Param<B>> {
        self.trained.params()
    }

    /// A name for each of [`Learner::params`], in the same order.
    pub fn param_names(&self) -> Vec<String> {
        self.trained.names()
    }

    /// Elements of all trained tensors.
    pub fn trained_elements(&self) -> usize {
        self.trained.elements()
    }

    /// Every trained tensor for writing, in the order of [`Learner::params`].
    pub fn params_mut(&mut self) -> Vec<&mut Param<B>> {
        self.evaluation_is_current = false;
        self.trained.params_mut()
    }

    /// One step: forward, backward, AdamW at `factor` times `rates`. Does not wait for the device.
    pub fn train_step(&mut self, batch: Batch<'_>, rates: &Rates, factor: f64) -> Result<()> {
        self.train_part(batch, Share::ALL, rates, factor)
    }

    /// A batch of a step: forward and backward; the optimizer where `share` completes the step. Does not wait
    /// for the device.
    pub fn train_part(&mut self, batch: Batch<'_>, share: Share, rates: &Rates, factor: f64) -> Result<()> {
        self.load_training_batch(batch)?;
        self.step(Work::Train(share.into()), share, rates, factor)
    }

    /// As [`Learner::train_part`] with features \[n, E\] of the frozen vision tower in the place of the images.
    ///
    /// # Errors
    /// A learner that trains something in the vision tower, or mixes or crops pixels.
    pub fn train_on_features(
        &mut self,
        batch: Batch<'_>,
        share: Share,
        rates: &Rates,
        factor: f64,
    ) -> Result<()> {
        let pixels = self.mixing.as_ref().is_some_and(|mixing| mixing.on == MixOn::Pixels);
        if !self.trained.tower().is_none() || pixels || batch.crops.is_some() {
            let problem = "the vision tower is trained, or pixels are mixed or cropped: features do not stand for images";
            return Err(BackendError::Invalid { op: "train_on_features", problem: problem.into() });
        }
        self.load_features(batch.images, batch.labels)?;
        self.load_draw(batch.number)?;
        self.load_mix(batch.mix)?;
        self.load_class_weights(batch.class_weights)?;
        self.step(Work::TrainOnFeatures(share.into()), share, rates, factor)
    }

    /// Runs a training step on what was loaded.
    fn step(&mut self, work: Work, share: Share, rates: &Rates, factor: f64) -> Result<()> {
        if share.place != MicroBatch::Alone && self.sums.is_empty() {
            let problem = "steps of several batches need a learner that was made for them".into();
            return Err(BackendError::Invalid { op: "train_part", problem });
        }
        if self.rates != Some(*rates) {
            self.rates = Some(*rates);
            self.recordings.retain(|(work, _), _| !matches!(work, Work::Train(_) | Work::TrainOnFeatures(_)));
        }
        if self.factor_value != factor {
            self.factor_value = factor;
            self.backend
                .copy_from_host_async(Tensor::from_slice([1], &[factor])?.view(), &mut self.factor)?;
        }
        self.steps += u64::from(share.place.completes());
        self.evaluation_is_current = false;
        self.run(work)
    }

    /// Forward and backward only: afterwards every trained tensor holds its gradient, times the loss scale
    /// where there is one.
    pub fn gradients(&mut self, batch: Batch<'_>) -> Result<()> {
        self.load_training_batch(batch)?;
        self.forward()?;
        self.loss_and_backward(Share::ALL)
    }

    /// The loss of a batch with adapters beside the weights, as training computes it; no gradients.
    pub fn loss(&mut self, batch: Batch<'_>) -> Result<f64> {
        self.load_training_batch(batch)?;
        self.forward()?;
        self.training_loss()?;
        Ok(self.stats()?.loss)
    }

    /// Evaluates a batch with the prompts and the adapters; these are folded into the weights unless the
    /// compute type is bf16. Does not wait for the device.
    pub fn evaluate(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_batch(images, labels)?;
        self.refresh()?;
        self.run(Work::Tuned)
    }

    /// Brings what evaluation uses up to date with the trained tensors: folded weights, class features, and
    /// the head that mirrors these.
    pub fn refresh(&mut self) -> Result<()> {
        if self.evaluation_is_current {
            return Ok(());
        }
        let (backend, trained) = (&self.backend, &mut self.trained);
        self.tower.fold(backend, &trained.lora, &mut self.folded)?;
        if let Some(t) = &mut self.text_tuning {
            t.tower.fold(backend, &trained.text_lora, &mut t.folded)?;
            let adapters = Evaluated { lora: &trained.text_lora, folded: &t.folded };
            t.tower.infer(backend, adapters, &mut t.activations, &mut t.features)?;
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

    /// Evaluates a batch with the tower as it was before training: no adapters, no prompts.
    pub fn evaluate_frozen(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_batch(images, labels)?;
        self.run(Work::Frozen)
    }

    /// Evaluates head and class features on features \[n, E\] of the vision tower.
    pub fn evaluate_head(&mut self, features: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_features(features, labels)?;
        self.refresh()?;
        self.run(Work::Head)
    }

    /// The same with the class features as they were before training.
    pub fn evaluate_frozen_head(&mut self, features: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_features(features, labels)?;
        self.run(Work::FrozenHead)
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
                let recording = backend.capture(|| self.enqueue(work))?;
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
        let (adapters, prompts) = match work {
            Work::Train(share) => {
                self.forward()?;
                return self.learn(share.into());
            }
            Work::TrainOnFeatures(share) => return self.learn(share.into()),
            Work::Head => return self.evaluation_loss(true),
            Work::FrozenHead => return self.evaluation_loss(false),
            Work::Tuned => {
                let adapters = Evaluated { lora: &self.trained.lora, folded: &self.folded };
                (adapters, self.trained.prompts.as_ref())
            }
            Work::Frozen => (Evaluated::NONE, None),
        };
        self.tower.infer(&self.backend, &self.pixels, None, adapters, prompts, &mut self.activations)?;
        self.evaluation_loss(work == Work::Tuned)
    }

    /// From a batch's features to its gradients, and where they complete the step to the optimizer.
    fn learn(&mut self, share: Share) -> Result<()> {
        self.loss_and_backward(share)?;
        let gradients = self.trained.params_mut().into_iter().map(|p| &mut p.gradient);
        add_up(&self.backend, gradients, &mut self.sums, share.place)?;
        if share.place.completes() { self.optimizer_step() } else { Ok(()) }
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
            clip: self.clip,
            factor: &self.factor,
            control: &mut self.control,
        };
        let mut tensors: Vec<AdamwTensor<'_, B>> = self
            .trained
            .params_mut()
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
        self.backend.adamw(&mut tensors, step, &mut self.stats)
    }

    /// From the features to the gradients of everything that is trained, times the batch's share.
    fn loss_and_backward(&mut self, share: Share) -> Result<()> {
        self.training_loss()?;
        let in_tower = !self.trained.tower().is_none();
        let weights = self.objective.weights();
        let weights =
            LossWeights { head: weights.head * share.of_images, text: weights.text * share.of_images };
        let control = self.scaling.is_some().then_some(&self.control);
        let counting = counting(self.objective, self.class_weights.as_ref());
        let (a, head) = (&mut self.activations, &mut self.trained.head);
        let (text, d_text) = match &mut self.text_tuning {
            Some(t) => (&t.features, Some(&mut t.d_features)),
            None => (&self.text, None),
        };
        let classifier = Classifier {
            weight: &head.weight.value,
            bias: &head.bias.value,
            text,
            text_scale: self.text_scale,
        };
        let (features, d_features, mix) = match &mut self.mixing {
            Some(m) if m.on == MixOn::Features => (&m.features, &mut m.d_features, Some(&m.mix)),
            mixing => (&a.features, &mut a.d_features, mixing.as_ref().map(|m| &m.mix)),
        };
        self.backend.head_loss_backward(
            features,
            classifier,
            Targets { labels: &self.labels, mix, counting },
            weights,
            control,
            &mut self.head_logits,
            &mut self.text_logits,
            &mut head.weight.gradient,
            &mut head.bias.gradient,
            in_tower.then_some(d_features),
            d_text,
        )?;
        let dropout = self.draw.as_ref().map(Draw::of_tower);
        if let Some(t) = &mut self.text_tuning {
            let lora = &mut self.trained.text_lora;
            t.tower.backward(&self.backend, lora, dropout, &mut t.activations, &t.d_features)?;
        }
        if !in_tower {
            return Ok(());
        }
        if let Some(m) = self.mixing.as_ref().filter(|m| m.on == MixOn::Features) {
            self.backend.mix_rows_backward(&m.d_features, &m.mix, &mut a.d_features)?;
        }
        if let Some(Triplets { pairs, distances }) = &self.triplets {
            let weight = self.objective.triplet * share.of_images;
            let (f, df) = (&a.features, &mut a.d_features);
            self.backend.triplet_backward(f, pairs, distances, weight, control, df)?;
        }
        let Trained { lora, prompts, .. } = &mut self.trained;
        self.tower.backward(&self.backend, lora, prompts.as_mut(), dropout, a)
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

    /// For the results of a split.
    pub(super) fn accumulator(&self) -> Accumulator {
        Accumulator::new(self.classes(), self.objective.evaluation())
    }

    /// Copies the values of all trained tensors to the host, in the order of [`Learner::params`].
    pub fn snapshot(&self) -> Result<Vec<Tensor>> {
        self.params().into_iter().map(|p| self.backend.download(&p.value)).collect()
    }

    /// Puts values from [`Learner::snapshot`] back.
    pub fn restore(&mut self, values: &[Tensor]) -> Result<()> {
        self.evaluation_is_current = false;
        let params = self.trained.params_mut().into_iter();
        params.zip(values).try_for_each(|(p, v)| self.backend.copy_from_host(v.view(), &mut p.value))
    }

    /// The tower's forward pass on a training batch; where nothing in the tower is trained, no activation is
    /// kept.
    fn forward(&mut self) -> Result<()> {
        if let Some(crops) = &self.crops {
            self.backend.crop_resize(&crops.images, &crops.rectangles, &mut self.pixels)?;
        }
        let (backend, pixels, a) = (&self.backend, &self.pixels, &mut self.activations);
        let mix = self.mixing.as_ref().filter(|m| m.on == MixOn::Pixels).map(|m| &m.mix);
        let dropout = self.draw.as_ref().map(Draw::of_tower);
        let tuning = TowerTuning { dropout, ..self.trained.tower() };
        if tuning.is_none() {
            return self.tower.infer(backend, pixels, mix, Evaluated::NONE, None, a);
        }
        self.tower.forward(backend, pixels, mix, tuning, a)
    }

    /// Logits and losses of a training batch, from its features.
    fn training_loss(&mut self) -> Result<()> {
        let dropout = self.draw.as_ref().map(Draw::of_tower);
        if let Some(t) = &mut self.text_tuning {
            let lora = &self.trained.text_lora;
            t.tower.forward(&self.backend, lora, dropout, &mut t.activations, &mut t.features)?;
            // Evaluation has its class features, without dropout, in the same place.
            self.evaluation_is_current = false;
        }
        let own = &self.activations.features;
        let (features, mix) = match &mut self.mixing {
            Some(m) if m.on == MixOn::Features => {
                self.backend.mix_rows(own, &m.mix, &mut m.features)?;
                (&m.features, Some(&m.mix))
            }
            mixing => (own, mixing.as_ref().map(|m| &m.mix)),
        };
        let counting = counting(self.objective, self.class_weights.as_ref());
        let targets = Targets { labels: &self.labels, mix, counting };
        let (head, text) = (&mut self.head_logits, &mut self.text_logits);
        let tuned = self.text_tuning.as_ref().map_or(&self.text, |t| &t.features);
        let classifier = classifier(&self.trained.head, tuned, self.text_scale);
        self.backend.head_loss(features, classifier, targets, head, text, &mut self.stats)?;
        if let Some(Triplets { pairs, distances }) = &mut self.triplets {
            let margin = self.objective.margin;
            self.backend.triplet(own, &self.labels, margin, pairs, distances, &mut self.stats)?;
        }
        Ok(())
    }

    /// Logits and cross entropies of a batch that is evaluated, from its features; with the class features of
    /// the text tower as it is trained, or as it was.
    fn evaluation_loss(&mut self, tuned: bool) -> Result<()> {
        let features = match &self.text_tuning {
            Some(t) if tuned => &t.features,
            _ => &self.text,
        };
        let classifier = classifier(&self.trained.head, features, self.text_scale);
        let targets = Targets::of(&self.labels);
        let (head, text) = (&mut self.head_logits, &mut self.text_logits);
        let features = &self.activations.features;
        self.backend.head_loss(features, classifier, targets, head, text, &mut self.stats)
    }

    /// Uploads a batch to train on.
    fn load_training_batch(&mut self, batch: Batch<'_>) -> Result<()> {
        let Batch { images, labels, mix, crops, number, class_weights } = batch;
        self.load_labels(images, labels)?;
        self.load_draw(number)?;
        self.load_mix(mix)?;
        self.load_class_weights(class_weights)?;
        match (&mut self.crops, crops) {
            (Some(to), Some(crops)) => {
                self.backend.copy_from_host_async(images, &mut to.images)?;
                self.backend.copy_from_host_async(crops, &mut to.rectangles)
            }
            (None, None) => self.backend.copy_from_host_async(images, &mut self.pixels),
            _ => {
                let problem = "crops go with a learner that was made for them, and with no other".into();
                Err(BackendError::Invalid { op: "batch", problem })
            }
        }
    }

    /// Uploads a batch to evaluate.
    fn load_batch(&mut self, images: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_labels(images, labels)?;
        self.backend.copy_from_host_async(images, &mut self.pixels)
    }

    /// Uploads features in the place of images.
    fn load_features(&mut self, features: View<'_>, labels: &[u32]) -> Result<()> {
        self.load_labels(features, labels)?;
        self.backend.copy_from_host_async(features, &mut self.activations.features)
    }

    /// Uploads what dropout draws by in batch `number`.
    fn load_draw(&mut self, number: u32) -> Result<()> {
        let Some(Draw { values, spec }) = &mut self.draw else { return Ok(()) };
        let draw = [spec.seed as u32, (spec.seed >> 32) as u32, number, 0];
        self.backend.copy_from_host_async(Tensor::from_slice([4], &draw)?.view(), values)
    }

    /// Uploads how a training batch is mixed, after its labels.
    fn load_mix(&mut self, mix: Option<&MixDraw>) -> Result<()> {
        let invalid = |problem: String| Err(BackendError::Invalid { op: "mixup", problem });
        let batch = self.labels.shape().rows();
        let (m, draw) = match (&mut self.mixing, mix) {
            (None, None) => return Ok(()),
            (Some(m), Some(draw)) if draw.fits(batch) => (m, draw),
            (Some(_), Some(draw)) => {
                return invalid(format!("{draw:?} is no way of mixing {batch} images"));
            }
            _ => return invalid("a draw goes with a learner that mixes, and with no other".into()),
        };
        let indices = |values: &[u32]| Tensor::from_slice([batch], values);
        self.backend.copy_from_host_async(indices(&draw.partner)?.view(), &mut m.mix.partner)?;
        self.backend.copy_from_host_async(indices(&draw.inverse())?.view(), &mut m.mix.inverse)?;
        self.backend
            .copy_from_host_async(Tensor::from_slice([batch], &draw.lambda)?.view(), &mut m.mix.lambda)
    }

    /// Uploads what the classes count in a batch.
    fn load_class_weights(&mut self, weights: Option<&[f32]>) -> Result<()> {
        match (&mut self.class_weights, weights) {
            (None, None) => Ok(()),
            (Some(to), Some(weights)) => {
                let weights =
                    View::new(Shape::from([weights.len()]), DType::F32, bytemuck::cast_slice(weights))?;
                self.backend.copy_from_host_async(weights, to)
            }
            _ => {
                let problem =
                    "class weights go with a learner that was made for them, and with no other".into();
                Err(BackendError::Invalid { op: "batch", problem })
            }
        }
    }

    /// Checks a batch, sets every buffer to its size, and uploads the labels.
    fn load_labels(&mut self, inputs: View<'_>, labels: &[u32]) -> Result<()> {
        let batch = labels.len();
        let expected = Shape::from([batch]);
        if inputs.shape().rows() != batch {
            let found = inputs.shape();
            return Err(TensorError::shape("labels of a batch of images", expected, found).into());
        }
        let classes = self.classes();
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            let problem = format!("label {label} among {classes} classes");
            return Err(BackendError::Invalid { op: "batch", problem });
        }
        if self.labels.shape().rows() != batch {
            self.set_batch(batch)?;
        }
        let labels = View::new(expected, DType::U32, bytemuck::cast_slice(labels))?;
        self.backend.copy_from_host_async(labels, &mut self.labels)
    }

    fn set_batch(&mut self, batch: usize) -> Result<()> {
        self.activations.set_batch(batch)?;
        let buffers = [&mut self.pixels, &mut self.head_logits, &mut self.text_logits, &mut self.labels];
        let crops = self.crops.iter_mut().flat_map(|c| [&mut c.images, &mut c.rectangles]);
        let triplets = self.triplets.iter_mut().flat_map(|t| [&mut t.pairs, &mut t.distances]);
        let mixing = self.mixing.iter_mut().flat_map(Mixing::tensors);
        let mut all = buffers.into_iter().chain(crops).chain(triplets).chain(mixing);
        all.try_for_each(|t| t.set_rows(batch))
    }
}

/// What the classes count in training.
fn counting<B: Backend>(objective: Objective, weights: Option<&B::Tensor>) -> Counting<'_, B> {
    let of_text = objective.head == 0.0;
    Counting { weights, smoothing: objective.counts.smoothing, of_text }
}

fn classifier<'a, B: Backend>(head: &'a Head<B>, text: &'a B::Tensor, text_scale: f64) -> Classifier<'a, B> {
    Classifier { weight: &head.weight.value, bias: &head.bias.value, text, text_scale }
}
