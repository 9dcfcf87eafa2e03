//! One run with several seeds: `engine train --seeds N`.

use super::{common, table};
use crate::commands::run_set::RunSet;
use crate::progress::Monitor;
use crate::report::RunData;
use crate::report::seeds::{Scores, SeedSummary};
use anyhow::Result;

/// Trains the runs of `set`, writes seeds.json and prints what they reached.
pub fn train(set: RunSet, monitor: &dyn Monitor) -> Result<()> {
    let path = set.path().to_path_buf();
    let (runs, _) = set.train(monitor)?;
    let pairs: Vec<_> = runs.iter().map(|run| (run.settings.seed, &run.summary)).collect();
    let Some(summary) = SeedSummary::of(&pairs) else { return Ok(()) };
    let text = serde_json::to_string_pretty(&summary)? + "\n";
    common::write_file(&path.join("seeds.json"), text.as_bytes())?;
    print(&summary, &runs)?;
    common::say(format!("runs and seeds.json: {}", path.display()))
}

fn print(summary: &SeedSummary, runs: &[RunData]) -> Result<()> {
    let Some(first) = runs.first() else { return Ok(()) };
    let (split, top5) = (&summary.split, table::has_top5(first.summary.classes));
    let mut rows = Vec::new();
    for run in &summary.runs {
        let mut cells = vec![run.seed.to_string()];
        cells.extend(score_cells(&run.scores, None, split, top5));
        cells.push(format!("{} ({})", run.epochs, run.best_epoch));
        cells.push(format!("{:.1}", run.seconds));
        rows.push(cells);
    }
    if let Some(std) = &summary.std {
        let mut cells = vec!["mean ± std".into()];
        cells.extend(score_cells(&summary.mean, Some(std), split, top5));
        rows.push(cells);
    }
    common::say(table::fitted(&header("seed", split, top5, &["epochs (kept)", "s"]), &rows))?;
    let zero_shot = &first.summary.zero_shot;
    common::say(format!(
        "plain CLIP, {}: {}; {} trained parameters; {}",
        zero_shot.split,
        table::percent(zero_shot.top1),
        first.summary.trained_parameters,
        first.summary.device,
    ))
}

/// Column titles: `first`, the scores of [`score_cells`], and `more`.
pub fn header<'a>(first: &'a str, split: &str, top5: bool, more: &[&'a str]) -> Vec<&'a str> {
    let tops: &[&str] = if split == "test" { &["val top-1", "test top-1"] } else { &["val top-1"] };
    let five: &[&str] = if top5 { &["top-5"] } else { &[] };
    [&[first], tops, five, &["macro F1", "ECE"], more].concat()
}

/// Scores with their deviations where there are some. Without a test split the two accuracies are one.
pub fn score_cells(mean: &Scores, std: Option<&Scores>, split: &str, top5: bool) -> Vec<String> {
    let share = |value: fn(&Scores) -> f64| match std {
        Some(std) => format!("{:.1} ± {:.1} %", 100.0 * value(mean), 100.0 * value(std)),
        None => table::percent(value(mean)),
    };
    let mut cells = vec![share(|s| s.val_top1)];
    if split == "test" {
        cells.push(share(|s| s.test_top1));
    }
    if top5 {
        cells.push(share(|s| s.test_top5));
    }
    cells.extend([share(|s| s.macro_f1), share(|s| s.ece)]);
    cells
}
