//! `engine compare`

use super::bars::Bars;
use super::flags::SettingFlags;
use super::seeds::{header, score_cells};
use super::{common, table};
use crate::TrainError;
use crate::commands::comparison;
use crate::commands::open;
use crate::commands::output;
use crate::commands::run_set::runs_of;
use crate::commands::run_set::{Earlier, Layout, RunSet};
use crate::progress::Monitor;
use crate::report::Comparison;
use crate::report::compare::{ComparisonRow, MeanRow, Published};
use crate::settings::{Given, Key, Recipe, SettingError, Settings};
use anyhow::{Result, bail};
use std::path::PathBuf;

/// The heading of its own flags in the help.
const COMPARISON: &str = "Comparison";

#[derive(clap::Args)]
pub struct Args {
    /// Finished runs, all of the same classes and images.
    #[arg(value_name = "RUN", required_unless_present = "recipes", conflicts_with = "recipes")]
    runs: Vec<PathBuf>,
    /// Train these first, one after the other with one loaded model: all, or some of those that engine train takes as
    /// --recipe. The flags of engine train apply to every recipe that has a use for them. A run that was interrupted
    /// goes on with engine train --resume; what is finished can be compared by RUN.
    #[arg(long, help_heading = COMPARISON, value_delimiter = ',', value_name = "all|RECIPE,…")]
    recipes: Option<Vec<String>>,
    /// Where comparison.json, comparison.csv, report.html and plots/ are written, and the runs of --recipes
    /// [default: runs/NAME-compare by the name of the data, runs/compare with --demo; without --recipes nothing
    /// is written].
    #[arg(long, help_heading = COMPARISON, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace an earlier comparison in DIR, and with --recipes its runs. Without --out
    /// a comparison on the demo is always replaced by the next.
    #[arg(long, help_heading = COMPARISON)]
    overwrite: bool,
    /// Train each recipe with N seeds from --seed on, all on the images that the first one sees.
    #[arg(long, help_heading = COMPARISON, value_name = "N", conflicts_with = "runs", value_parser = clap::value_parser!(u32).range(1..))]
    seeds: Option<u32>,
    /// Train the runs of --recipes on these devices of one kind, one run on each at a time, such as cuda:0,cuda:1.
    #[arg(long, help_heading = COMPARISON, value_delimiter = ',', value_name = "DEVICE,…", conflicts_with_all = ["runs", Key::device.setting().name])]
    devices: Vec<String>,
    #[command(flatten)]
    settings: SettingFlags,
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let (comparison, out) = match &args.recipes {
        Some(names) => {
            let set = plan(&args, &parse(names)?, &monitor)?;
            let out = set.path().to_path_buf();
            monitor.line(&format!("runs: {}", out.display()));
            (comparison::train(set, &monitor)?, Some(out))
        }
        None => {
            if args.settings.0 != Given::default() {
                let text = "flags of engine train need --recipes; finished runs keep their settings";
                bail!(TrainError::Setting(text.into()));
            }
            (comparison::compare(&args.runs, args.out.as_deref(), args.overwrite, &monitor)?, args.out)
        }
    };
    print(&comparison, &monitor)?;
    match out {
        Some(out) => {
            common::say(format!("comparison.json, comparison.csv and report.html: {}", out.display()))
        }
        None => Ok(()),
    }
}

/// The recipes that `--recipes` names.
fn parse(names: &[String]) -> Result<Vec<Recipe>> {
    let refuse = |text: String| Err(TrainError::Setting(format!("--recipes: {text}")).into());
    if names == ["all"] {
        return Ok(Recipe::ALL.to_vec());
    }
    let mut recipes = Vec::new();
    for name in names {
        let Some(&recipe) = Recipe::ALL.iter().find(|recipe| recipe.name() == name) else {
            let known = Recipe::ALL.map(Recipe::name).join(", ");
            return refuse(format!("{name:?} is no recipe; use all, or some of {known}"));
        };
        if recipes.contains(&recipe) {
            return refuse(format!("{name} is named twice; name each once"));
        }
        recipes.push(recipe);
    }
    Ok(recipes)
}

/// The runs that the arguments ask for, all of them right as far as can be known before one is trained.
fn plan(args: &Args, recipes: &[Recipe], monitor: &dyn Monitor) -> Result<RunSet> {
    let flags = &args.settings.0;
    if flags.names_no_data() {
        let text =
            "--data is missing; for example engine compare --recipes all --data DIR, or --demo in its place";
        bail!(TrainError::Setting(text.into()));
    }
    let mut runs = Vec::new();
    for settings in resolve_each(flags, recipes)? {
        let name = settings.recipe.name();
        match args.seeds {
            Some(count) => runs.extend(runs_of(&settings, count, Some(name))?),
            None => runs.push((name.to_owned(), settings)),
        }
    }
    let Some((_, first)) = runs.first() else { bail!("--recipes names none") };
    if let Some(name) = first.model_name().filter(|_| flags.model.is_none()) {
        open::say_default_model(name, monitor);
    }
    let earlier = Earlier::of(args.overwrite, args.out.as_deref());
    let path = args.out.clone().map_or_else(|| output::of_comparison(first), Ok)?;
    RunSet::vacant(&path, Layout::Comparison, runs, earlier)?.on(&args.devices)
}

