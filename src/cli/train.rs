//! `engine train`

use super::bars::Bars;
use super::common::Judged;
use super::device::{self, on_device};
use super::flags::SettingFlags;
use super::run_set::{Earlier, Layout, RunSet};
use super::table::Results;
use super::{common, dry_run, output, seeds, table};
use anyhow::{Context, Result, bail};
use clip_engine::TrainError;
use clip_engine::progress::Monitor;
use clip_engine::report;
use clip_engine::settings::{Given, Key, Settings};
use clip_engine::train::records::{Summary, Temperature};
use clip_engine::train::run::SharedModel;
use clip_engine::train::run_dir::RunDir;
use std::path::{Path, PathBuf};

/// Headings of the help, each by a setting below it.
const TRAINED: &str = Key::recipe.setting().heading;
const OPTIMISATION: &str = Key::seed.setting().heading;
const OUTPUT: &str = Key::device.setting().heading;

/// Settings that may have another value with `--resume`.
const RESUMABLE: [Key; 7] = [
    Key::epochs,
    Key::early_stop,
    Key::early_stop_min_delta,
    Key::early_stop_against,
    Key::device,
    Key::precision,
    Key::tensorboard,
];

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
    let (dir, mut settings) = if args.resume {
        resume(&args, &monitor)?
    } else {
        let file = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let flags = &args.settings.0;
        let model_is_given = file.model.is_some() || flags.model.is_some();
        let settings = Settings::combine(file, flags);
        if settings.data.is_none() && !settings.demo {
            let text = "--data is missing; for example engine train --data DIR, or engine train --demo";
            bail!(TrainError::Setting(text.into()));
        }
        flags.check(&settings)?;
        if let Some(name) = settings.model_name().filter(|_| !model_is_given) {
            common::say_default_model(name, &monitor);
        }
        common::warn_of_adapter(settings.init_from.as_deref(), &monitor)?;
        if let Some(count) = args.seeds {
            let earlier = Earlier::of(args.overwrite, args.output.as_deref());
            let path = args.output.map_or_else(|| output::of_seeds(&settings), Ok)?;
            let runs = seeds::runs_of(&settings, count, None)?;
            let set = RunSet::vacant(&path, Layout::Seeds, runs, earlier)?;
            monitor.line(&format!("runs: {}", path.display()));
            return seeds::train(set, &monitor);
        }
        let dir = match &args.output {
            Some(output) => RunDir::vacant(output, args.overwrite)?,
            None if args.dry_run => return dry_run::run(settings, &monitor),
            None => {
                let path = output::of_run(&settings)?;
                let earlier = RunDir::existing(&path).and_then(|run| run.read_settings());
                // What is kept there of other photos goes only when asked for.
                RunDir::vacant(&path, args.overwrite || earlier.is_ok_and(|settings| settings.demo))?
            }
        };
        if args.dry_run {
            return dry_run::run(settings, &monitor);
        }
        monitor.line(&format!("run: {}", dir.path().display()));
        (dir, settings)
    };
    let device = device::open_to_train(&settings.device, settings.precision, &monitor)?;
    settings.precision = Some(device.precision());
    let material = common::material(&settings, &Judged::default(), &monitor)?;
    material.describe(&monitor);
    let common::Material { model, cache, enlarged } = material;
    let resume = args.resume;
    let summary = on_device!(device, backend => {
        let templates = &settings.templates;
        let towers = settings.trained_towers();
        let mut shared = SharedModel::new(backend, model, &cache, enlarged.as_ref(), templates, towers, &monitor)?;
        shared.train(&settings, &dir, resume, &monitor)
    })?;
    report::write_run(&dir, &cache, &monitor)?;
    print(&summary, &dir)
}

/// The run directory and settings of a run to continue.
fn resume(args: &Args, monitor: &dyn Monitor) -> Result<(RunDir, Settings)> {
    let mut given = args.settings.0.clone();
    let named = Settings::combine(Given::default(), &given);
    let path = match &args.output {
        Some(output) => output.clone(),
        None if named.demo || named.data.is_some() => output::of_run(&named)?,
        None => {
            let text = "--output is missing; for example engine train --resume --output runs/flowers102";
            bail!(TrainError::Setting(text.into()));
        }
    };
    let dir = RunDir::existing(&path)?;
    // Its settings must not change any more.
    dir.lock(monitor)?;
    let mut settings = dir.read_settings()?;
    // What names the run may stay.
    if named.data == settings.data {
        given.data = None;
    }
    if given.keys().any(|key| key != Key::demo && !RESUMABLE.contains(&key)) {
        bail!(TrainError::Setting(
            "--resume: only --epochs, --early-stop and its like, --device, --precision and --tensorboard may be \
             given with it"
                .into()
        ));
    }
    if given.demo.is_some_and(|demo| demo != settings.demo) {
        bail!(TrainError::Setting("--resume: that run is no demo; leave out --demo".into()));
    }
    given.apply(&mut settings);
    settings.validate()?;
    Ok((dir, settings))
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
