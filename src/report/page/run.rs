//! What the page of one run shows.

use super::thumbnails::{Album, Picture, by_confidence, common_folder, of_cells};
use crate::data::SplitView;
use crate::report::RunData;
use crate::report::data::TrainRecord;
use crate::train::metrics::{CalibrationBin, ClassMetrics, EvalMetrics, Evaluation};
use crate::train::run::ZeroShot;
use crate::train::{Result, Settings, TrainError};
use serde::Serialize;

/// Thumbnails of the most confident mistakes.
const MISTAKES: usize = 24;

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename = "run")]
pub struct RunPage<'a> {
    name: &'a str,
    recipe: toml::Value,
    split: &'a str,
    headline: Headline<'a>,
    settings: Vec<Setting>,
    epochs: Vec<Epoch<'a>>,
    parts: Vec<Part>,
    class_names: &'a [String],
    classes: &'a [ClassMetrics],
    zero_shot: &'a [ClassMetrics],
    cells: Vec<Cell>,
    calibration: &'a [CalibrationBin],
    ece: f64,
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
    epochs: u32,
    best_epoch: u32,
    stopped_early: bool,
    trained_parameters: usize,
    seconds: f64,
    images_per_s: f64,
    device: &'a str,
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

#[derive(Debug, Serialize)]
struct Epoch<'a> {
    epoch: u32,
    train: Losses,
    val: &'a EvalMetrics,
}

#[derive(Debug, Serialize)]
struct Losses {
    loss: f64,
    top1: f64,
    loss_head: f64,
    loss_text: f64,
    loss_triplet: f64,
}

/// A part of the objective that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    Head,
    Text,
    Triplet,
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
            recipe: value(&run.settings.recipe)?,
            split: &evaluation.split,
            headline: headline(run),
            settings: settings(&run.settings)?,
            epochs: epochs(run),
            parts: parts(run),
            class_names: &evaluation.class_names,
            classes: &evaluation.classes,
            zero_shot: &evaluation.zero_shot,
            cells,
            calibration: &evaluation.calibration,
            ece: evaluation.metrics.ece,
            mistakes,
            mistakes_in_all,
            root,
            images: album.pictures(evaluation, root, images)?,
        })
    }
}

fn headline(run: &RunData) -> Headline<'_> {
    let summary = &run.summary;
    Headline {
        result: &run.evaluation.metrics,
        val: &summary.val,
        zero_shot: &summary.zero_shot,
        epochs: summary.epochs,
        best_epoch: summary.best_epoch,
        stopped_early: summary.stopped_early,
        trained_parameters: summary.trained_parameters,
        seconds: summary.seconds,
        images_per_s: summary.images_per_s,
        device: &summary.device,
    }
}

fn epochs(run: &RunData) -> Vec<Epoch<'_>> {
    let epochs = run.epochs.iter().map(|record| {
        let &TrainRecord { loss, top1, loss_head, loss_text, loss_triplet, .. } = &record.train;
        Epoch {
            epoch: record.epoch,
            train: Losses { loss, top1, loss_head, loss_text, loss_triplet },
            val: &record.val,
        }
    });
    epochs.collect()
}

fn parts(run: &RunData) -> Vec<Part> {
    let mut parts = Vec::new();
    if run.settings.objective().head != 0.0 {
        parts.push(Part::Head);
    }
    if run.settings.text_weight != 0.0 {
        parts.push(Part::Text);
    }
    if run.settings.has_triplet() {
        parts.push(Part::Triplet);
    }
    parts
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
    use crate::train::settings::Recipe;

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
