//! Loads a CLIP and classifies images by the names of their classes alone, without any training.
//!
//! The bundled model on drawn flowers: `cargo run --release --example 02_classify_by_text`

use anyhow::{Context, Result};
use clip_engine::backend::cpu::Cpu;
use clip_engine::clip::vision::{Purpose, VisionActivations};
use clip_engine::data::Split;
use clip_engine::progress::Silent;
use clip_engine::tensor::DType;
use clip_engine::train::demo;
use clip_engine::tune::TowerTuning;

/// Images per batch.
const BATCH: usize = 32;

fn main() -> Result<()> {
    let backend = Cpu::<f32>::new();
    // `Model::open` takes any Hugging Face CLIP directory.
    let model = demo::model()?;
    // Hands out pixels as the model wants them; photos on disk go through `Cache::open_or_build`.
    let cache = demo::cache(42)?;

    // T [C, E]: one row for each class, from its name in a template.
    let templates = ["A photo of {}.".to_string()];
    let text = model.text_classifier(&backend, cache.class_names(), &templates, None, &Silent)?;
    let classes = text.features.view().to_tensor(DType::F32)?;
    let (classes, width) = (classes.typed::<f32>()?.to_vec(), classes.shape().columns());

    let tower = model.vision(&backend)?;
    let (nothing, purpose) = (TowerTuning::NONE, Purpose::Inference);
    let mut memory = VisionActivations::new(&backend, &tower, BATCH, nothing, purpose)?;
    let test = cache.split(Split::Test);
    let mut right = 0;
    for chunk in (0..test.len()).collect::<Vec<_>>().chunks(BATCH) {
        let pixels = test.batch(chunk)?;
        memory.set_batch(chunk.len())?;
        tower.infer(&backend, &pixels, None, TowerTuning::NONE, &mut memory)?;
        // Rows of length 1: the nearest class is the one with the largest dot product.
        for (f, &index) in memory.features().typed::<f32>()?.chunks_exact(width).zip(chunk) {
            let similarity = |class: &[f32]| f.iter().zip(class).map(|(a, b)| a * b).sum::<f32>();
            let best = classes.chunks_exact(width).map(similarity).enumerate();
            let (best, _) = best.max_by(|a, b| a.1.total_cmp(&b.1)).context("there are no classes")?;
            right += usize::from(best as u32 == test.labels()[index]);
        }
    }
    println!("{right} of {} right, {:.1} %", test.len(), 100.0 * right as f64 / test.len() as f64);
    Ok(())
}
