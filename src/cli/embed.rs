//! `engine embed`

use super::bars::Bars;
use super::common::{self, parse_serde};
use super::device::{self, on_device};
use anyhow::{Result, bail};
use clip_engine::train::adapter::prompt_spec;
use clip_engine::train::embed::{TuningFiles, embed};
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::settings::Precision;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face CLIP directory, or the id of a CLIP model on the hub [default: that of --run].
    #[arg(long, value_name = "DIR|OWNER/NAME[@REVISION]", required_unless_present = "run")]
    model: Option<PathBuf>,
    /// Use the adapter and the prompts of this run.
    #[arg(long, value_name = "RUN", conflicts_with = "init_from")]
    run: Option<PathBuf>,
    /// Use the adapter/ and the prompts.safetensors in this directory.
    #[arg(long, value_name = "DIR")]
    init_from: Option<PathBuf>,
    /// A folder of photos, searched with its subfolders.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The safetensors file to write: `features` [N, E], f32, in the order of the sorted paths.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Images per batch.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: u32,
    /// Where to compute.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value = "auto")]
    device: String,
    /// Number type of activations and frozen weights [default: f16 on a GPU, f32 on the CPU].
    #[arg(long, value_parser = parse_serde::<Precision>, value_name = "f32|f16|bf16")]
    precision: Option<Precision>,
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let device = device::open(&args.device, args.precision, &monitor)?;
    let settings = args.run.as_deref().map(|run| RunDir::existing(run)?.read_settings()).transpose()?;
    let model = match (&args.model, &settings) {
        (Some(name), _) => common::open_model(name, &monitor)?,
        (None, Some(settings)) if settings.demo => clip_engine::train::demo::model()?,
        (None, Some(settings)) => match &settings.model {
            Some(name) => common::open_settled_model(name, &monitor)?,
            None => bail!("--run: its config.toml names no model; give --model"),
        },
        (None, None) => bail!("--model: missing; name a Hugging Face CLIP directory"),
    };
    let mut tuning = TuningFiles::default();
    if let (Some(run), Some(settings)) = (&args.run, &settings) {
        // A run of the head alone has neither: its features are plain CLIP's.
        tuning.adapter = settings.lora().map(|_| run.join("adapter"));
        tuning.prompts = settings.prompt_spec().map(|spec| (run.join("prompts.safetensors"), spec));
    }
    if let Some(dir) = &args.init_from {
        let (adapter, prompts) = (dir.join("adapter"), dir.join("prompts.safetensors"));
        if prompts.is_file() {
            tuning.prompts = Some((prompts.clone(), prompt_spec(&prompts)?));
        }
        // Where there is neither, the message names the adapter.
        tuning.adapter = Some(adapter).filter(|adapter| adapter.is_dir() || !prompts.is_file());
    }
    if let Some(dir) = tuning.adapter.as_deref().filter(|dir| !dir.is_dir()) {
        bail!("{}: no such folder; name a run or a directory that holds adapter/", dir.display());
    }
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        bail!("--out: the folder {} does not exist; make it first", folder.display());
    }
    let batch = args.batch_size as usize;
    let count = on_device!(device, backend => {
        embed(backend, model, &tuning, &args.images, &args.out, batch, &monitor)
    })?;
    common::say(format!("{count} features in {}", args.out.display()))
}
