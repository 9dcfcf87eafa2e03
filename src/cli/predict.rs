//! `engine predict`

use super::bars::Bars;
use super::device::DeviceArgs;
use super::flags::batch_sizes;
use super::part_flags::PartArgs;
use super::predictions::{Lines, Output, Printer, UNKNOWN};
use crate::TrainError;
use crate::commands::device::on_device;
use crate::commands::open::model_of_run;
use crate::commands::parts::BadPhoto;
use crate::commands::photos::Photos;
use crate::files::Staged;
use crate::hash::hex;
use crate::progress::{Monitor, Within};
use crate::train::predict::{PredictOptions, Predicted, Predictor};
use crate::train::run_dir::RunDir;
use anyhow::{Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A finished run.
    #[arg(long, value_name = "RUN")]
    run: PathBuf,
    /// Photos, and folders of photos, searched with their subfolders; - reads paths from standard input, one
    /// a line.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Where its model is now [default: where it was].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Classes for each photo, the most probable first.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top_k: u32,
    /// Call photos "unknown" whose most probable class is less probable than P, above 0 and up to 1.
    #[arg(long, value_name = "P")]
    unknown_below: Option<f64>,
    /// Print one JSON object a line for each photo, in the order of the arguments.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values, one line for each class of a photo.
    #[arg(long)]
    csv: bool,
    /// Images per batch.
    #[arg(long, default_value_t = 32, value_parser = batch_sizes())]
    batch_size: u32,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    parts: PartArgs,
}

/// Photos of a list that the columns of a table are made for.
const FIRST: usize = 1000;

pub fn run(args: Args) -> Result<()> {
    let bars = Bars::new();
    if let Some(p) = args.unknown_below.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
        let text = format!("--unknown-below: {p} is not a probability above 0 and up to 1");
        bail!(TrainError::Setting(text));
    }
    let (form, ending) = match (args.json, args.csv) {
        (true, _) => (Output::Json, "jsonl"),
        (_, true) => (Output::Csv, "csv"),
        _ if args.parts.are_given() => {
            bail!(TrainError::Setting(
                "--parts: the parts are files for programs; add --json or --csv".into()
            ))
        }
        _ => (Output::Table, ""),
    };
    let dir = RunDir::existing(&args.run)?;
    let settings = dir.read_settings()?;
    let mut photos = Photos::named(&args.images, &bars)?;
    let device = args.device.open(&bars)?;
    let model = model_of_run(&dir, &settings, args.model.as_deref(), &bars)?;
    // Where the predictions run over the terminal, they are the sign of progress, and a bar would break them.
    let without_bar = Within(&bars);
    let printed = std::io::stdout().is_terminal() && !args.parts.are_given();
    let monitor: &dyn Monitor = if printed { &without_bar } else { &bars };
    let options = PredictOptions { batch: args.batch_size as usize, top_k: args.top_k as usize };
    on_device!(device, backend => {
        let predictor = Predictor::open(backend, &model, &dir, &settings)?;
        // Its weights are on the device now.
        drop(model);
        let names = predictor.class_names();
        if args.unknown_below.is_some() && names.iter().any(|name| name == UNKNOWN) {
            let text = "--unknown-below: the run has a class called unknown itself; leave the flag out, and look \
                        at the probabilities that --json prints";
            bail!(TrainError::Setting(text.into()));
        }
        let lines = Lines { form, names, unknown_below: args.unknown_below };
        let manifest = || {
            let head = std::fs::read(dir.head()).map_err(TrainError::io(&dir.head(), "read the file"))?;
            Ok(json!({
                "command": "predict",
                "head": hex(&Sha256::digest(head)),
                "top_k": options.top_k,
                "unknown_below": args.unknown_below,
            }))
        };
        if let Some(parts) = args.parts.open(ending, manifest)? {
            return args.parts.make(parts, photos, "predicting", monitor, |parts, part, monitor| {
                let (mut text, mut bad) = (Vec::new(), Vec::new());
                let tally = predictor.predict(part.photos.iter().map(Ok), options, monitor, |batch| {
                    let first = text.is_empty();
                    text.extend(lines.of(&batch, first).map_err(TrainError::io(&args.run, "write about photos"))?);
                    for Predicted { photo, choices } in batch {
                        if let Err(error) = choices {
                            monitor.warn(&error.to_string());
                            bad.push(BadPhoto::new(photo, error));
                        }
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
                if tally.stopped {
                    return Ok(ControlFlow::Break(()));
                }
                parts.write(part, bad, |path| Ok(Staged::new(path, &text)?))?;
                Ok(ControlFlow::Continue(()))
            });
        }
        let known = photos.known();
        let mut printer = Printer::new(lines, photos.first(FIRST)?, options.top_k, monitor);
        let tally = predictor.predict(photos, options, monitor, |batch| Ok(printer.print(&batch)))?;
        if tally.done == 0 && !tally.stopped {
            bail!("-: standard input names no photo; write one path a line to it");
        }
        printer.finish(tally, known)
    })
}
