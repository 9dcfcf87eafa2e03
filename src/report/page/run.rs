//! What the page of one run shows.

use super::thumbnails::{Album, Picture, by_confidence, common_folder, of_cells};
use crate::data::SplitView;
use crate::report::RunData;
use crate::report::compare::{BASELINE, PLAIN};
use crate::report::origin::Origin;
use crate::report::plots::RunCharts;
use crate::settings::Settings;
use crate::stats::interval::{wilson, wilson_of};
use crate::train::metrics::{ClassMetrics, EvalMetrics, Evaluation, macro_f1};
use crate::train::records::{Ladder, RungScores, Temperature, ZeroShot};
use crate::train::{Result, TrainError};
use serde::Serialize;

/// Thumbnails of the most confident mistakes.
const MISTAKES: usize = 24;

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename = "run")]
pub(crate) struct RunPage<'a> {
    name: &'a str,
    origin: Origin,
    recipe: toml::Value,
    split: &'a str,
    headline: Headline<'a>,
    results: Vec<ResultRow<'a>>,
    ladder: Option<LadderRows<'a>>,
    settings: Vec<Setting>,
    charts: RunCharts,
    class_names: &'a [String],
    classes: &'a [ClassMetrics],
    /// 95 % confidence interval of the recall of each class.
    intervals: Vec<(f64, f64)>,
    zero_shot: &'a [ClassMetrics],
    cells: Vec<Cell>,
    bins: usize,
    ece: f64,
    temperature: Option<Temperature>,
    /// Places in `images`, and how many mistakes there are in all.
    mistakes: Vec<usize>,
    mistakes_in_all: usize,
    /// The folder that the paths of `images` are in.
    root: &'a str,
    images: Vec<Picture>,
}

#[derive(Debug, Serialize)]
struct Headline<'a> {
    result: &'a EvalMetrics,
    val: &'a EvalMetrics,
    zero_shot: &'a ZeroShot,
    /// 95 % confidence intervals of the top-1 accuracies of these three.
    intervals: [(f64, f64); 3],
    epochs: u32,
    best_epoch: u32,
    stopped_early: bool,
    trained_parameters: usize,
    seconds: f64,
    images_per_s: f64,
    device: &'a str,
}

/// A classifier on the split of the result; what is not known of it is none or not a number.
#[derive(Debug, Serialize)]
struct ResultRow<'a> {
    name: &'a str,
    split: &'a str,
    top1: f64,
    /// 95 % confidence interval of `top1`.
    interval: (f64, f64),
    top5: Option<f64>,
    macro_f1: Option<f64>,
    nll: f64,
    brier: f64,
    ece: Option<f64>,
    seconds: Option<f64>,
}

/// Classifiers that were tried, and why one of them was kept.
#[derive(Debug, Serialize)]
struct LadderRows<'a> {
    rungs: Vec<RungRow<'a>>,
    reason: &'a str,
}

#[derive(Debug, Serialize)]
struct RungRow<'a> {
    name: &'a str,
    kept: bool,
    chosen: &'a str,
    val: Option<Scores>,
    test: Option<Scores>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Scores {
    top1: f64,
    /// 95 % confidence interval of `top1`.
    interval: (f64, f64),
    nll: f64,
}

/// A line of config.toml.
#[derive(Debug, Serialize)]
struct Setting {
    key: String,
    value: String,
    /// The recipe's default, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
}

/// A cell of the confusion matrix that is not 0.
#[derive(Debug, Serialize)]
struct Cell {
    label: u32,
    predicted: u32,
    count: u32,
    /// Places in the page's images, the most confident first.
    images: Vec<usize>,
}

impl<'a> RunPage<'a> {
    pub fn new(run: &'a RunData, images: Option<&SplitView<'_>>) -> Result<Self> {
        let evaluation = &run.evaluation;
        let mut album = Album::default();
        let mut mistakes = by_confidence(&evaluation.images, |image| image.label != image.predicted);
        let mistakes_in_all = mistakes.len();
        mistakes.truncate(MISTAKES);
        let mistakes = mistakes.into_iter().map(|index| album.place(index)).collect();
        let cells = cells(evaluation, &mut album);
        let root = common_folder(&evaluation.images);
        Ok(RunPage {
            name: &run.name,
            origin: Origin::of(&[run]),
            recipe: value(&run.settings.recipe)?,
            split: &evaluation.split,
            headline: headline(run),
            results: results(run),
            ladder: run.summary.ladder.as_ref().map(ladder_rows),
            settings: settings(&run.settings)?,
            charts: RunCharts::of(run)?,
            class_names: &evaluation.class_names,
            classes: &evaluation.classes,
            intervals: intervals(&evaluation.classes),
            zero_shot: &evaluation.zero_shot,
            cells,
            bins: evaluation.calibration.len(),
            ece: evaluation.metrics.ece,
            temperature: run.summary.temperature,
            mistakes,
            mistakes_in_all,
            root,
            images: album.pictures(evaluation, root, images)?,
        })
    }
}

