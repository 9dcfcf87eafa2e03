//! `engine eval`

use super::bars::Bars;
use super::flags::{SourceFlags, batch_sizes, like};
use super::{common, table};
use crate::commands::evaluation::evaluate_run;
use crate::commands::open::SplitChoice;
use crate::settings::{Given, Key, Precision, parse_word};
use crate::train::metrics::Evaluation;
use anyhow::Result;
use comfy_table::Table;
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
    let given = Given {
        data: args.data,
        cache: args.cache,
        model: args.model,
        batch_size: args.batch_size.map(|batch| batch as usize),
        device: args.device,
        precision: args.precision,
        ..args.source.0
    };
    let evaluation = evaluate_run(&args.run, args.split, given, &Bars::new())?;
    if args.json {
        return common::say(format!("{:#}", evaluation.to_json()?));
    }
    let results = table::Results::fine_tuned(args.split.name(), &evaluation.metrics);
    common::say(table::results(&[results], evaluation.class_names.len()))?;
    if args.per_class {
        common::say(classes(&evaluation))?;
    }
    Ok(())
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
