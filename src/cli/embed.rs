//! `engine embed`

use super::bars::Bars;
use super::common;
use super::device::DeviceArgs;
use super::flags::{batch_sizes, like};
use super::part_flags::PartArgs;
use crate::TrainError;
use crate::commands::device::on_device;
use crate::commands::open;
use crate::commands::parts::BadPhoto;
use crate::commands::photos::Photos;
use crate::data::decode::Orientation;
use crate::data::{DataError, images_below, is_photo};
use crate::files::Staged;
use crate::settings::{Key, parse_word};
use crate::tensor::Tensor;
use crate::train::Photo;
use crate::train::embed::{EmbedOptions, embed};
use crate::train::inference::{TunedTower, TuningFiles};
use crate::train::run_dir::RunDir;
use crate::train::saved_run::of_one_epoch;
use crate::train::tensor_files::stage_tensors;
use anyhow::{Result, bail};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

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
    /// A folder of photos, searched with its subfolders; - reads paths from standard input, one a line.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The safetensors file to write: `features` [N, E], f32, in the order of the sorted paths or the list.
    #[arg(long, value_name = "FILE", required_unless_present = "parts", conflicts_with = "parts")]
    out: Option<PathBuf>,
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
    #[command(flatten)]
    parts: PartArgs,
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
    if let Some(out) = &args.out {
        check_out(out)?;
    }
    if args.images.as_os_str() != "-" && !args.images.is_dir() {
        images_below(&args.images)?;
    }
    let photos = Photos::named(std::slice::from_ref(&args.images), &monitor)?;
    let options = EmbedOptions { batch: args.batch_size as usize, skip_bad_images: args.skip_bad_images };
    on_device!(device, backend => {
        let open = || TunedTower::open(backend, &model, &files);
        let tuned = match &run {
            Some((dir, settings)) => of_one_epoch(dir, settings, open)?,
            None => open()?,
        };
        let manifest = || {
            Ok(json!({
                "command": "embed",
                "weights": model.weights_id()?.hash,
                "tuning": files.digest()?,
                "orientation": model.preprocess.orientation(),
            }))
        };
        let name = |path: &Path| path.strip_prefix(&args.images).unwrap_or(path).display().to_string();
        if let Some(parts) = args.parts.open("safetensors", manifest)? {
            // Its weights are on the device now.
            drop(model);
            return args.parts.make(parts, photos, "features", &monitor, |parts, part, monitor| {
                let (mut features, mut bad) = (Features::default(), Vec::new());
                let made = embed(&tuned, part.photos.iter().map(Ok), options, monitor, |batch| {
                    for (photo, row) in batch {
                        match row {
                            Ok(row) => features.add(name(photo), row),
                            Err(error) => bad.push(BadPhoto::new(photo, error)),
                        }
                    }
                    Ok(())
                });
                if let Err(TrainError::Data(DataError::Interrupted)) = made {
                    return Ok(ControlFlow::Break(()));
                }
                made?;
                parts.write(part, bad, |path| features.stage(path, tuned.features()))?;
                Ok(ControlFlow::Continue(()))
            });
        }
        drop(model);
        let Some(out) = &args.out else { return Ok(()) };
        let mut features = Features::default();
        embed(&tuned, photos, options, &monitor, |batch| {
            for (photo, row) in batch {
                row.iter().for_each(|row| features.add(name(photo.path()), row));
            }
            Ok(())
        })?;
        let count = features.names.len();
        if count == 0 {
            let found = "no readable image in it".into();
            bail!(DataError::NoImages { path: args.images.clone(), found });
        }
        features.stage(out, tuned.features())?.persist().map_err(TrainError::from)?;
        common::say(format!("{count} features in {}", out.display()))
    })
}

/// Rows of features, and the names of their photos.
#[derive(Default)]
struct Features {
    names: Vec<String>,
    rows: Vec<f32>,
}

impl Features {
    fn add(&mut self, name: String, row: &[f32]) {
        self.names.push(name);
        self.rows.extend_from_slice(row);
    }

    /// As `features` \[N, E\]; the names are a JSON list under "paths" in the metadata.
    fn stage(&self, path: &Path, width: usize) -> Result<Staged, TrainError> {
        let names = serde_json::to_string(&self.names).map_err(|e| TrainError::file(path, e.to_string()))?;
        let features = Tensor::from_slice([self.names.len(), width], &self.rows)?;
        let tensors = BTreeMap::from([("features".to_string(), features)]);
        stage_tensors(path, &tensors, HashMap::from([("paths".to_string(), names)]))
    }
}

/// Refuses a file that is a photo, or whose folder is not there.
fn check_out(out: &Path) -> Result<()> {
    if out.is_file() && is_photo(out) {
        bail!(TrainError::Setting(format!("--out: {} is a photo; name a .safetensors file", out.display())));
    }
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        bail!("--out: the folder {} does not exist; make it first", folder.display());
    }
    Ok(())
}