/// The settings of several recipes with the same flags, each of which must be of use to one of them.
fn resolve_each(flags: &Given, recipes: &[Recipe]) -> Result<Vec<Settings>> {
    let refuse = |text: &str| Err(TrainError::Setting(text.into()).into());
    if flags.recipe.is_some() {
        return refuse("--recipe: --recipes names the recipes of a comparison; leave it out");
    }
    if flags.method.is_some() || flags.with_lora.is_some() {
        return refuse(
            "--method, --with-lora: a recipe has its own; leave them out, or train that run apart",
        );
    }
    if flags.init_from.is_some() {
        return refuse("--init-from: recipes are compared from the same start, plain CLIP; leave it out");
    }
    // What makes a recipe goes to that recipe alone.
    let of = |&recipe| {
        let mixup = flags.mixup.filter(|_| recipe == Recipe::Mixup);
        let triplet = flags.triplet.filter(|_| recipe == Recipe::Triplet);
        Settings::combine(Given::default(), &Given { recipe: Some(recipe), mixup, triplet, ..flags.clone() })
    };
    for (flag, given, recipe) in [
        ("--mixup", flags.mixup.is_some(), Recipe::Mixup),
        ("--triplet", flags.triplet.is_some(), Recipe::Triplet),
    ] {
        if given && !recipes.contains(&recipe) {
            let text = format!("{flag}: belongs to the recipe {recipe}, which --recipes does not name");
            return Err(TrainError::Setting(text).into());
        }
    }
    let runs: Vec<Settings> = recipes.iter().map(of).collect();
    check_use_by_any(flags, &runs)?;
    for run in &runs {
        let named = |SettingError(text)| SettingError(format!("recipe {}: {text}", run.recipe));
        run.validate().map_err(named)?;
    }
    Ok(runs)
}

/// Refuses flags that none of the runs would look at.
fn check_use_by_any(flags: &Given, runs: &[Settings]) -> Result<()> {
    let unused_by = |key: &Key| runs.iter().all(|run| key.setting().no_effect(run).is_some());
    match flags.keys().find(unused_by) {
        Some(flag) => {
            let text = format!("{flag}: none of the recipes has a use for it; leave it out");
            bail!(TrainError::Setting(text))
        }
        None => Ok(()),
    }
}

fn print(comparison: &Comparison, monitor: &dyn Monitor) -> Result<()> {
    comparison.warnings.iter().for_each(|warning| monitor.warn(warning));
    common::say(table::fitted(&titles(comparison), &rows(comparison)))?;
    common::say(format!("{} classes, measured on the {} split", comparison.classes, comparison.split))?;
    if has_published(comparison) {
        common::say("published: test top-1 of ViT-B/32 on the official split of Flowers-102")?;
    }
    Ok(())
}

fn has_published(comparison: &Comparison) -> bool {
    comparison.rows.iter().any(|row| row.published.is_some())
}

fn titles(comparison: &Comparison) -> Vec<&'static str> {
    let several: &[&str] = if comparison.means.is_empty() { &[] } else { &["seeds"] };
    let published: &[&str] = if has_published(comparison) { &["published"] } else { &[] };
    let more = [several, &["parameters", "epochs (kept)", "s"], published].concat();
    header("technique", &comparison.split, table::has_top5(comparison.classes), &more)
}

/// The cells of every row under [`titles`].
fn rows(comparison: &Comparison) -> Vec<Vec<String>> {
    let (split, several) = (&comparison.split, !comparison.means.is_empty());
    let top5 = table::has_top5(comparison.classes);
    let plain = comparison.rows.iter().filter(|row| !several || row.seed.is_none());
    let mut rows: Vec<_> =
        plain.map(|row| (row_cells(row, comparison.images, split, top5, several), &row.published)).collect();
    rows.extend(comparison.means.iter().map(|row| (mean_cells(row, split, top5), &row.published)));
    let published = has_published(comparison);
    let with_published = |(mut cells, found): (Vec<String>, &Option<Published>)| {
        if published {
            cells.push(found.as_ref().map(published_cell).unwrap_or_default());
        }
        cells
    };
    rows.into_iter().map(with_published).collect()
}

