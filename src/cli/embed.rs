//! `engine embed`

use super::bars::Bars;
use super::common;
use super::device::DeviceArgs;
use super::flags::{batch_sizes, like};
use crate::TrainError;
use crate::commands::device::on_device;
use crate::commands::open;
use crate::data::decode::Orientation;
use crate::data::is_photo;
use crate::settings::{Key, parse_word};
use crate::train::embed::{EmbedOptions, embed};
use crate::train::inference::{TunedTower, TuningFiles};
use crate::train::run_dir::RunDir;
use crate::train::saved_run::of_one_epoch;
use anyhow::{Result, bail};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, help = like(Key::model, "that of --run, otherwise openai/clip-vit-base-patch32"),
          value_name = Key::model.setting().value_name)]
    model: Option<PathBuf>,
    /// Use the adapter and the prompts of this run.
    #[arg(long, value_name = "RUN", conflicts_with = "init_from")]
    run: Option<PathBuf>,
    /// Use the adapter (adapter/, or as PEFT saves it) and the prompts.safetensors in this directory.
    #[arg(long, value_name = "DIR")]
    init_from: Option<PathBuf>,
    /// A folder of photos, searched with its subfolders.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The safetensors file to write: `features` [N, E], f32, in the order of the sorted paths.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Leave out photos that cannot be decoded instead of stopping at the first.
    #[arg(long)]
    skip_bad_images: bool,
    #[arg(long, help = like(Key::orientation, "as the run; exif without one"), value_parser = parse_word::<Orientation>,
          value_name = Key::orientation.setting().value_name)]
    orientation: Option<Orientation>,
    /// Images per batch.
    #[arg(long, default_value_t = 32, value_parser = batch_sizes())]
    batch_size: u32,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let device = args.device.open(&monitor)?;
    let (mut model, files, run) = match (&args.run, &args.model) {
        (Some(run), model) => {
            let dir = RunDir::existing(run)?;
            let settings = dir.read_settings()?;
            let model = open::model_of_run(&dir, &settings, model.as_deref(), &monitor)?;
            (model, TuningFiles::of_run(&dir, &settings), Some((dir, settings)))
        }
        (None, model) => {
            open::warn_of_adapter(args.init_from.as_deref(), &monitor)?;
            let files = args.init_from.as_deref().map(TuningFiles::found_in).transpose()?;
            let model = open::open_model_or_default(model.as_deref(), &monitor)?;
            (model, files.unwrap_or_default(), None)
        }
    };
    if let Some(orientation) = args.orientation {
        model.preprocess = model.preprocess.with_orientation(orientation);
    }
    if args.out.is_file() && is_photo(&args.out) {
        bail!(TrainError::Setting(format!(
            "--out: {} is a photo; name a .safetensors file",
            args.out.display()
        )));
    }
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        bail!("--out: the folder {} does not exist; make it first", folder.display());
    }
    let options = EmbedOptions { batch: args.batch_size as usize, skip_bad_images: args.skip_bad_images };
    let count = on_device!(device, backend => {
        let open = || TunedTower::open(backend, &model, &files);
        let tuned = match &run {
            Some((dir, settings)) => of_one_epoch(dir, settings, open)?,
            None => open()?,
        };
        // Its weights are on the device now.
        drop(model);
        embed(&tuned, &args.images, &args.out, options, &monitor)
    })?;
    common::say(format!("{count} features in {}", args.out.display()))
}
