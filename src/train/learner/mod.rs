//! Model, adapters, head and optimizer together: one training step, one evaluation batch.
//!
//! A step is in `step`, what evaluation does in `evaluation`; a batch's way to the device is in `batch`, AdamW and its
//! state in `optimizer`, the numbers of a step in `stats`, what is replayed as a CUDA graph in `graphs`.

mod batch;
mod evaluation;
mod graphs;
mod optimizer;
mod stats;
mod step;

pub use batch::{Batch, Input, MicroBatch};
pub use evaluation::Which;
pub use stats::{LossParts, PendingStats, StepStats};

use crate::backend::{Backend, Classifier, DeviceTensor, LossScaling, Result, Stat};
use crate::clip::text::{EmbeddedPrompts, TextActivations, TextClassifier, TextTower};
use crate::clip::vision::{Purpose, VisionActivations, VisionTower};
use crate::objective::{MixOn, Objective};
use crate::optim::Adamw;
use crate::tensor::{DType, Shape, Tensor, View};
use crate::tune::{BlockLayers, DropoutSpec, Head, Param, Place, Prompts, TowerTuning, Trained};
use batch::Batches;
use graphs::Graphs;
use optimizer::Optimizer;
use std::sync::Arc;

/// Everything that is fixed before the first step.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnerSpec {
    /// Images per batch at the most.
    pub batch: usize,
    /// Shape of one image as it is handed in: \[S, S, 3\] for u8, \[3, S, S\] for numbers.
    pub image: Shape,
    /// Element type of the images as they are handed in; numbers are converted to the compute type, u8 stays.
    pub image_dtype: DType,
    /// Loss that training minimises.
    pub objective: Objective,
    /// False for evaluation alone, which has no memory for gradients and the optimizer.
    pub trains: bool,
    /// Where training batches are mixed.
    pub mix: Option<MixOn>,
    /// Side of the images that training batches are crops of; none where they are taken as they are.
    pub crops_of: Option<usize>,
    /// The optimizer's constants.
    pub adamw: Adamw,
    /// Loss scaling, for f16; the other types need none.
    pub scaling: Option<LossScaling>,
    /// Dropout in front of the adapters.
    pub dropout: Option<DropoutSpec>,
    /// See [`AdamwStep::clip`](crate::backend::AdamwStep::clip).
    pub clip: Option<f64>,
    /// Whether several batches may make up a step.
    pub accumulate: bool,
}

impl LearnerSpec {
    /// Steps of one batch of whole images, with loss scaling where the backend's number type needs it.
    pub fn new<B: Backend>(
        backend: &B,
        batch: usize,
        image: Shape,
        image_dtype: DType,
        objective: Objective,
    ) -> Self {
        LearnerSpec {
            batch,
            image,
            image_dtype,
            objective,
            trains: true,
            mix: None,
            crops_of: None,
            adamw: Adamw::default(),
            scaling: loss_scaling(backend),
            dropout: None,
            clip: None,
            accumulate: false,
        }
    }

    /// Element type of the images on the device.
    pub(crate) fn pixel_dtype<B: Backend>(&self, backend: &B) -> DType {
        if self.image_dtype == DType::U8 { DType::U8 } else { backend.compute_dtype() }
    }

    /// Whether steps keep the vision tower's activations: not where nothing in that tower is trained.
    pub(crate) fn keeps_activations<B: Backend>(&self, trained: &Trained<B>) -> bool {
        self.trains && !trained.tower().is_none()
    }
}

/// Loss scaling as the backend's number type needs it.
pub(crate) fn loss_scaling<B: Backend>(backend: &B) -> Option<LossScaling> {
    (backend.compute_dtype() == DType::F16).then(LossScaling::default)
}

/// The text tower, where it is trained.
pub(in crate::train) struct TextTuning<B: Backend> {
    tower: Arc<TextTower<B>>,
    activations: TextActivations<B>,
    /// T with the adapters, and its gradient \[C, E\].
    features: B::Tensor,
    d_features: B::Tensor,
}

