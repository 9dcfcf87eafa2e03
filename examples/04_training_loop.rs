//! A training loop of one's own: which tensors are trained, what is minimised, and when, is all in sight.
//!
//! `cargo run --release --example 04_training_loop`

use anyhow::Result;
use clip_engine::backend::cpu::Cpu;
use clip_engine::data::Split;
use clip_engine::objective::Objective;
use clip_engine::optim::{Rate, Rates};
use clip_engine::progress::Silent;
use clip_engine::train::demo;
use clip_engine::train::learner::{Batch, Input, Learner, LearnerSpec, Which};
use clip_engine::tune::KaimingInit;
use clip_engine::tune::initial_head;
use clip_engine::tune::{Head, LoraSpec, Target, Trained};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

const BATCH: usize = 32;
const EPOCHS: usize = 5;

fn main() -> Result<()> {
    let backend = Cpu::<f32>::new();
    let mut rng = ChaCha8Rng::seed_from_u64(42);
    let (model, cache) = (demo::model()?, demo::cache(42)?);
    let names = cache.class_names();

    // The frozen parts: class features of the text tower, and the vision tower.
    let templates = ["A photo of {}.".to_string()];
    let text = model.text_classifier(&backend, names, &templates, None, &Silent)?;
    let tower = model.vision(&backend)?;

    // The trained parts: adapters on queries and values of every block, and a head.
    let lora = LoraSpec::new(4, 8.0, &[Target::Query, Target::Value]);
    let lora = tower.adapters(&backend, &lora, &mut KaimingInit { rank: 4, rng: &mut rng })?;
    let (weight, bias) = initial_head(names.len(), tower.features(), &mut rng);
    let head = Head::new(&backend, weight.view(), bias.view())?;
    let trained = Trained { lora, text_lora: Vec::new(), prompts: None, head };

    // All memory is allocated here; a step allocates nothing.
    let (image, dtype) = (cache.image_shape(), cache.dtype());
    let spec = LearnerSpec {
        clip: Some(1.0),
        ..LearnerSpec::new(&backend, BATCH, image, dtype, Objective::new(1.0, 0.3))
    };
    let mut learner = Learner::new(backend, Arc::new(tower), trained, &text, &spec)?;
    let rate = |learning_rate| Rate { learning_rate, weight_decay: 1e-4 };
    let rates = Rates { head: rate(1e-2), lora: rate(1e-3), prompt: rate(0.0) };

    let train = cache.split(Split::Train);
    let mut order: Vec<usize> = (0..train.len()).collect();
    for epoch in 1..=EPOCHS {
        order.shuffle(&mut rng);
        let mut loss = 0.0;
        for indices in order.chunks(BATCH) {
            let images = train.batch(indices)?;
            let labels: Vec<u32> = indices.iter().map(|&index| train.labels()[index]).collect();
            learner.train_step(Batch::new(images.view(), &labels), &rates, 1.0)?;
            // Waits for the device; `fetch_stats` does not.
            loss += learner.stats()?.loss * indices.len() as f64;
        }
        let accuracy = accuracy(&mut learner, &cache, Split::Val)?;
        println!(
            "epoch {epoch}: loss {:.4}, validation {:.1} %",
            loss / train.len() as f64,
            100.0 * accuracy
        );
    }
    println!("test {:.1} %", 100.0 * accuracy(&mut learner, &cache, Split::Test)?);
    Ok(())
}

/// The share of a split that the head classifies rightly, with the adapters folded into the weights.
fn accuracy(learner: &mut Learner<Cpu<f32>>, cache: &clip_engine::data::Cache, split: Split) -> Result<f64> {
    let images = cache.split(split);
    let mut right = 0.0;
    for indices in (0..images.len()).collect::<Vec<_>>().chunks(BATCH) {
        let batch = images.batch(indices)?;
        let labels: Vec<u32> = indices.iter().map(|&index| images.labels()[index]).collect();
        learner.evaluate(Input::Images(batch.view().into()), &labels, Which::Tuned)?;
        right += learner.stats()?.correct;
    }
    Ok(right / images.len() as f64)
}
