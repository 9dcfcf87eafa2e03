//! Draws the demo's flowers to disk.
//!
//! As an image folder that `engine train --data` takes, class names from the folder names:
//! `cargo run --release --example 01_draw_flowers -- --output flowers`
//!
//! As a pre-training set for tools/make_demo_model.py (raw pixels and one line of attributes per picture):
//! `cargo run --release --example 01_draw_flowers -- --output flowers --pretraining 40000`

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use clip_engine::data::demo::{
    FlowerKind, IMAGE_SIZE, World, demo_class_names, demo_dataset, draw, pretraining_kinds,
};
use clip_engine::random;
use rand::RngExt;
use rayon::prelude::*;
use serde_json::json;

/// Draws flowers: an image folder of the demo set, or a pre-training set.
#[derive(Parser)]
struct Arguments {
    /// Folder to write into; made if it is not there.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Draw this many pre-training pictures instead of the demo set: OUTPUT/pixels.u8 holds
    /// [N, 64, 64, 3] bytes, OUTPUT/captions.jsonl the name and attribute words of each.
    #[arg(long, value_name = "N")]
    pretraining: Option<u64>,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot make the folder {}", arguments.output.display()))?;
    match arguments.pretraining {
        Some(count) => write_pretraining_set(&arguments.output, count, arguments.seed),
        None => write_image_folder(&arguments.output, arguments.seed),
    }
}

/// OUTPUT/{train,val,test}/CLASS/NNN.png and OUTPUT/classes.json, the names in label order.
fn write_image_folder(output: &Path, seed: u64) -> Result<()> {
    let side = IMAGE_SIZE as u32;
    let images = demo_dataset(seed);
    let count = images.len();
    images.try_for_each(|image| {
        let path = output.join(&image.name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        image::save_buffer(&path, &image.pixels, side, side, image::ExtendedColorType::Rgb8)
            .with_context(|| format!("cannot write {}", path.display()))
    })?;
    let names = output.join("classes.json");
    fs::write(&names, serde_json::to_string_pretty(&demo_class_names())?)
        .with_context(|| format!("cannot write {}", names.display()))?;
    println!("{count} pictures of {} classes in {}", demo_class_names().len(), output.display());
    Ok(())
}

/// The attribute words of a kind, for captions that leave some out or change their order.
fn attributes(kind: &FlowerKind) -> serde_json::Value {
    json!({
        "name": kind.name(),
        "rings": kind.rings.word(),
        "petals": kind.petals.word(),
        "marking": kind.marking.word(),
        "colour": kind.colour.word(),
        "form": kind.form.word(),
        "centre": kind.centre.word(),
    })
}

fn write_pretraining_set(output: &Path, count: u64, seed: u64) -> Result<()> {
    const CHUNK: u64 = 512;
    let kinds = pretraining_kinds();
    let mut pixels = BufWriter::new(File::create(output.join("pixels.u8"))?);
    let mut captions = BufWriter::new(File::create(output.join("captions.jsonl"))?);
    for start in (0..count).step_by(CHUNK as usize) {
        let drawn: Vec<(FlowerKind, Vec<u8>)> = (start..count.min(start + CHUNK))
            .into_par_iter()
            .map(|stream| {
                let mut rng = random::stream(seed, stream);
                let kind = kinds[rng.random_range(0..kinds.len())];
                (kind, draw(&kind, World::Studio, &mut rng, IMAGE_SIZE))
            })
            .collect();
        for (kind, picture) in drawn {
            pixels.write_all(&picture)?;
            writeln!(captions, "{}", attributes(&kind))?;
        }
    }
    pixels.flush()?;
    captions.flush()?;
    println!("{count} pictures of {} kinds in {}", kinds.len(), output.display());
    Ok(())
}