fn row_cells(row: &ComparisonRow, images: usize, split: &str, top5: bool, several: bool) -> Vec<String> {
    let share = |value: Option<f64>| value.map(table::percent).unwrap_or_default();
    let mut cells = vec![row.name.clone()];
    if split == "test" {
        cells.push(share(row.val_top1));
    }
    cells.push(table::accuracy(row.test_top1, images));
    if top5 {
        cells.push(share(Some(row.test_top5).filter(|top5| top5.is_finite())));
    }
    cells.extend([share(row.macro_f1), share(row.ece)]);
    if several {
        cells.push(String::new());
    }
    // What takes no training is no run.
    let trained = row.epochs > 0;
    cells.push(if trained { row.trained_parameters.to_string() } else { String::new() });
    cells.push(if trained { format!("{} ({})", row.epochs, row.best_epoch) } else { String::new() });
    cells.push(if row.seconds > 0.0 { format!("{:.1}", row.seconds) } else { String::new() });
    cells
}

fn mean_cells(row: &MeanRow, split: &str, top5: bool) -> Vec<String> {
    let mut cells = vec![row.name.clone()];
    cells.extend(score_cells(&row.mean, row.std.as_ref(), split, top5));
    cells.push(row.seeds.len().to_string());
    cells.push(row.trained_parameters.to_string());
    cells.push(format!("{:.1} ({:.1})", row.epochs, row.best_epoch));
    cells.push(format!("{:.1}", row.seconds));
    cells
}

/// "91.2–92.05 %, val 91.76 %".
fn published_cell(published: &Published) -> String {
    let digits = |value: f64| {
        let text = format!("{:.2}", 100.0 * value);
        text.strip_suffix('0').map(str::to_owned).unwrap_or(text)
    };
    let [low, high] = published.test_top1;
    let test = if low == high { digits(low) } else { format!("{}–{}", digits(low), digits(high)) };
    match published.val_top1 {
        Some(val) => format!("{test} %, val {} %", digits(val)),
        None => format!("{test} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Plain CLIP, a run without a published result and one with.
    fn comparison(split: &str, several: bool) -> Comparison {
        let published = json!({ "test_top1": [0.912, 0.9205], "val_top1": 0.9176 });
        let row = |name: &str, seed: Value, published: Value| {
            json!({
                "name": name, "recipe": name, "seed": seed, "val_top1": 0.9, "test_top1": 0.85,
                "test_top5": 0.99, "text_top1": 0.7, "macro_f1": 0.88, "ece": 0.051, "trained_parameters": 642,
                "epochs": 12, "best_epoch": 9, "seconds": 83.21, "images_per_s": 1204.0,
                "published": published,
            })
        };
        let scores = |val: f64| json!({ "val_top1": val, "test_top1": val / 2.0, "test_top5": 1, "text_top1": 1, "macro_f1": 1, "ece": val });
        let mean = json!({
            "name": "lora", "recipe": "lora", "seeds": [1, 2], "runs": ["a", "b"], "mean": scores(0.5),
            "std": scores(0.125), "trained_parameters": 642, "epochs": 12.5, "best_epoch": 9, "seconds": 3,
            "published": published,
        });
        serde_json::from_value(json!({
            "split": split, "classes": 102, "images": 200, "means": if several { json!([mean]) } else { json!([]) },
            "rows": [
                row("zero-shot", Value::Null, Value::Null), row("linear", 1.into(), Value::Null),
                row("lora", 1.into(), published),
            ],
        }))
        .unwrap()
    }

    #[test]
    fn every_cell_stands_under_its_title() {
        for split in ["test", "val"] {
            for several in [false, true] {
                let comparison = comparison(split, several);
                let (titles, rows) = (titles(&comparison), rows(&comparison));
                assert!(rows.iter().all(|row| row.len() == titles.len()), "{titles:?} {rows:?}");
                assert_eq!(rows.len(), if several { 2 } else { 3 });
                let cell = |title: &str| {
                    let place = titles.iter().position(|t| *t == title);
                    place.map(|place| rows[rows.len() - 1][place].as_str())
                };
                assert_eq!(cell("published"), Some("91.2–92.05 %, val 91.76 %"));
                assert_eq!(cell("parameters"), Some("642"));
                assert_eq!(cell("seeds"), several.then_some("2"));
                assert_eq!(cell("ECE"), Some(if several { "50.0 ± 12.5 %" } else { "5.1 %" }));
                let test = if several { "25.0 ± 6.2 %" } else { "85.0 % (79.4–89.3)" };
                assert_eq!(cell("test top-1"), (split == "test").then_some(test));
            }
        }
    }

    #[test]
    fn published_results_keep_their_digits() {
        let cell = |test_top1, val_top1| published_cell(&Published { test_top1, val_top1 });
        assert_eq!(cell([0.912, 0.9205], Some(0.9176)), "91.2–92.05 %, val 91.76 %");
        assert_eq!(cell([0.665, 0.665], None), "66.5 %");
        assert_eq!(cell([0.9, 0.9], None), "90.0 %");
    }
}
