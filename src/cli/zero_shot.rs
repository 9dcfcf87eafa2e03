//! `engine zero-shot`

use super::bars::Bars;
use super::device::{DeviceArgs, on_device};
use super::{common, table};
use anyhow::Result;
use clip_engine::data::Split;
use clip_engine::data::decode::Orientation;
use clip_engine::tensor::DType;
use clip_engine::train::evaluate::zero_shot;
use clip_engine::train::settings::{Recipe, are_flowers, check_templates, default_templates};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face CLIP directory, or the id of a CLIP model on the hub, which is fetched
    /// [default: openai/clip-vit-base-patch32].
    #[arg(long, value_name = "DIR|OWNER/NAME[@REVISION]")]
    model: Option<PathBuf>,
    /// A folder with train/, val/ and test/, a folder of class folders, a Flowers-102 root, or the word
    /// flowers102, which is fetched.
    #[arg(long, value_name = "DIR|flowers102")]
    data: PathBuf,
    /// Which images.
    #[arg(long, default_value = "test")]
    split: Split,
    /// Where preprocessed images are kept [default: the user's cache folder].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Seed of the split, for a folder of class folders.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// A prompt with {} for the class name; repeat the flag for several [default: those of engine train].
    #[arg(long = "template", value_name = "TEXT")]
    templates: Vec<String>,
    /// Images per batch.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: u32,
    /// Leave out images that cannot be decoded instead of stopping at the first.
    #[arg(long)]
    skip_bad_images: bool,
    /// Turn photos upright as their EXIF data say, or take them as they are stored.
    #[arg(long, value_parser = common::parse_serde::<Orientation>, value_name = "exif|ignore", default_value = "exif")]
    orientation: Orientation,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let device = args.device.open(&monitor)?;
    let templates = match args.templates.is_empty() {
        true => default_templates(Recipe::Linear, are_flowers(&args.data)),
        false => args.templates,
    };
    check_templates(&templates)?;
    let mut model = common::open_model_or_default(args.model.as_deref(), &monitor)?;
    model.preprocess = model.preprocess.with_orientation(args.orientation);
    let cache = common::open_cache(
        &args.data,
        args.seed,
        &model.preprocess,
        DType::U8,
        args.cache.as_deref(),
        args.skip_bad_images,
        &monitor,
    )?;
    let batch = args.batch_size as usize;
    let metrics = on_device!(device, backend => {
        zero_shot(backend, model, &cache, args.split, &templates, batch, &monitor)
    })?;
    let (images, loss) = (metrics.images, Some(metrics.loss_text));
    let split = args.split.name();
    let results = table::Results::plain_clip(split, images, metrics.text_top1, metrics.text_top5, loss);
    common::say(table::results(&[results], cache.class_names().len()))
}
