//! Whether a batch fits into the device's memory, before anything is allocated for it.

use super::learner::{LearnerSpec, Room, TextTuning};
use super::model::TextTraining;
use super::{Result, TrainError};
use crate::backend::{Backend, DeviceMemory};
use crate::clip::text::PART;
use crate::clip::vision::{Purpose, VisionActivations, VisionTower};
use crate::tensor::DType;
use crate::tune::{BlockLayers, TowerTuning, Trained};

/// Batches of photos that are on their way to the device while it works on another.
const ON_THEIR_WAY: usize = 3;

/// Estimate of the device's memory that training takes beside the weights and what is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// Bytes for any batch, however small.
    pub fixed: usize,
    /// Bytes for each image of a batch.
    pub image: usize,
}

impl Estimate {
    /// Measures what a learner allocates for one image and for two, and for a few classes where the text tower is
    /// trained. What comes and goes is added to it.
    pub fn of<B: Backend>(
        backend: &B,
        tower: &VisionTower<B>,
        text: Option<&TextTraining<B>>,
        trained: &Trained<B>,
        spec: &LearnerSpec,
    ) -> Result<Self> {
        // The form that takes more.
        let folds = |tuning: TowerTuning<'_, B>| Ok(tower.can_train_folded(backend, tuning));
        let [fixed, image] = measured(backend, |batch| {
            Ok(Room::new(backend, tower, trained, &LearnerSpec { batch, ..spec.clone() }, folds)?)
        })?;
        let (_, folded) = allocated_by(backend, || Ok(BlockLayers::room_to_fold(backend, &trained.lora)?))?;
        let weights = if spec.keeps_activations(trained) { tower.bytes_to_come(backend) } else { 0 };
        let text = match text.filter(|_| !trained.text_lora.is_empty()) {
            Some(text) => of_text(backend, text, &trained.text_lora, spec.dropout.is_some())?,
            None => 0,
        };
        Ok(Estimate {
            fixed: fixed + weights + folded + text,
            image: image + trial(backend, tower, trained.tower()),
        })
    }

    /// For a batch of so many images.
    pub(crate) fn of_batch(&self, images: usize) -> usize {
        self.fixed.saturating_add(images.saturating_mul(self.image))
    }
    /// Refuses a batch that does not fit, with the size that would.
    fn check(&self, batch: usize, memory: DeviceMemory) -> Result<()> {
        let (needed, fixed) = (self.of_batch(batch), self.fixed);
        // Allocations are rounded up, and algorithms want memory too.
        let free = memory.free.saturating_sub((memory.free / 20).max(memory.reserve));
        if needed <= free {
            return Ok(());
        }
        let fits = free.saturating_sub(fixed) / self.image.max(1);
        Err(TrainError::DeviceMemory { memory: memory.name, batch, needed, fixed, free, fits })
    }
}

/// Bytes for each image of a second output beside the largest one, where algorithms are tried.
fn trial<B: Backend>(backend: &B, tower: &VisionTower<B>, tuning: TowerTuning<'_, B>) -> usize {
    let sizes = &tower.config().tower;
    tower.longest(tuning.prompts) * sizes.mlp.max(3 * sizes.width) * backend.compute_dtype().size()
}

/// Measures the bytes that the text tower takes where it is trained, by a few prompts: they grow with the templates, with
/// the classes and with those of a part.
fn of_text<B: Backend>(
    backend: &B,
    TextTraining { tower, prompts }: &TextTraining<B>,
    lora: &[BlockLayers<B>],
    dropout: bool,
) -> Result<usize> {
    let (classes, together) = (prompts.classes(), prompts.together(PART));
    let bytes = |classes, together, templates| {
        let (few, part) = (prompts.resized(classes, templates)?, together * templates);
        let make = || Ok(TextTuning::new(backend, tower.clone(), &few, lora, dropout, part)?);
        Ok::<_, TrainError>(allocated_by(backend, make)?.1)
    };
    let of_templates = |templates| {
        if classes <= together {
            let [one, two] = [bytes(1, 1, templates)?, bytes(2, 2, templates)?];
            return Ok::<_, TrainError>(one + classes.saturating_sub(1) * two.saturating_sub(one));
        }
        let [two, three] = [bytes(2, 1, templates)?, bytes(3, 1, templates)?];
        let [class, of_part] = [three.saturating_sub(two), bytes(3, 2, templates)?.saturating_sub(three)];
        Ok(two + (classes - 2) * class + (together - 1) * of_part)
    };
    let [one, two] = [of_templates(1)?, of_templates(2)?];
    let (_, folded) = allocated_by(backend, || Ok(BlockLayers::room_to_fold(backend, lora)?))?;
    Ok(one + prompts.templates().saturating_sub(1) * two.saturating_sub(one) + folded)
}