impl<B: Backend> TextTuning<B> {
    /// Up to `part` prompts are computed together; `dropout` says whether there is any.
    pub fn new(
        backend: &B,
        tower: Arc<TextTower<B>>,
        prompts: &EmbeddedPrompts,
        lora: &[BlockLayers<B>],
        dropout: bool,
        part: usize,
    ) -> Result<Self> {
        let features = || backend.empty([prompts.classes(), tower.features], backend.parameter_dtype());
        Ok(TextTuning {
            activations: TextActivations::new(backend, &tower, prompts, lora, dropout, part)?,
            features: features()?,
            d_features: features()?,
            tower,
        })
    }
}

/// Pairs and distances that the triplet loss keeps for its gradient: see [`TripletOp::triplet`](crate::backend::TripletOp::triplet).
struct Triplets<B: Backend> {
    pairs: B::Tensor,
    distances: B::Tensor,
}

/// Results behind the towers, for the batch that ran last.
struct Outputs<B: Backend> {
    /// \[n, C\]
    head_logits: B::Tensor,
    text_logits: B::Tensor,
    triplets: Option<Triplets<B>>,
    /// See [`Stat`].
    stats: B::Tensor,
}

/// What a learner allocates besides what is trained, for batches of up to as many images as its [`LearnerSpec`] says.
pub(in crate::train) struct Room<B: Backend> {
    buffers: Batches<B>,
    activations: VisionActivations<B>,
    outputs: Outputs<B>,
    optimizer: Optimizer<B>,
    /// T of the frozen tower \[C, E\].
    text: B::Tensor,
}

impl<B: Backend> Room<B> {
    /// `folds` says whether training steps have the adapters folded into the weights.
    pub fn new(
        backend: &B,
        tower: &VisionTower<B>,
        trained: &Trained<B>,
        spec: &LearnerSpec,
        folds: impl FnOnce(TowerTuning<'_, B>) -> Result<bool>,
    ) -> Result<Self> {
        let (batch, parameter) = (spec.batch, backend.parameter_dtype());
        let classes = trained.head.bias.value.shape().rows();
        let buffers = Batches::new(backend, spec, classes, tower.features())?;
        let tuning = TowerTuning { dropout: buffers.dropout(), ..trained.tower() };
        let purpose = match spec.keeps_activations(trained) {
            true => Purpose::Training { folded: folds(tuning)? },
            false => Purpose::Inference,
        };
        let activations = VisionActivations::new(backend, tower, batch, tuning, purpose)?;
        let triplets = (spec.objective.triplet != 0.0).then(|| -> Result<_> {
            Ok(Triplets {
                pairs: backend.zeros([batch, 2], DType::U32)?,
                distances: backend.empty([batch, 2], parameter)?,
            })
        });
        let outputs = Outputs {
            head_logits: backend.empty([batch, classes], parameter)?,
            text_logits: backend.empty([batch, classes], parameter)?,
            triplets: triplets.transpose()?,
            stats: backend.zeros([Stat::COUNT], parameter)?,
        };
        let optimizer = Optimizer::new(backend, spec, &trained.params())?;
        let text = backend.empty([classes, tower.features()], parameter)?;
        Ok(Room { buffers, activations, outputs, optimizer, text })
    }
}

/// The frozen towers with what is trained on them. All memory is allocated by [`Learner::new`]
/// and [`Learner::with_text_tower`].
pub struct Learner<B: Backend> {
    backend: B,
    tower: Arc<VisionTower<B>>,
    trained: Trained<B>,
    /// Whether the adapters are folded, and the class features computed, as the trained tensors are now.
    evaluation_is_current: bool,
    /// T of the frozen tower.
    text: B::Tensor,
    text_scale: f64,
    text_tuning: Option<TextTuning<B>>,
    buffers: Batches<B>,
    activations: VisionActivations<B>,
    outputs: Outputs<B>,
    objective: Objective,
    optimizer: Optimizer<B>,
    graphs: Graphs<B, (Work, usize)>,
}

/// Work on a batch that was loaded, captured where the backend can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    /// Forward, backward, and where the step is complete the optimizer; the share of the step's images, which a
    /// captured graph holds, by its bits.
    Train { on_features: bool, place: Place, share: u64 },
    /// Evaluation.
    Evaluate { on_features: bool, which: Which },
}

