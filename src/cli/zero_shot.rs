//! `engine zero-shot`

use super::bars::Bars;
use super::common::{Judged, SplitChoice};
use super::device::{DeviceArgs, on_device};
use super::flags::{SourceFlags, batch_sizes, like};
use super::{common, table};
use anyhow::Result;
use clip_engine::fetch::settled_data;
use clip_engine::settings::{Key, Recipe, Settings, are_flowers, default_templates};
use clip_engine::train::evaluate::zero_shot;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, help = Key::model.setting().help(), value_name = Key::model.setting().value_name)]
    model: Option<PathBuf>,
    #[arg(long, help = Key::data.setting().help(), value_name = Key::data.setting().value_name)]
    data: PathBuf,
    /// Which images.
    #[arg(long, default_value = "test", value_name = "train|val|test|all")]
    split: SplitChoice,
    #[arg(long, help = Key::cache.setting().help(), value_name = Key::cache.setting().value_name)]
    cache: Option<PathBuf>,
    /// Seed of the split, for a folder of class folders.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[arg(long = "template", help = like(Key::templates, "those of engine train"),
          value_name = Key::templates.setting().value_name)]
    templates: Vec<String>,
    /// Images per batch.
    #[arg(long, default_value_t = 32, value_parser = batch_sizes())]
    batch_size: u32,
    #[command(flatten)]
    source: SourceFlags,
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
    let mut settings = Settings {
        data: Some(settled_data(&args.data)),
        cache: args.cache,
        seed: args.seed,
        templates,
        ..Settings::of(Recipe::Linear)
    };
    args.source.apply(&mut settings)?;
    let model = common::open_model_or_default(args.model.as_deref(), &monitor)?;
    let judged = Judged { any: true, all: args.split == SplitChoice::All, classes: None };
    let cache = common::open_cache(&settings, &judged, &model.preprocess, &monitor)?;
    args.split.explain(&cache, &monitor);
    let batch = args.batch_size as usize;
    let metrics = on_device!(device, backend => {
        zero_shot(backend, model, &cache, args.split.of_cache(), &settings.templates, batch, &monitor)
    })?;
    let (images, loss) = (metrics.images, Some(metrics.loss_text));
    let split = args.split.name();
    let results = table::Results::plain_clip(split, images, metrics.text_top1, metrics.text_top5, loss);
    common::say(table::results(&[results], cache.class_names().len()))
}
