//! Whether a batch fits into the device's memory, before anything is allocated for it.

use super::learner::LearnerSpec;
use super::{Result, TrainError};
use crate::backend::{Backend, DeviceTensor};
use crate::clip::vision::{VisionActivations, VisionTower};
use crate::tensor::DType;
use crate::tune::Trained;

/// Batches of pixels that the device may hold at once: the one it works on and those on their way.
const BATCHES_OF_PIXELS: usize = 4;

/// Refuses a batch that does not fit, with the size that would.
///
/// What the activations of an image take is measured: the difference between memory for two images and for
/// one. The rest is added up.
pub fn check_batch<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    trained: &Trained<B>,
    spec: &LearnerSpec,
) -> Result<()> {
    let Some(before) = backend.memory()? else { return Ok(()) };
    let activations = |images: usize| -> Result<usize> {
        let memory = VisionActivations::new(backend, tower, images, trained.tower(), spec.purpose)?;
        let now = backend.memory()?.map_or(0, |m| m.allocated);
        drop(memory);
        Ok(now.saturating_sub(before.allocated))
    };
    let (one, two) = (activations(1)?, activations(2)?);
    let folded = {
        let memory = tower.folded(backend, &trained.lora)?;
        let now = backend.memory()?.map_or(0, |m| m.allocated);
        drop(memory);
        now.saturating_sub(before.allocated)
    };
    let pixel = if spec.image_dtype == DType::U8 { DType::U8 } else { backend.compute_dtype() };
    let source = spec.crops_of.map_or(0, |side| side * side * 3);
    let pixels = BATCHES_OF_PIXELS * (spec.image.elements() * pixel.size() + source);
    let classes = trained.head.bias.value.shape().rows();
    let logits = 2 * classes * backend.master_dtype().size();
    // A second output beside the largest one, where algorithms are tried.
    let sizes = &tower.config().tower;
    let tokens = tower.longest(trained.prompts.as_ref());
    let trial = tokens * sizes.mlp.max(3 * sizes.width) * backend.compute_dtype().size();
    let image = two.saturating_sub(one) + pixels + logits + trial;
    let fixed = one.saturating_sub(two.saturating_sub(one)) + folded;
    let needed = fixed + spec.batch * image;
    // Allocations are rounded up, and algorithms want memory too.
    let usable = before.free - before.free / 20;
    if needed <= usable {
        return Ok(());
    }
    let fits = usable.saturating_sub(fixed) / image.max(1);
    Err(TrainError::DeviceMemory { batch: spec.batch, needed, free: usable, fits })
}
