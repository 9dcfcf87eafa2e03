//! `engine eval`

use super::bars::Bars;
use super::common::parse_serde;
use super::device::{self, on_device};
use super::{common, table};
use anyhow::Result;
use clip_engine::TrainError;
use clip_engine::data::Split;
use clip_engine::train::evaluate::evaluate_run;
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::settings::{Augment, Precision};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A finished run.
    #[arg(long, value_name = "RUN")]
    run: PathBuf,
    /// Other data with the same classes [default: the run's own].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Which images.
    #[arg(long, default_value = "test")]
    split: Split,
    /// Where to compute [default: as the run].
    #[arg(long, value_name = "auto|cpu|cuda[:N]")]
    device: Option<String>,
    /// Number type of activations and frozen weights [default: f16 on a GPU, f32 on the CPU].
    #[arg(long, value_parser = parse_serde::<Precision>, value_name = "f32|f16|bf16")]
    precision: Option<Precision>,
    /// Print the results as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let dir = RunDir::existing(&args.run)?;
    let mut settings = dir.read_settings()?;
    if let Some(data) = args.data {
        settings.data = Some(data);
        if settings.demo {
            let text = "--data: a demo run knows its own flowers only; leave it out";
            anyhow::bail!(TrainError::Setting(text.into()));
        }
    }
    let name = args.device.as_deref().unwrap_or(&settings.device);
    let device = device::open(name, args.precision, &monitor)?;
    settings.augment = Augment::Off;
    let common::Material { model, cache, .. } = common::material(&settings, &monitor)?;
    let metrics = on_device!(device, backend => {
        evaluate_run(backend, model, &cache, args.split, &settings, &dir, &monitor)
    })?;
    if args.json {
        common::say(serde_json::to_string_pretty(&metrics)?)
    } else {
        common::say(table::results(&[(args.split.to_string(), &metrics)]))
    }
}