fn headline(run: &RunData) -> Headline<'_> {
    let (summary, result) = (&run.summary, &run.evaluation.metrics);
    let (val, plain) = (&summary.val, &summary.zero_shot);
    Headline {
        result,
        val,
        zero_shot: plain,
        intervals: [(result.top1, result.images), (val.top1, val.images), (plain.top1, plain.images)]
            .map(|(top1, images)| wilson_of(top1, images)),
        epochs: summary.epochs,
        best_epoch: summary.best_epoch,
        stopped_early: summary.stopped_early,
        trained_parameters: summary.trained_parameters,
        seconds: summary.seconds,
        images_per_s: summary.images_per_s,
        device: &summary.device,
    }
}

/// The run, plain CLIP, and the baseline where it is known.
fn results(run: &RunData) -> Vec<ResultRow<'_>> {
    let (result, plain) = (&run.evaluation.metrics, &run.summary.zero_shot);
    let tuned = ResultRow {
        name: &run.name,
        split: &run.evaluation.split,
        top1: result.top1,
        interval: wilson_of(result.top1, result.images),
        top5: Some(result.top5),
        macro_f1: Some(result.macro_f1),
        nll: result.nll,
        brier: result.brier,
        ece: Some(result.ece).filter(|ece| ece.is_finite()),
        seconds: Some(run.summary.seconds),
    };
    let by_class = &run.evaluation.zero_shot;
    let plain = ResultRow {
        name: PLAIN,
        split: &plain.split,
        top1: plain.top1,
        interval: wilson_of(plain.top1, plain.images),
        top5: Some(plain.top5),
        macro_f1: (!by_class.is_empty()).then(|| macro_f1(by_class)),
        nll: plain.loss,
        brier: f64::NAN,
        ece: None,
        seconds: None,
    };
    let baseline = run.summary.baseline.as_ref().map(|baseline| ResultRow {
        name: BASELINE,
        split: &baseline.split,
        top1: baseline.top1,
        interval: wilson_of(baseline.top1, baseline.images),
        top5: None,
        macro_f1: Some(baseline.macro_f1),
        nll: baseline.nll,
        brier: f64::NAN,
        ece: Some(baseline.ece),
        seconds: Some(baseline.seconds),
    });
    [tuned, plain].into_iter().chain(baseline).collect()
}

fn ladder_rows(ladder: &Ladder) -> LadderRows<'_> {
    let scores = |scores: RungScores| Scores {
        top1: scores.top1,
        interval: wilson_of(scores.top1, scores.images),
        nll: scores.nll,
    };
    let rows = ladder.rungs.iter().enumerate().map(|(place, rung)| RungRow {
        name: rung.kind.name(),
        kept: place == ladder.kept,
        chosen: &rung.chosen,
        val: rung.val.map(scores),
        test: rung.test.map(scores),
        seconds: rung.seconds,
    });
    LadderRows { rungs: rows.collect(), reason: &ladder.reason }
}

fn intervals(classes: &[ClassMetrics]) -> Vec<(f64, f64)> {
    classes.iter().map(|class| wilson(class.right.into(), class.images.into())).collect()
}

fn cells(evaluation: &Evaluation, album: &mut Album) -> Vec<Cell> {
    let cell = |((label, predicted), images): ((u32, u32), Vec<usize>)| Cell {
        label,
        predicted,
        count: evaluation.confusion[label as usize][predicted as usize],
        images: images.into_iter().map(|index| album.place(index)).collect(),
    };
    of_cells(&evaluation.images).into_iter().map(cell).collect()
}

/// The lines of config.toml, against the defaults of the recipe.
fn settings(settings: &Settings) -> Result<Vec<Setting>> {
    let defaults = value(&Settings::of(settings.recipe))?;
    let toml::Value::Table(lines) = value(settings)? else { return Ok(Vec::new()) };
    let line = |(key, value): (String, toml::Value)| {
        let default = defaults.get(&key).filter(|default| **default != value).map(in_words);
        Setting { key, value: in_words(&value), default }
    };
    Ok(lines.into_iter().map(line).collect())
}

/// A value as it is read; lists without their brackets and quotation marks.
fn in_words(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(in_words).collect::<Vec<_>>().join("\n"),
        other => other.to_string(),
    }
}

fn value(of: &impl Serialize) -> Result<toml::Value> {
    toml::Value::try_from(of).map_err(|e| TrainError::Setting(format!("a setting cannot be shown ({e})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Recipe;

    #[test]
    fn settings_that_differ_from_the_recipe_say_its_default() {
        let mut changed = Settings::of(Recipe::Lora);
        (changed.epochs, changed.device) = (7, "cuda:1".into());
        let lines = settings(&changed).unwrap();
        let marked: Vec<_> = lines.iter().filter_map(|l| Some((&*l.key, l.default.as_deref()?))).collect();
        assert_eq!(marked, [("epochs", "40"), ("device", "auto")]);
        // In the order of the fields, as in config.toml.
        assert!(lines.iter().position(|l| l.key == "recipe") < lines.iter().position(|l| l.key == "alpha"));
    }
}