impl<B: Backend> Learner<B> {
    /// A learner before its first step: `trained` is what its steps move, `text` are the class features of
    /// the frozen tower, for as many classes as the head has.
    pub fn new(
        backend: B,
        tower: Arc<VisionTower<B>>,
        mut trained: Trained<B>,
        text: &TextClassifier,
        spec: &LearnerSpec,
    ) -> Result<Self> {
        if spec.trains {
            trained.prepare_to_train(&backend)?;
        }
        let folds = |tuning: TowerTuning<'_, B>| tower.trains_folded(&backend, tuning, spec.batch);
        let mut room = Room::new(&backend, &tower, &trained, spec, folds)?;
        backend.copy_from_host(text.features.view(), &mut room.text)?;
        BlockLayers::make_room_to_fold(&backend, &mut trained.lora)?;
        let rows = spec.batch * tower.longest(trained.tower().prompts);
        backend.settle(rows, tower.config().tower.width)?;
        Ok(Learner {
            evaluation_is_current: false,
            text: room.text,
            text_scale: text.scale,
            text_tuning: None,
            buffers: room.buffers,
            activations: room.activations,
            outputs: room.outputs,
            objective: spec.objective,
            optimizer: room.optimizer,
            graphs: Graphs { enabled: backend.can_capture(), ..Graphs::default() },
            backend,
            tower,
            trained,
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
        let (backend, lora) = (&self.backend, &mut self.trained.text_lora);
        let dropout = self.buffers.dropout().is_some();
        BlockLayers::make_room_to_fold(backend, lora)?;
        self.text_tuning = Some(TextTuning::new(backend, tower, prompts, lora, dropout, part)?);
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

    /// The layers of the vision tower with adapters, block by block; empty where it has none.
    pub fn lora(&self) -> &[BlockLayers<B>] {
        &self.trained.lora
    }

    /// Those of the text tower.
    pub fn text_lora(&self) -> &[BlockLayers<B>] {
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

    /// Loss that training minimises.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// Changes the weights of the parts of the loss; a triplet loss cannot come in that was not there.
    pub(crate) fn set_objective(&mut self, objective: Objective) {
        self.objective = objective;
    }

    /// Training steps so far, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps
    }

    /// The optimizer's own state, see [`Control`](crate::backend::Control).
    pub fn control(&self) -> Result<Tensor> {
        self.backend.download(&self.optimizer.control)
    }

    /// Whether steps are captured and replayed where the backend can; operations that are started one by
    /// one are easier to watch with a profiler.
    pub fn set_capture(&mut self, capture: bool) {
        self.graphs.enabled = capture && self.backend.can_capture();
    }

    /// Continues from the number of steps and the optimizer's state of an earlier run.
    pub fn resume(&mut self, steps: u64, control: View<'_>) -> Result<()> {
        self.optimizer.steps = steps;
        self.backend.copy_from_host(control, &mut self.optimizer.control)
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
    pub(crate) fn params_mut(&mut self) -> Vec<&mut Param<B>> {
        self.evaluation_is_current = false;
        self.trained.params_mut()
    }

    /// Logits of the last batch that was evaluated: head \[n, C\] and text \[n, C\].
    pub fn logits(&self) -> Result<(Tensor, Tensor)> {
        let Outputs { head_logits, text_logits, .. } = &self.outputs;
        Ok((self.backend.download(head_logits)?, self.backend.download(text_logits)?))
    }

    /// Normalised features of the last batch \[n, E\].
    pub fn features(&self) -> Result<Tensor> {
        self.backend.download(self.buffers.features.or(&self.activations.ends.features))
    }

    /// As [`Learner::features`], without waiting.
    pub(crate) fn fetch_features(&self) -> Result<B::Pending> {
        self.backend.fetch(self.buffers.features.or(&self.activations.ends.features))
    }

    /// Losses and counts of the last batch; the gradient norm is that of the last training step. Waits for
    /// the device.
    pub fn stats(&self) -> Result<StepStats> {
        StepStats::from_tensor(&self.backend.download(&self.outputs.stats)?, self.objective)
    }

    /// As [`Learner::stats`], without waiting.
    pub fn fetch_stats(&self) -> Result<PendingStats<B>> {
        Ok(PendingStats { pending: self.backend.fetch(&self.outputs.stats)?, objective: self.objective })
    }

    /// As [`Learner::logits`], without waiting; for [`Memory::arrived`](crate::backend::Memory::arrived).
    pub(crate) fn fetch_logits(&self) -> Result<[B::Pending; 2]> {
        let Outputs { head_logits, text_logits, .. } = &self.outputs;
        Ok([self.backend.fetch(head_logits)?, self.backend.fetch(text_logits)?])
    }

    /// Copies the values of all trained tensors to the host, in the order of [`Learner::params`].
    pub fn snapshot(&self) -> Result<Vec<Tensor>> {
        self.params().into_iter().map(|p| self.backend.download(&p.value)).collect()
    }

    /// Puts values from [`Learner::snapshot`] back.
    pub fn restore(&mut self, values: &[Tensor]) -> Result<()> {
        let backend = self.backend.clone();
        self.params_mut()
            .into_iter()
            .zip(values)
            .try_for_each(|(p, v)| backend.copy_from_host(v.view(), &mut p.value))
    }

    /// Puts values from [`Learner::snapshot`] back, for a training that starts from them.
    pub(crate) fn restart(&mut self, values: &[Tensor]) -> Result<()> {
        self.restore(values)?;
        let backend = self.backend.clone();
        for param in self.trained.params_mut() {
            [&mut param.first_moment, &mut param.second_moment]
                .into_iter()
                .try_for_each(|m| backend.clear(m))?;
        }
        self.optimizer.restart(&backend)
    }

    /// Checks a batch, and sets every buffer of the next one to its size.
    fn make_room(&mut self, input: Input<'_>, labels: &[u32]) -> Result<()> {
        self.buffers.check(input, labels)?;
        self.buffers.next(input.is_features());
        let batch = labels.len();
        self.buffers.set_rows(batch)?;
        self.activations.set_batch(batch)?;
        let Outputs { head_logits, text_logits, triplets, .. } = &mut self.outputs;
        let triplets = triplets.iter_mut().flat_map(|t| [&mut t.pairs, &mut t.distances]);
        [head_logits, text_logits].into_iter().chain(triplets).try_for_each(|t| t.set_rows(batch))
    }

    /// Runs work on the batch that was loaded.
    fn run(&mut self, work: Work) -> Result<()> {
        let (backend, key, set) = (self.backend.clone(), (work, self.buffers.rows()), self.buffers.current());
        let mut graphs = std::mem::take(&mut self.graphs);
        let result = graphs.run(&backend, key, set, || match work {
            Work::Train { on_features, place, share } => {
                self.training_step(on_features, MicroBatch { place, share: f64::from_bits(share) })
            }
            Work::Evaluate { on_features, which } => self.evaluation(on_features, which),
        });
        self.graphs = graphs;
        result
    }
}

fn classifier<'a, B: Backend>(head: &'a Head<B>, text: &'a B::Tensor, text_scale: f64) -> Classifier<'a, B> {
    Classifier { weight: &head.weight.value, bias: &head.bias.value, text, text_scale }
}
