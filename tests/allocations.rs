//! A training step works in the memory that was allocated before it.

use clip_engine::backend::cpu::Cpu;
use clip_engine::clip::config::{TowerConfig, VisionConfig};
use clip_engine::clip::random::RandomWeights;
use clip_engine::clip::text::TextClassifier;
use clip_engine::clip::vision::{Normalisation, Savings, VisionTower};
use clip_engine::objective::{ClassCounts, MixDraw, MixOn, Objective};
use clip_engine::optim::{Rate, Rates};
use clip_engine::tensor::{DType, Shape, Tensor};
use clip_engine::train::learner::{Batch, Input, Learner, LearnerSpec, Which};
use clip_engine::tune::initial_prompts;
use clip_engine::tune::{
    Head, KaimingInit, LoraSpec, PromptMode, PromptSharing, PromptSpec, Prompts, Target, Trained,
    initial_head,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the bytes that are held, and the most that ever were.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `System.alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is trained, and how.
#[derive(Debug, Clone, Copy, Default)]
struct Recipe {
    lora: bool,
    prompts: Option<PromptMode>,
    mix: Option<MixOn>,
    triplet: f64,
}

/// After some steps that warm up: the bytes that one more training step and evaluation hold at a time
/// beyond what they found, and those they leave behind.
fn step_bytes(recipe: Recipe, layers: usize) -> (usize, usize) {
    const BATCH: usize = 8;
    let backend = Cpu::<f32>::new();
    let tower = TowerConfig {
        width: 96,
        mlp: 384,
        layers,
        heads: 3,
        activation: clip_engine::backend::Activation::QuickGelu,
        norm_eps: 1e-5,
    };
    let config = VisionConfig { tower, image_size: 56, patch_size: 8 };
    let (source, pixels) = (RandomWeights { seed: 3 }, Normalisation::CLIP);
    let tower = VisionTower::load(&backend, &source, &config, 32, pixels, Savings::ALL).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let spec = LoraSpec::new(4, 8.0, &Target::ATTENTION);
    let lora = match recipe.lora {
        true => tower.adapters(&backend, &spec, &mut KaimingInit { rank: 4, rng: &mut rng }).unwrap(),
        false => Vec::new(),
    };
    let prompts = recipe.prompts.map(|mode| {
        let spec = PromptSpec { count: 2, sharing: PromptSharing::Shared, mode };
        Prompts::new(&backend, mode, initial_prompts(&spec, layers, 96, &mut rng).view()).unwrap()
    });
    let (weight, bias) = initial_head(5, 32, &mut rng);
    let head = Head::new(&backend, weight.view(), bias.view()).unwrap();
    let text = TextClassifier { features: initial_head(5, 32, &mut rng).0, scale: 10.0 };
    let objective = Objective::new(1.0, 0.3)
        .with_triplet(recipe.triplet, 1.0)
        .with_counts(ClassCounts { weighted: true, smoothing: 0.1 });
    let image = Shape::from([56, 56, 3]);
    let spec =
        LearnerSpec { mix: recipe.mix, ..LearnerSpec::new(&backend, BATCH, image, DType::U8, objective) };
    let trained = Trained { lora, text_lora: Vec::new(), prompts, head };
    let mut learner = Learner::new(backend, Arc::new(tower), trained, &text, &spec).unwrap();
    let draw = recipe.mix.map(|_| MixDraw::new(0.2, BATCH, 1, 0).unwrap());
    let pixels: Vec<u8> = (0..BATCH * 56 * 56 * 3).map(|i| (i * 31 % 251) as u8).collect();
    let images = Tensor::from_slice([BATCH, 56, 56, 3], &pixels).unwrap();
    let labels = [0u32, 1, 2, 3, 4, 0, 1, 2];
    let rate = Rate { learning_rate: 1e-3, weight_decay: 0.0 };
    let mut step = || {
        let class_weights = Some(&[1.5, 0.5, 1.0, 0.75, 1.25][..]);
        let batch = Batch { mix: draw.as_ref(), class_weights, ..Batch::new(images.view(), &labels) };
        learner.train_step(batch, &Rates::all(rate), 1.0).unwrap();
        learner.evaluate(Input::Images(images.view().into()), &labels, Which::Tuned).unwrap();
    };
    (0..4).for_each(|_| step());
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    step();
    (PEAK.load(Ordering::Relaxed) - before, HELD.load(Ordering::Relaxed).saturating_sub(before))
}

#[test]
fn a_step_allocates_no_activations() {
    // One activation of this model, [8, 50, 96] in f32, is 150 KiB, and a block keeps a dozen. What is left
    // is inside the products, which pack their operands into memory of their own, one product at a time.
    let lora = Recipe { lora: true, ..Default::default() };
    for recipe in [
        lora,
        Recipe { mix: Some(MixOn::Features), triplet: 0.3, ..lora },
        Recipe { prompts: Some(PromptMode::Replace), mix: Some(MixOn::Pixels), ..Recipe::default() },
        Recipe { prompts: Some(PromptMode::Accumulate), ..lora },
    ] {
        let (transient, kept) = step_bytes(recipe, 2);
        let (transient_of_more, kept_of_more) = step_bytes(recipe, 6);
        for kept in [kept, kept_of_more] {
            assert!(kept < 16 * 1024, "{recipe:?}: a step leaves {kept} bytes behind");
        }
        assert!(transient < 768 * 1024, "{recipe:?}: a step holds {transient} bytes more");
        let growth = transient_of_more.saturating_sub(transient);
        assert!(growth < 64 * 1024, "{recipe:?}: and {growth} bytes more still with three times the layers");
    }
}
