//! `engine zero-shot`

use super::bars::Bars;
use super::device::DeviceArgs;
use super::flags::{SourceFlags, batch_sizes, like};
use super::{common, table};
use crate::commands::evaluation::zero_shot;
use crate::commands::open::SplitChoice;
use crate::settings::{Given, Key};
use anyhow::Result;
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
    let (device, precision) = args.device.given();
    let given = Given {
        data: Some(args.data),
        cache: args.cache,
        model: args.model,
        seed: Some(args.seed),
        templates: Some(args.templates).filter(|templates| !templates.is_empty()),
        batch_size: Some(args.batch_size as usize),
        device: Some(device),
        precision,
        ..args.source.0
    };
    let (metrics, classes) = zero_shot(args.split, given, &Bars::new())?;
    let (images, loss) = (metrics.images, Some(metrics.loss_text));
    let split = args.split.name();
    let results = table::Results::plain_clip(split, images, metrics.text_top1, metrics.text_top5, loss);
    common::say(table::results(&[results], classes.len()))
}
