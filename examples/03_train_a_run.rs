//! Trains a run from a program, as `engine train` does, and predicts with what it left.
//!
//! `cargo run --release --example 03_train_a_run -- --output runs/example`

use anyhow::{Context, Result};
use clap::Parser;
use clip_engine::backend::cpu::Cpu;
use clip_engine::data::demo::{IMAGE_SIZE, demo_dataset};
use clip_engine::progress::Silent;
use clip_engine::settings::{Recipe, Settings};
use clip_engine::train::demo;
use clip_engine::train::predict::{PredictOptions, Predictor};
use clip_engine::train::run::SharedModel;
use clip_engine::train::run_dir::RunDir;
use rayon::prelude::*;
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(Parser)]
struct Arguments {
    /// Where the run is written; must not hold anything yet.
    #[arg(long, value_name = "RUN")]
    output: PathBuf,
    #[arg(long, default_value_t = 10)]
    epochs: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let backend = Cpu::<f32>::new();

    // Every setting has the recipe's default; these are the ones that differ.
    let settings = Settings { demo: true, epochs: arguments.epochs, ..Settings::of(Recipe::Lora) };
    let dir = RunDir::vacant(&arguments.output, false)?;

    // One model and one set of images, for as many runs as are wanted.
    let (cache, templates) = (demo::cache(settings.image_seed())?, settings.templates.clone());
    let towers = settings.trained_towers();
    let mut shared = SharedModel::new(backend, demo::model()?, &cache, None, &templates, towers, &Silent)?;
    let summary = shared.train(&settings, &dir, false, &Silent)?;
    println!("epoch {} kept, validation top-1 {:.1} %", summary.best_epoch, 100.0 * summary.val.top1);
    if let Some(test) = &summary.test {
        println!("test top-1 {:.1} %, plain CLIP {:.1} %", 100.0 * test.top1, 100.0 * summary.zero_shot.top1);
    }

    // Predictions need the run directory and the model alone.
    let photo = arguments.output.join("flower.png");
    let flower = demo_dataset(7).find_first(|_| true).context("there is always a first flower")?;
    let (side, colours) = (IMAGE_SIZE as u32, image::ExtendedColorType::Rgb8);
    image::save_buffer(&photo, &flower.pixels, side, side, colours)?;
    let predictor = Predictor::open(backend, &demo::model()?, &dir, &settings)?;
    let options = PredictOptions { batch: 1, top_k: 3 };
    predictor.predict(std::iter::once(Ok(photo)), options, &Silent, |predicted| {
        for photo in predicted {
            println!("{}", photo.photo.display());
            for choice in photo.choices.iter().flatten() {
                let name = &predictor.class_names()[choice.class];
                println!("  {:5.1} %  {name}", 100.0 * choice.probability);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(())
}
