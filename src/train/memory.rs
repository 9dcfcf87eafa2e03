//! Whether a batch fits into the device's memory, before anything is allocated for it.

use super::learner::LearnerSpec;
use super::model::TextTraining;
use super::{Result, TrainError};
use crate::backend::{Backend, DeviceTensor};
use crate::clip::text::{PART, TextActivations};
use crate::clip::vision::{VisionActivations, VisionTower};
use crate::tensor::DType;
use crate::tune::{TowerDropout, TowerTuning, Trained};

/// Batches of pixels that the device may hold at once: the one it works on and those on their way.
const BATCHES_OF_PIXELS: usize = 4;

/// What training takes of the device's memory beside the weights and what is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Whatever the batch is.
    pub fixed: usize,
    /// For each image of a batch.
    pub image: usize,
}

impl Estimate {
    /// What the activations of an image take is measured: the difference between memory for two images and
    /// for one; so is what the text tower takes where it is trained. The rest is added up.
    pub fn of<B: Backend>(
        backend: &B,
        tower: &VisionTower<B>,
        text: Option<&TextTraining<B>>,
        trained: &Trained<B>,
        spec: &LearnerSpec,
    ) -> Result<Self> {
        let draw = backend.zeros([4], DType::U32)?;
        let dropout =
            spec.dropout.map(|spec| TowerDropout { draw: &draw, probability: spec.probability, part: 0 });
        let tuning = TowerTuning { dropout, ..trained.tower() };
        let activations = |images: usize| {
            allocated_by(backend, || {
                Ok(VisionActivations::new(backend, tower, images, tuning, spec.purpose)?)
            })
        };
        let ((_, one), (_, two)) = (activations(1)?, activations(2)?);
        let (_, folded) = allocated_by(backend, || Ok(tower.folded(backend, &trained.lora)?))?;
        let lora = &trained.text_lora;
        let text = match text.filter(|_| !lora.is_empty()) {
            Some(TextTraining { tower, prompts }) => {
                let (_, work) = allocated_by(backend, || {
                    Ok(TextActivations::new(backend, tower, prompts, lora, dropout.is_some(), PART)?)
                })?;
                work + allocated_by(backend, || Ok(tower.folded(backend, lora)?))?.1
            }
            None => 0,
        };
        let elements: usize = trained.params().iter().map(|p| p.value.shape().elements()).sum();
        let sums = if spec.accumulate { elements * backend.master_dtype().size() } else { 0 };
        let pixel = if spec.image_dtype == DType::U8 { DType::U8 } else { backend.compute_dtype() };
        let source = spec.crops_of.map_or(0, |side| side * side * 3);
        let pixels = BATCHES_OF_PIXELS * (spec.image.elements() * pixel.size() + source);
        let classes = trained.head.bias.value.shape().rows();
        let logits = 2 * classes * backend.master_dtype().size();
        // A second output beside the largest one, where algorithms are tried.
        let sizes = &tower.config().tower;
        let tokens = tower.longest(trained.prompts.as_ref());
        let trial = tokens * sizes.mlp.max(3 * sizes.width) * backend.compute_dtype().size();
        let per_image = two.saturating_sub(one);
        Ok(Estimate {
            fixed: one.saturating_sub(per_image) + folded + text + sums,
            image: per_image + pixels + logits + trial,
        })
    }

    /// For a batch of so many images.
    pub fn of_batch(&self, images: usize) -> usize {
        self.fixed + images * self.image
    }
}

/// Runs `make`, and counts the bytes that what it makes takes.
pub(super) fn allocated_by<B: Backend, T>(
    backend: &B,
    make: impl FnOnce() -> Result<T>,
) -> Result<(T, usize)> {
    let before = backend.allocated()?;
    let made = make()?;
    Ok((made, backend.allocated()?.saturating_sub(before)))
}

/// Refuses a batch that does not fit, with the size that would.
pub fn check_batch<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    text: Option<&TextTraining<B>>,
    trained: &Trained<B>,
    spec: &LearnerSpec,
) -> Result<()> {
    let Some(memory) = backend.memory()? else { return Ok(()) };
    let estimate = Estimate::of(backend, tower, text, trained, spec)?;
    let needed = estimate.of_batch(spec.batch);
    // Allocations are rounded up, and algorithms want memory too.
    let usable = memory.free - memory.free / 20;
    if needed <= usable {
        return Ok(());
    }
    let fits = usable.saturating_sub(estimate.fixed) / estimate.image.max(1);
    Err(TrainError::DeviceMemory { batch: spec.batch, needed, free: usable, fits })
}
