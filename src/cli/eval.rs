//! `engine eval`

use super::bars::Bars;
use super::common::{Judged, SplitChoice};
use super::device::{self, on_device};
use super::flags::{SourceFlags, batch_sizes, like};
use super::{common, table};
use anyhow::Result;
use clip_engine::TrainError;
use clip_engine::fetch::{settled_data, settled_model};
use clip_engine::progress::Monitor;
use clip_engine::settings::{Augment, Given, Key, Precision, parse_word};
use clip_engine::train::evaluate::evaluate_run;
use clip_engine::train::metrics::Evaluation;
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::saved_run::{class_names_of_run, other_photos};
use comfy_table::Table;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(mut_arg("orientation", |arg| arg.help(like(Key::orientation, "that of the run, otherwise exif"))))]
pub struct Args {
    /// A finished run.
    #[arg(long, value_name = "RUN")]
    run: PathBuf,
    /// Other data with the same classes [default: the run's own].
    #[arg(long, value_name = "DIR|flowers102")]
    data: Option<PathBuf>,
    #[arg(long, help = like(Key::cache, "as the run"), value_name = Key::cache.setting().value_name)]
    cache: Option<PathBuf>,
    #[command(flatten)]
    source: SourceFlags,
    /// Where its model is now [default: where it was].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Which images.
    #[arg(long, default_value = "test", value_name = "train|val|test|all")]
    split: SplitChoice,
    /// Images per batch [default: as the run].
    #[arg(long, value_parser = batch_sizes())]
    batch_size: Option<u32>,
    #[arg(long, help = like(Key::device, "as the run"), value_name = Key::device.setting().value_name)]
    device: Option<String>,
    #[arg(long, help = like(Key::precision, "as the run where the device computes in it"),
          value_parser = parse_word::<Precision>, value_name = Key::precision.setting().value_name)]
    precision: Option<Precision>,
    /// Also print a table of the classes.
    #[arg(long, conflicts_with = "json")]
    per_class: bool,
    /// Print the results as JSON instead of a table: also those of each class, the confusion matrix (rows are
    /// the true classes) and the calibration.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let dir = RunDir::existing(&args.run)?;
    let mut settings = dir.read_settings()?;
    let files =
        [args.data.is_some(), args.model.is_some(), args.cache.is_some(), args.source.0 != Given::default()];
    if settings.demo && (files.contains(&true) || args.split == SplitChoice::All) {
        let text = "--data, --model, --cache, --split all and what says how data are read: a demo run knows its own \
                    flowers and model only; leave them out";
        anyhow::bail!(TrainError::Setting(text.into()));
    }
    settings.cache = args.cache.or(settings.cache);
    let other = args.data.is_some();
    if other {
        // They were for the run's own.
        (settings.images, settings.class_names, settings.groups) = (None, None, None);
    }
    settings.batch_size = args.batch_size.map_or(settings.batch_size, |batch| batch as usize);
    settings.data = args.data.map(|data| settled_data(&data)).or(settings.data);
    args.source.apply(&mut settings)?;
    settings.model = args.model.map(|model| settled_model(&model)).or(settings.model);
    let name = args.device.as_deref().unwrap_or(&settings.device);
    let device = match (args.precision, settings.precision) {
        // The numbers of the summary come from the same precision, which a device at hand may not have.
        (None, Some(own)) => {
            device::open(name, Some(own), &monitor).or_else(|_| device::open(name, None, &monitor))?
        }
        (precision, _) => device::open(name, precision, &monitor)?,
    };
    settings.augment = Augment::Off;
    let judged = Judged {
        classes: if other { Some(class_names_of_run(&dir)?) } else { None },
        any: other,
        all: args.split == SplitChoice::All,
    };
    let common::Material { model, cache, .. } = common::material(&settings, &judged, &monitor)?;
    common::warn_of_run(&dir, &model, &monitor)?;
    if !other && !judged.all && other_photos(&dir, &cache)? {
        monitor.warn(
            "the photos are not those that the run was trained on: files were added, changed or removed",
        );
    }
    args.split.explain(&cache, &monitor);
    let split = args.split.of_cache();
    let evaluation = on_device!(device, backend => {
        evaluate_run(backend, model, &cache, split, &settings, &dir, &monitor)
    })?;
    if args.json {
        return common::say(format!("{:#}", as_json(&evaluation)?));
    }
    let results = table::Results::fine_tuned(args.split.name(), &evaluation.metrics);
    common::say(table::results(&[results], evaluation.class_names.len()))?;
    if args.per_class {
        common::say(classes(&evaluation))?;
    }
    Ok(())
}

/// The metrics, and beside them what is known of the classes.
fn as_json(evaluation: &Evaluation) -> Result<Value> {
    let mut report = serde_json::to_value(&evaluation.metrics)?;
    let names = evaluation.class_names.iter().zip(&evaluation.classes);
    let classes: Vec<Value> = names
        .map(|(name, class)| {
            let mut entry = serde_json::to_value(class)?;
            entry["name"] = json!(name);
            Ok(entry)
        })
        .collect::<Result<_>>()?;
    report["classes"] = json!(classes);
    report["confusion"] = json!(evaluation.confusion);
    report["calibration"] = json!(evaluation.calibration);
    Ok(report)
}

fn classes(evaluation: &Evaluation) -> Table {
    let mut table = table::table(&["class", "images", "precision", "recall", "F1"]);
    let percent = |fraction: Option<f64>| fraction.map_or_else(String::new, table::percent);
    for (name, class) in evaluation.class_names.iter().zip(&evaluation.classes) {
        table.add_row([
            name.clone(),
            class.images.to_string(),
            percent(class.precision),
            percent(class.recall),
            percent(class.f1),
        ]);
    }
    table
}
