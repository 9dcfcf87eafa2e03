//! The batches of a split on the host, and a pass over them.

use super::learner::{Input, Learner, Which};
use super::metrics::Accumulator;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::data::SplitView;
use crate::progress::Monitor;
use crate::settings::Key;
use crate::tensor::{DType, Rows, Shape, Tensor};
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

    /// The images, or features, `indices` of these.
    pub(crate) fn batch(&self, indices: &[usize]) -> Result<HostBatch<'_>> {
        let (shape, dtype, rows) = match self {
            Inputs::Images(split) => {
                let cache = split.cache();
                (cache.batch_shape(indices.len()), cache.dtype(), split.images(indices)?)
            }
            Inputs::Features { values, .. } => {
                let row = |&index| Ok(values.view().rows(index, 1)?.bytes());
                let rows = indices.iter().map(row).collect::<Result<_>>()?;
                (values.shape().with_rows(indices.len()), values.dtype(), rows)
            }
        };
        let labels = indices.iter().map(|&index| self.labels()[index]).collect();
        Ok(HostBatch { shape, dtype, rows, labels, features: matches!(self, Inputs::Features { .. }) })
    }
}

/// A batch on the host: where its images or features lie, and their labels.
pub(crate) struct HostBatch<'a> {
    shape: Shape,
    dtype: DType,
    rows: Vec<&'a [u8]>,
    /// \[n\]
    pub labels: Vec<u32>,
    features: bool,
}

impl HostBatch<'_> {
    /// As a learner takes it.
    pub fn input(&self) -> Result<Input<'_>> {
        let rows = Rows::new(self.shape, self.dtype, &self.rows)?.into();
        Ok(if self.features { Input::Features(rows) } else { Input::Images(rows) })
    }
}

/// What is on its way from the device: it works on a batch while the host sees to the next.
pub(crate) struct Behind<T>(VecDeque<T>);

impl<T> Behind<T> {
    /// Batches that the device has before the oldest of them is waited for.
    const BATCHES: usize = 2;

    pub fn new() -> Self {
        Behind(VecDeque::with_capacity(Self::BATCHES + 1))
    }

    /// Adds what a batch gives, and returns what is to be waited for, if anything is.
    pub fn push(&mut self, latest: T) -> Option<T> {
        self.0.push_back(latest);
        if self.0.len() > Self::BATCHES { self.0.pop_front() } else { None }
    }

    /// The rest, once there are no more batches.
    pub fn rest(self) -> impl Iterator<Item = T> {
        self.0.into_iter()
    }
}

/// Runs over a split in order and adds it to `sums`; `None` when the user asked to stop.
pub(crate) fn evaluate_split<B: Backend>(
    learner: &mut Learner<B>,
    inputs: &Inputs<'_>,
    batch: usize,
    task: &str,
    mut sums: Accumulator,
    monitor: &dyn Monitor,
) -> Result<Option<Accumulator>> {
    let indices: Vec<usize> = (0..inputs.labels().len()).collect();
    let mut waiting = Behind::new();
    monitor.begin(task, indices.len() as u64);
    for indices in indices.chunks(batch) {
        if monitor.stopped() {
            monitor.finish();
            return Ok(None);
        }
        let host = inputs.batch(indices)?;
        let which = match inputs {
            Inputs::Images(_) => Which::Tuned,
            Inputs::Features { which, .. } => *which,
        };
        learner.evaluate(host.input()?, &host.labels, which)?;
        let logits = learner.fetch_logits()?;
        if let Some(oldest) = waiting.push(Waiting { logits, labels: host.labels }) {
            oldest.count(learner.backend(), &mut sums, monitor)?;
        }
    }
    for last in waiting.rest() {
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