/// Bytes of what `make` makes for a number of images or the like: whatever the number is, and for each.
fn measured<B: Backend, T>(backend: &B, make: impl Fn(usize) -> Result<T>) -> Result<[usize; 2]> {
    let bytes = |count| Ok::<_, TrainError>(allocated_by(backend, || make(count))?.1);
    let one = bytes(1)?;
    let each = bytes(2)?.saturating_sub(one);
    Ok([one.saturating_sub(each), each])
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

/// Refuses a batch to train on or to evaluate that does not fit, with the size that would.
pub(crate) fn check_batch<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    text: Option<&TextTraining<B>>,
    trained: &Trained<B>,
    spec: &LearnerSpec,
) -> Result<()> {
    let Some(memory) = backend.memory()? else { return Ok(()) };
    Estimate::of(backend, tower, text, trained, spec)?.check(spec.batch, memory)
}

/// Refuses a batch of decoded photos that does not fit, where nothing but their features is computed.
pub(super) fn check_photos<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    tuning: TowerTuning<'_, B>,
    batch: usize,
) -> Result<()> {
    let Some(memory) = backend.memory()? else { return Ok(()) };
    let make = |images| Ok(VisionActivations::new(backend, tower, images, tuning, Purpose::Inference)?);
    let [fixed, image] = measured(backend, make)?;
    let side = tower.config().image_size;
    // Beside those on their way the batch that the tower sees.
    let pixels = (ON_THEIR_WAY + 1) * 3 * side * side * DType::F32.size();
    Estimate { fixed, image: image + pixels + trial(backend, tower, tuning) }.check(batch, memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Activation;
    use crate::backend::cpu::Cpu;
    use crate::clip::config::{TextConfig, TowerConfig, VisionConfig};
    use crate::clip::random::RandomWeights;
    use crate::clip::text::{EmbeddedPrompts, TextClassifier, TextTower};
    use crate::clip::tokenizer::TokenBatch;
    use crate::clip::vision::{Normalisation, Savings};
    use crate::objective::{ClassCounts, MixOn, Objective};
    use crate::tensor::Tensor;
    use crate::train::learner::Learner;
    use crate::tune::lora::KaimingInit;
    use crate::tune::{DropoutSpec, Head, LoraSpec, Target, Tower};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::sync::Arc;

    const SOURCE: RandomWeights = RandomWeights { seed: 4 };

    fn block() -> TowerConfig {
        let activation = Activation::QuickGelu;
        TowerConfig { width: 16, mlp: 32, layers: 3, heads: 2, activation, norm_eps: 1e-5 }
    }

    fn lora() -> (LoraSpec, ChaCha8Rng) {
        let spec = LoraSpec { towers: Tower::ALL.to_vec(), ..LoraSpec::new(2, 2.0, &Target::ALL) };
        (spec, ChaCha8Rng::seed_from_u64(1))
    }

    fn vision(backend: &Cpu<f32>) -> (VisionTower<Cpu<f32>>, Vec<BlockLayers<Cpu<f32>>>) {
        let config = VisionConfig { tower: block(), image_size: 32, patch_size: 4 };
        let norm = Normalisation::CLIP;
        let tower = VisionTower::load(backend, &SOURCE, &config, 8, norm, Savings::ALL).unwrap();
        let (spec, mut rng) = lora();
        let lora = tower.adapters(backend, &spec, &mut KaimingInit { rank: 2, rng: &mut rng }).unwrap();
        (tower, lora)
    }

    #[test]
    fn activations_on_the_cpu_are_counted_to_the_byte() {
        let backend = Cpu::<f32>::new();
        let (tower, lora) = vision(&backend);
        let tuning = TowerTuning { lora: &lora, prompts: None, dropout: None };
        let training = [false, true].map(|folded| Purpose::Training { folded });
        for purpose in [Purpose::Inference].into_iter().chain(training) {
            let make = |images| Ok(VisionActivations::new(&backend, &tower, images, tuning, purpose)?);
            let [fixed, image] = measured(&backend, make).unwrap();
            assert_eq!(allocated_by(&backend, || make(7)).unwrap().1, fixed + 7 * image, "{purpose:?}");
            // f32 probabilities of the blocks in front of the last; without training one block serves both.
            let kept = if purpose == Purpose::Inference { 1 } else { 2 };
            let probabilities = kept * 2 * 65 * 65 * 4;
            assert!(image > probabilities, "{purpose:?}: {image} with {probabilities} of probabilities");
        }
    }

    #[test]
    fn a_learner_on_the_cpu_is_counted_to_the_byte() {
        let backend = Cpu::<f32>::new();
        let (tower, lora) = vision(&backend);
        let (classes, images) = (5, 7);
        let features = Tensor::zeros([classes, 8], DType::F32);
        let head = Head::new(&backend, features.view(), Tensor::zeros([classes], DType::F32).view()).unwrap();
        let mut trained = Trained { lora, ..Trained::head(head) };
        trained.prepare_to_train(&backend).unwrap();
        let counts = ClassCounts { weighted: true, smoothing: 0.1 };
        let objective = Objective { triplet: 0.5, ..Objective::new(1.0, 0.5).with_counts(counts) };
        let spec = LearnerSpec {
            mix: Some(MixOn::Features),
            crops_of: Some(40),
            dropout: Some(DropoutSpec { probability: 0.5, seed: 1 }),
            accumulate: true,
            ..LearnerSpec::new(&backend, images, [32, 32, 3].into(), DType::U8, objective)
        };
        let estimate = Estimate::of(&backend, &tower, None, &trained, &spec).unwrap();
        let comes_and_goes = trial(&backend, &tower, trained.tower());
        // Weights packed for the way back are made on it.
        let to_come = tower.bytes_to_come(&backend);
        let text = TextClassifier { features, scale: 1.0 };
        let make = || Ok(Learner::new(backend, Arc::new(tower), trained, &text, &spec)?);
        let (_, real) = allocated_by(&Cpu::<f32>::new(), make).unwrap();
        assert_eq!(estimate.of_batch(images), real + to_come + images * comes_and_goes);
    }

    #[test]
    fn photos_that_do_not_fit_are_refused_with_the_number_that_does() {
        let backend = Cpu::<f32>::new();
        let (tower, lora) = vision(&backend);
        let tuning = TowerTuning { lora: &lora, prompts: None, dropout: None };
        check_photos(&backend, &tower, tuning, 1).unwrap();
        let batch = 1 << 40;
        let error = check_photos(&backend, &tower, tuning, batch).unwrap_err();
        let line = error.to_string();
        assert!(line.starts_with("--batch-size: 1099511627776 images need "), "{line}");
        assert!(line.contains(" MiB of memory and "), "{line}");
        let TrainError::DeviceMemory { fits, .. } = error else { panic!("{line}") };
        assert!((1..batch).contains(&fits) && line.ends_with(&format!("up to {fits} fit")), "{line}");
    }

    #[test]
    fn the_largest_batch_that_fits_does() {
        let estimate = Estimate { fixed: 1000, image: 100 };
        let check = |batch, free| {
            let memory = DeviceMemory { name: "memory", free, reserve: 90, allocated: 0 };
            match estimate.check(batch, memory) {
                Ok(()) => None,
                Err(TrainError::DeviceMemory { fits, .. }) => Some(fits),
                Err(error) => panic!("{error}"),
            }
        };
        // 95 % of 2000 are 1900.
        assert_eq!((check(9, 2000), check(10, 2000), check(usize::MAX, 2000)), (None, Some(9), Some(9)));
        assert_eq!(check(1, 1000), Some(0));
        // Of less than 1800 the reserve is more than 5 %.
        assert_eq!((check(6, 1689), check(6, 1690), check(1, 80)), (Some(5), None, Some(0)));
    }

    #[test]
    fn a_text_tower_is_estimated_without_the_memory_it_would_take() {
        let backend = Cpu::<f32>::new();
        let config = TextConfig { tower: block(), vocabulary: 30, max_tokens: 8, bos: Some(28), eos: 29 };
        let tower = Arc::new(TextTower::load(&backend, &SOURCE, &config, 8).unwrap());
        let (spec, mut rng) = lora();
        let lora = tower.adapters(&backend, &spec, &mut KaimingInit { rank: 2, rng: &mut rng }).unwrap();
        // In several parts, and in one.
        for (rows, templates) in [(600, 3), (240, 80), (1, 1)] {
            let len = 7;
            let ids = (0..rows * len).map(|i| if i % len < 4 { i as u32 % 28 } else { 29 }).collect();
            let tokens = TokenBatch { ids, len, rows, eos_rows: vec![4; rows], cut: Vec::new() };
            let prompts = EmbeddedPrompts::new(&SOURCE, &config, &tokens, templates).unwrap();
            let training = TextTraining { tower: tower.clone(), prompts };
            let (estimate, used) =
                allocated_by(&backend, || of_text(&backend, &training, &lora, true)).unwrap();
            let (_, real) = allocated_by(&backend, || {
                let tuning = TextTuning::new(&backend, tower.clone(), &training.prompts, &lora, true, PART)?;
                Ok((tuning, BlockLayers::room_to_fold(&backend, &lora)?))
            })
            .unwrap();
            assert_eq!(estimate, real, "{rows} prompts");
            assert!(rows == 1 || used < real / 10, "{used} of {real} were allocated to find out");
        }
    }
}
