//! The batches of a split on the host, and a pass over them.

use super::learner::{Input, Learner, Which};
use super::metrics::Accumulator;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::data::{Cache, SplitView};
use crate::progress::Monitor;
use crate::settings::Key;
use crate::tensor::Tensor;
use std::collections::VecDeque;
use std::sync::Arc;

/// Source of the batches of a split: its images, or their features where these do not change.
pub(crate) enum Inputs<'a> {
    /// The split's images, which go through the tower.
    Images(SplitView<'a>),
    /// Features \[N, E\] of the images, and their labels.
    Features {
        /// \[N, E\], normalised; a row for each image of the split, in its order.
        values: Arc<Tensor>,
        /// \[N\]
        labels: &'a [u32],
        /// Text tower whose class features are compared with these: tuned or frozen.
        which: Which,
    },
}

impl Inputs<'_> {
    /// The class of every image, in the order of the split.
    pub fn labels(&self) -> &[u32] {
        match self {
            Inputs::Images(split) => split.labels(),
            Inputs::Features { labels, .. } => labels,
        }
    }

    /// Room for batches of these, which are `cache`'s images or their features.
    pub(crate) fn staging(&self, cache: &Cache, batch: usize) -> Staging {
        match self {
            Inputs::Images(_) => Staging::new(cache, batch),
            Inputs::Features { values, .. } => Staging::of_features(values, batch),
        }
    }
}

/// A batch on the host: images or features next to each other, and their labels.
pub(crate) struct Staging {
    /// \[n, …\]: the batch that was filled in last; the memory is that of the largest.
    pub inputs: Tensor,
    /// \[n\]
    pub labels: Vec<u32>,
}

impl Staging {
    /// Room for `batch` images of `cache`.
    pub fn new(cache: &Cache, batch: usize) -> Self {
        let inputs = Tensor::zeros(cache.batch_shape(batch), cache.dtype());
        Staging { inputs, labels: Vec::with_capacity(batch) }
    }

    /// Room for the features of `batch` images.
    pub fn of_features(features: &Tensor, batch: usize) -> Self {
        let inputs = Tensor::zeros([batch, features.shape().columns()], features.dtype());
        Staging { inputs, labels: Vec::with_capacity(batch) }
    }

    /// The batch that was filled in last, as a learner takes it.
    pub fn input(&self, of: &Inputs<'_>) -> Input<'_> {
        match of {
            Inputs::Images(_) => Input::Images(self.inputs.view()),
            Inputs::Features { .. } => Input::Features(self.inputs.view()),
        }
    }

    /// Copies the images, or features, `indices`.
    pub fn fill(&mut self, inputs: &Inputs<'_>, indices: &[usize]) -> Result<()> {
        self.inputs.set_rows(indices.len())?;
        match inputs {
            Inputs::Images(split) => split.gather(indices, &mut self.inputs)?,
            Inputs::Features { values, .. } => {
                let size = values.shape().columns() * values.dtype().size();
                for (row, &index) in self.inputs.bytes_mut().chunks_exact_mut(size).zip(indices) {
                    row.copy_from_slice(values.view().rows(index, 1)?.bytes());
                }
            }
        }
        self.labels.clear();
        self.labels.extend(indices.iter().map(|&i| inputs.labels()[i]));
        Ok(())
    }
}

/// Batches that the device has before the oldest of them is waited for and counted: it works on one while the host
/// gathers the next.
const BEHIND: usize = 2;

/// Runs over a split in order and adds it to `sums`; `None` when the user asked to stop.
pub(crate) fn evaluate_split<B: Backend>(
    learner: &mut Learner<B>,
    inputs: &Inputs<'_>,
    staging: &mut Staging,
    batch: usize,
    task: &str,
    mut sums: Accumulator,
    monitor: &dyn Monitor,
) -> Result<Option<Accumulator>> {
    let indices: Vec<usize> = (0..inputs.labels().len()).collect();
    let mut waiting: VecDeque<Waiting<B>> = VecDeque::with_capacity(BEHIND + 1);
    monitor.begin(task, indices.len() as u64);
    for indices in indices.chunks(batch) {
        if monitor.stopped() {
            monitor.finish();
            return Ok(None);
        }
        staging.fill(inputs, indices)?;
        let which = match inputs {
            Inputs::Images(_) => Which::Tuned,
            Inputs::Features { which, .. } => *which,
        };
        learner.evaluate(staging.input(inputs), &staging.labels, which)?;
        let logits = learner.fetch_logits()?;
        waiting.push_back(Waiting { logits, labels: staging.labels.clone() });
        if waiting.len() > BEHIND
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.count(learner.backend(), &mut sums, monitor)?;
        }
    }
    for last in waiting {
        last.count(learner.backend(), &mut sums, monitor)?;
    }
    monitor.finish();
    Ok(Some(sums))
}

/// A batch whose logits are on their way.
struct Waiting<B: Backend> {
    logits: [B::Pending; 2],
    labels: Vec<u32>,
}

impl<B: Backend> Waiting<B> {
    fn count(mut self, backend: &B, sums: &mut Accumulator, monitor: &dyn Monitor) -> Result<()> {
        let [head, text] = &mut self.logits;
        if let (Some(head), Some(text)) = (backend.arrived(head, true)?, backend.arrived(text, true)?) {
            sums.add(&head, &text, &self.labels)?;
        }
        monitor.advance(self.labels.len() as u64);
        Ok(())
    }
}

/// Refuses results in which the loss of an image is no number.
pub(crate) fn require_numbers(sums: &Accumulator, images: SplitView<'_>) -> Result<()> {
    let Some(index) = sums.not_finite() else { return Ok(()) };
    let path = images.path(index).unwrap_or_default();
    let problem = format!(
        "the model's logits for it are not numbers; try {} f32, or check the weights",
        Key::precision
    );
    Err(TrainError::file(&path, problem))
}
