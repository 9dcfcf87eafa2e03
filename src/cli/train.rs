//! `engine train`

use super::bars::Bars;
use super::flags::SettingFlags;
use super::table::Results;
use super::{common, dry_run, seeds, table};
use crate::commands::output;
use crate::commands::run_set::{Earlier, Layout, RunSet, runs_of};
use crate::commands::training;
use crate::progress::Monitor;
use crate::settings::{Given, Key};
use crate::train::records::{Summary, Temperature};
use crate::train::run_dir::RunDir;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Headings of the help, each by a setting below it.
const TRAINED: &str = Key::recipe.setting().heading;
const OPTIMISATION: &str = Key::seed.setting().heading;
const OUTPUT: &str = Key::device.setting().heading;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: SettingFlags,
    /// Where the run is written [default: runs/NAME by the name of the data, runs/demo with --demo; a demo run
    /// there is replaced].
    #[arg(long, help_heading = OUTPUT, value_name = "RUN")]
    output: Option<PathBuf>,
    /// Settings from a TOML file, such as the config.toml of another run; flags override it.
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue the run in RUN; only --epochs, --early-stop and its like, --device, --precision and --tensorboard
    /// may differ from its config.toml.
    #[arg(long, help_heading = OUTPUT, conflicts_with_all = ["config", "overwrite"])]
    resume: bool,
    /// Replace the run in RUN, or with --seeds the runs.
    #[arg(long, help_heading = OUTPUT)]
    overwrite: bool,
    /// Train N times, with seeds from --seed on, into RUN/seed-S each; all see the images that the first one
    /// sees [--output by default: runs/NAME-seeds].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "N", conflicts_with = "resume", value_parser = clap::value_parser!(u32).range(1..))]
    seeds: Option<u32>,
    /// Train the runs of --seeds on these devices of one kind, one run on each at a time, such as cuda:0,cuda:1.
    #[arg(long, help_heading = OUTPUT, hide_short_help = true, value_delimiter = ',', value_name = "DEVICE,…", requires = "seeds", conflicts_with = Key::device.setting().name)]
    devices: Vec<String>,
    /// Say what the run would do: its configuration, its images, what it trains, and the memory and the work
    /// of a step. Fetches data and model if they are not there yet, and writes nothing else.
    #[arg(long, help_heading = OUTPUT, conflicts_with_all = ["resume", "seeds"])]
    dry_run: bool,
}

fn read(path: &Path) -> Result<Given> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--config: check the path; {} cannot be read", path.display()))?;
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        let problem = e.message();
        anyhow::anyhow!("{} line {line}: {problem}; the keys are the flags without --", path.display())
    })
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let (dir, settings) = if args.resume {
        training::resume(args.output.as_deref(), args.settings.0, &monitor)?
    } else {
        let file = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let settings = training::settings(file, &args.settings.0, &monitor)?;
        if let Some(count) = args.seeds {
            let earlier = Earlier::of(args.overwrite, args.output.as_deref());
            let path = args.output.map_or_else(|| output::of_seeds(&settings), Ok)?;
            let runs = runs_of(&settings, count, None)?;
            let set = RunSet::vacant(&path, Layout::Seeds, runs, earlier)?.on(&args.devices)?;
            monitor.line(&format!("runs: {}", path.display()));
            return seeds::train(set, &monitor);
        }
        if args.dry_run && args.output.is_none() {
            return dry_run::run(settings, &monitor);
        }
        let dir = training::vacant(&settings, args.output.as_deref(), args.overwrite)?;
        if args.dry_run {
            return dry_run::run(settings, &monitor);
        }
        monitor.line(&format!("run: {}", dir.path().display()));
        (dir, settings)
    };
    let summary = training::train(&dir, settings, args.resume, &monitor)?;
    print(&summary, &dir)
}

fn print(summary: &Summary, dir: &RunDir) -> Result<()> {
    let z = &summary.zero_shot;
    let (result, split) = match &summary.test {
        Some(test) => (test, "test"),
        None => (&summary.val, "val"),
    };
    let mut columns = vec![Results::plain_clip(&z.split, z.images, z.top1, z.top5, None)];
    columns.extend(summary.baseline.as_ref().map(Results::baseline));
    columns.push(Results::fine_tuned(split, result));
    common::say(table::results(&columns, summary.classes))?;
    let val = &summary.val;
    if summary.test.is_some() {
        let top1 = table::accuracy(val.top1, val.images);
        common::say(format!("fine-tuned, val: top-1 {top1}, loss {:.4}", val.loss))?;
    }
    if let Some(Temperature { value, before, .. }) = &summary.temperature {
        common::say(format!(
            "temperature {value:.3}; without it NLL {:.3}, ECE {}",
            before.nll,
            table::percent(before.ece)
        ))?;
    }
    if let Some(ladder) = &summary.ladder {
        common::say(table::ladder(ladder))?;
        common::say(&ladder.reason)?;
    }
    let kept = match (summary.best_epoch, summary.epochs) {
        (0, _) => "no adapters kept".into(),
        (best, all) => format!("epoch {best} of {all} kept"),
    };
    common::say(format!(
        "{kept}{}; {} trained parameters",
        if summary.stopped_early { " (stopped early)" } else { "" },
        summary.trained_parameters,
    ))?;
    common::say(format!(
        "{:.1} s, {:.0} images/s in training; {}",
        summary.seconds, summary.images_per_s, summary.device
    ))?;
    common::say(format!("run: {}; report: {}", dir.path().display(), dir.report().display()))
}
