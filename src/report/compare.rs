//! Runs beside each other, and beside plain CLIP.
//!
//! Results are compared only where they are results on the same images: the same classes, split and photos.
//! Runs of different models are compared with a warning.

use super::RunData;
use super::seeds::{Scores, mean_and_std};
use crate::clip::config::ClipConfig;
use crate::data::flowers102;
use crate::train::files::write_atomic;
use crate::train::metrics::{Evaluation, macro_f1};
use crate::train::run::VisionSizes;
use crate::train::run_dir::RunDir;
use crate::train::settings::{Augment, Recipe};
use crate::train::{Result, Settings, TrainError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The name of plain CLIP's row.
pub const ZERO_SHOT: &str = "zero-shot";

/// Techniques on the same data; the content of comparison.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What the accuracies of `test_top1` were measured on: "test", or "val" where there is no test split.
    pub split: String,
    pub classes: usize,
    /// Plain CLIP first, then the runs in the order in which they were named.
    pub rows: Vec<ComparisonRow>,
    /// A row for every technique, where one was trained with several seeds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub means: Vec<MeanRow>,
    /// What a reader should know before trusting the comparison.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One technique.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonRow {
    /// The run's name; "zero-shot" for plain CLIP.
    pub name: String,
    pub recipe: String,
    #[serde(default)]
    pub seed: Option<u64>,
    /// Fractions. Plain CLIP has no validation result.
    pub val_top1: Option<f64>,
    pub test_top1: f64,
    pub test_top5: f64,
    pub text_top1: Option<f64>,
    pub macro_f1: Option<f64>,
    pub ece: Option<f64>,
    pub trained_parameters: usize,
    pub epochs: u32,
    pub best_epoch: u32,
    /// Of training and validation.
    pub seconds: f64,
    pub images_per_s: f64,
    /// What others report for the same technique on the same data, where it is known.
    pub published: Option<Published>,
}

/// The runs of one technique that differ in their seed alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeanRow {
    pub name: String,
    pub recipe: String,
    pub seeds: Vec<u64>,
    /// Names of the runs, in the order of `seeds`.
    pub runs: Vec<String>,
    pub mean: Scores,
    /// Sample standard deviation; none of a single run.
    pub std: Option<Scores>,
    pub trained_parameters: usize,
    /// Means.
    pub epochs: f64,
    pub best_epoch: f64,
    pub seconds: f64,
    pub published: Option<Published>,
}

/// A result that was published elsewhere, as fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// The lowest and the highest that is reported.
    pub test_top1: [f64; 2],
    pub val_top1: Option<f64>,
}

impl Comparison {
    /// Puts finished runs beside each other.
    ///
    /// # Errors
    /// No run at all; [`TrainError::Incomparable`] for runs of different classes, splits or images.
    pub fn of(runs: &[RunData]) -> Result<Self> {
        let Some(first) = runs.first() else {
            return Err(TrainError::Setting("there is nothing to compare; name at least one run".into()));
        };
        for run in runs {
            check_comparable(first, run)?;
        }
        let mut rows = vec![plain_row(first)];
        rows.extend(runs.iter().map(row));
        Ok(Comparison {
            split: first.evaluation.split.clone(),
            classes: first.evaluation.class_names.len(),
            rows,
            means: means(runs),
            warnings: runs.iter().filter_map(|run| different_model(first, run)).collect(),
        })
    }

    /// Plain CLIP's row.
    pub fn plain(&self) -> Option<&ComparisonRow> {
        self.rows.iter().find(|row| row.recipe == ZERO_SHOT)
    }

    /// Writes comparison.json and comparison.csv into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "create the folder"))?;
        let [json, csv] = Self::files(dir);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| TrainError::file(&json, format!("cannot be stored ({e})")))?;
        write_atomic(&json, (text + "\n").as_bytes())?;
        let table = self.to_csv().map_err(|e| TrainError::file(&csv, format!("cannot be stored ({e})")))?;
        write_atomic(&csv, table.as_bytes())
    }

    /// The files of [`Comparison::write`].
    pub fn files(dir: &Path) -> [PathBuf; 2] {
        ["comparison.json", "comparison.csv"].map(|name| dir.join(name))
    }

    /// A table for other programs, as RFC 4180 has it: a line of `kind` "run" for each row, then one of kind
    /// "mean" for each of the means, whose columns `…_std` hold the deviations. Fractions; empty where
    /// something is not known.
    pub fn to_csv(&self) -> std::result::Result<String, csv::Error> {
        let mut table = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
        for row in &self.rows {
            table.serialize(Line::run(row, &self.split))?;
        }
        for row in &self.means {
            table.serialize(Line::mean(row, &self.split))?;
        }
        let bytes = table.into_inner().map_err(|e| csv::Error::from(e.into_error()))?;
        String::from_utf8(bytes).map_err(|e| csv::Error::from(std::io::Error::other(e)))
    }
}

/// A line of comparison.csv.
#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    name: &'a str,
    recipe: &'a str,
    /// Joined by blanks.
    seeds: String,
    split: &'a str,
    val_top1: Option<f64>,
    test_top1: f64,
    test_top5: f64,
    text_top1: Option<f64>,
    macro_f1: Option<f64>,
    ece: Option<f64>,
    val_top1_std: Option<f64>,
    test_top1_std: Option<f64>,
    test_top5_std: Option<f64>,
    text_top1_std: Option<f64>,
    macro_f1_std: Option<f64>,
    ece_std: Option<f64>,
    trained_parameters: usize,
    epochs: f64,
    best_epoch: f64,
    seconds: f64,
    images_per_s: Option<f64>,
    published_test_low: Option<f64>,
    published_test_high: Option<f64>,
    published_val: Option<f64>,
}

impl<'a> Line<'a> {
    fn run(row: &'a ComparisonRow, split: &'a str) -> Self {
        let published = row.published.as_ref();
        Line {
            kind: "run",
            name: &row.name,
            recipe: &row.recipe,
            seeds: row.seed.map(|seed| seed.to_string()).unwrap_or_default(),
            split,
            val_top1: row.val_top1,
            test_top1: row.test_top1,
            test_top5: row.test_top5,
            text_top1: row.text_top1,
            macro_f1: row.macro_f1,
            ece: row.ece,
            val_top1_std: None,
            test_top1_std: None,
            test_top5_std: None,
            text_top1_std: None,
            macro_f1_std: None,
            ece_std: None,
            trained_parameters: row.trained_parameters,
            epochs: f64::from(row.epochs),
            best_epoch: f64::from(row.best_epoch),
            seconds: row.seconds,
            images_per_s: (row.recipe != ZERO_SHOT).then_some(row.images_per_s),
            published_test_low: published.map(|p| p.test_top1[0]),
            published_test_high: published.map(|p| p.test_top1[1]),
            published_val: published.and_then(|p| p.val_top1),
        }
    }

    fn mean(row: &'a MeanRow, split: &'a str) -> Self {
        let (mean, std, published) = (&row.mean, row.std.as_ref(), row.published.as_ref());
        let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
        Line {
            kind: "mean",
            name: &row.name,
            recipe: &row.recipe,
            seeds: seeds.join(" "),
            split,
            val_top1: Some(mean.val_top1),
            test_top1: mean.test_top1,
            test_top5: mean.test_top5,
            text_top1: Some(mean.text_top1),
            macro_f1: Some(mean.macro_f1),
            ece: finite(mean.ece),
            val_top1_std: std.map(|s| s.val_top1),
            test_top1_std: std.map(|s| s.test_top1),
            test_top5_std: std.map(|s| s.test_top5),
            text_top1_std: std.map(|s| s.text_top1),
            macro_f1_std: std.map(|s| s.macro_f1),
            ece_std: std.and_then(|s| finite(s.ece)),
            trained_parameters: row.trained_parameters,
            epochs: row.epochs,
            best_epoch: row.best_epoch,
            seconds: row.seconds,
            images_per_s: None,
            published_test_low: published.map(|p| p.test_top1[0]),
            published_test_high: published.map(|p| p.test_top1[1]),
            published_val: published.and_then(|p| p.val_top1),
        }
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Reads finished runs. Each is called as its folder; where two of these are the same, the folders around
/// them come before.
///
/// # Errors
/// What is no finished run, and a run that is named twice.
pub fn load_runs(paths: &[PathBuf]) -> Result<Vec<RunData>> {
    let mut runs = Vec::with_capacity(paths.len());
    let mut places: Vec<PathBuf> = Vec::with_capacity(paths.len());
    for path in paths {
        runs.push(RunData::load(&RunDir::existing(path)?)?);
        let place = std::fs::canonicalize(path).map_err(TrainError::io(path, "open the folder"))?;
        if places.contains(&place) {
            let text = format!("{}: this run is named twice; name each once", path.display());
            return Err(TrainError::Setting(text));
        }
        places.push(place);
    }
    for (run, name) in runs.iter_mut().zip(names(&places)) {
        run.name = name;
    }
    Ok(runs)
}

/// The shortest ends of distinct absolute paths that tell them apart.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let end = |path: &Path, depth: usize| {
        let parts: Vec<_> =
            path.components().rev().take(depth).map(|c| c.as_os_str().to_string_lossy()).collect();
        parts.iter().rev().map(AsRef::as_ref).collect::<Vec<&str>>().join("/")
    };
    let mut depths = vec![1; paths.len()];
    loop {
        let names: Vec<String> = paths.iter().zip(&depths).map(|(path, &depth)| end(path, depth)).collect();
        let mut counts = HashMap::new();
        names.iter().for_each(|name| *counts.entry(name).or_insert(0) += 1);
        let mut grown = false;
        for ((name, path), depth) in names.iter().zip(paths).zip(&mut depths) {
            if counts[name] > 1 && *depth < path.components().count() {
                *depth += 1;
                grown = true;
            }
        }
        if !grown {
            return names;
        }
    }
}

/// Refuses two runs whose results are on different images.
fn check_comparable(first: &RunData, run: &RunData) -> Result<()> {
    let (a, b) = (&first.evaluation, &run.evaluation);
    let images = |e: &Evaluation| -> Vec<(String, u32)> {
        e.images.iter().map(|image| (image.path.clone(), image.label)).collect()
    };
    let (s, t) = (&first.settings, &run.settings);
    let difference = if a.class_names != b.class_names {
        format!("have different classes ({})", different_classes(&a.class_names, &b.class_names))
    } else if a.split != b.split {
        format!("were tested on different splits ({} and {})", a.split, b.split)
    } else if images(a) != images(b) {
        format!("were tested on different images ({} and {} of them)", a.images.len(), b.images.len())
    } else if s.demo && t.demo && s.image_seed() != t.image_seed() {
        format!("were tested on different flowers (--data-seed {} and {})", s.image_seed(), t.image_seed())
    } else {
        return Ok(());
    };
    Err(TrainError::Incomparable { first: first.name.clone(), second: run.name.clone(), difference })
}

/// What one class list has and the other has not, in a few words.
fn different_classes(a: &[String], b: &[String]) -> String {
    let only = |in_: &[String], not_in: &[String]| in_.iter().find(|name| !not_in.contains(name)).cloned();
    match (only(a, b), only(b, a)) {
        (Some(name), _) => format!("{} and {}, the second without {name:?}", a.len(), b.len()),
        (None, Some(name)) => format!("{} and {}, the first without {name:?}", a.len(), b.len()),
        (None, None) => "the same in another order".into(),
    }
}

/// A warning where two runs start from different models.
fn different_model(first: &RunData, run: &RunData) -> Option<String> {
    let (a, b) = (&first.settings, &run.settings);
    let difference = if a.model != b.model || a.demo != b.demo || first.summary.vision != run.summary.vision {
        "start from different models"
    } else if a.templates != b.templates {
        "have different text prompts"
    } else {
        return None;
    };
    Some(format!("{} and {} {difference}; the row {ZERO_SHOT} is of {}", first.name, run.name, first.name))
}

/// Plain CLIP as `run` found it.
fn plain_row(run: &RunData) -> ComparisonRow {
    let plain = &run.summary.zero_shot;
    let published = is_published_data(run).then_some(Published { test_top1: [0.665; 2], val_top1: None });
    ComparisonRow {
        name: ZERO_SHOT.into(),
        recipe: ZERO_SHOT.into(),
        seed: None,
        val_top1: None,
        test_top1: plain.top1,
        test_top5: plain.top5,
        text_top1: Some(plain.top1),
        macro_f1: Some(macro_f1(&run.evaluation.zero_shot)),
        ece: None,
        trained_parameters: 0,
        epochs: 0,
        best_epoch: 0,
        seconds: 0.0,
        images_per_s: 0.0,
        published,
    }
}

fn row(run: &RunData) -> ComparisonRow {
    let (summary, scores) = (&run.summary, Scores::of(&run.summary));
    ComparisonRow {
        name: run.name.clone(),
        recipe: summary.recipe.to_string(),
        seed: Some(run.settings.seed),
        val_top1: Some(scores.val_top1),
        test_top1: scores.test_top1,
        test_top5: scores.test_top5,
        text_top1: Some(scores.text_top1),
        macro_f1: Some(scores.macro_f1),
        ece: finite(scores.ece),
        trained_parameters: summary.trained_parameters,
        epochs: summary.epochs,
        best_epoch: summary.best_epoch,
        seconds: summary.seconds,
        images_per_s: summary.images_per_s,
        published: published(run),
    }
}

/// The means of all techniques where one of them has several seeds, otherwise nothing.
fn means(runs: &[RunData]) -> Vec<MeanRow> {
    let mut groups: Vec<Vec<&RunData>> = Vec::new();
    for run in runs {
        let technique = without_seed(&run.settings);
        let joins = |group: &&mut Vec<&RunData>| {
            group.iter().all(|other| {
                without_seed(&other.settings) == technique && other.settings.seed != run.settings.seed
            })
        };
        match groups.iter_mut().find(joins) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    if groups.iter().all(|group| group.len() < 2) {
        return Vec::new();
    }
    let names = group_names(&groups);
    groups.iter().zip(names).filter_map(|(group, name)| mean_row(group, name)).collect()
}

/// What runs have in common that differ in their seed alone. That they see the same test images is known.
fn without_seed(settings: &Settings) -> Settings {
    Settings { seed: 0, data_seed: None, cache: None, device: String::new(), ..settings.clone() }
}

/// A group is called as the folder around its runs, or else by its recipe, or else by its first run.
fn group_names(groups: &[Vec<&RunData>]) -> Vec<String> {
    let folder = |group: &[&RunData]| {
        let mut folders = group.iter().map(|run| run.name.rsplit_once('/').map(|(folder, _)| folder));
        let first = folders.next().flatten()?;
        folders.all(|folder| folder == Some(first)).then(|| first.to_owned())
    };
    let candidates: [Vec<String>; 2] = [
        groups.iter().map(|group| folder(group).unwrap_or_else(|| recipe_of(group))).collect(),
        groups.iter().map(|group| recipe_of(group)).collect(),
    ];
    let distinct = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    let by_run = || groups.iter().filter_map(|group| group.first()).map(|run| run.name.clone()).collect();
    candidates.into_iter().find(distinct).unwrap_or_else(by_run)
}

fn recipe_of(group: &[&RunData]) -> String {
    group.first().map(|run| run.summary.recipe.to_string()).unwrap_or_default()
}

fn mean_row(group: &[&RunData], name: String) -> Option<MeanRow> {
    let first = group.first()?;
    let scores: Vec<Scores> = group.iter().map(|run| Scores::of(&run.summary)).collect();
    let (mean, std) = mean_and_std(&scores)?;
    let average =
        |value: fn(&RunData) -> f64| group.iter().map(|run| value(run)).sum::<f64>() / group.len() as f64;
    Some(MeanRow {
        name,
        recipe: first.summary.recipe.to_string(),
        seeds: group.iter().map(|run| run.settings.seed).collect(),
        runs: group.iter().map(|run| run.name.clone()).collect(),
        mean,
        std,
        trained_parameters: first.summary.trained_parameters,
        epochs: average(|run| f64::from(run.summary.epochs)),
        best_epoch: average(|run| f64::from(run.summary.best_epoch)),
        seconds: average(|run| run.summary.seconds),
        published: published(first),
    })
}

/// What the recipe reached elsewhere, where this run is the recipe on that data.
fn published(run: &RunData) -> Option<Published> {
    if !is_published_data(run) || !is_the_recipe(&run.settings) {
        return None;
    }
    let (test_top1, val_top1) = match run.settings.recipe {
        Recipe::Linear => ([0.881, 0.881], None),
        Recipe::Lora => ([0.912, 0.9205], Some(0.9176)),
        Recipe::Mixup => ([0.9109, 0.9109], Some(0.9088)),
        Recipe::Triplet => ([0.9093, 0.9093], Some(0.9098)),
        Recipe::Vpt => ([0.8798, 0.9086], Some(0.9363)),
    };
    Some(Published { test_top1, val_top1 })
}

/// Whether a run is tested on Flowers-102 with CLIP ViT-B/32, where results are published.
fn is_published_data(run: &RunData) -> bool {
    let base = VisionSizes::from(&ClipConfig::vit_b_32().vision);
    let evaluation = &run.evaluation;
    // Folders may be called by the names too, in their own order and with underscores.
    let names: BTreeSet<String> = evaluation.class_names.iter().map(|name| name.replace('_', " ")).collect();
    evaluation.split == "test"
        && run.summary.vision == Some(base)
        && names.len() == flowers102::CLASS_NAMES.len()
        && flowers102::CLASS_NAMES.iter().all(|name| names.contains(*name))
}

/// Whether the technique is still the one that the recipe names, whatever its rates and sizes.
fn is_the_recipe(settings: &Settings) -> bool {
    let recipe = Settings::of(settings.recipe);
    settings.method == recipe.method
        && settings.with_lora == recipe.with_lora
        && settings.mixup == recipe.mixup
        && (settings.mixup_on == recipe.mixup_on || !settings.has_mixup())
        && settings.triplet == recipe.triplet
        && settings.shots.is_none()
        && settings.augment == Augment::Off
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A finished run on Flowers-102 with ViT-B/32.
    fn run(name: &str, recipe: Recipe, seed: u64, top1: f64) -> RunData {
        let metrics = json!({
            "images": 102, "loss": 1.0, "loss_head": 1.0, "loss_text": 1.0, "top1": top1, "top5": 1.0,
            "text_top1": 0.6, "text_top5": 0.9, "macro_f1": 0.8, "ece": 0.05,
        });
        let summary = json!({
            "recipe": recipe, "classes": 102, "trained_parameters": 1000, "epochs": 4, "best_epoch": 3,
            "stopped_early": false, "val": metrics, "test": metrics, "seconds": 2.0, "images_per_s": 10.0,
            "zero_shot": { "split": "test", "images": 102, "loss": 1.0, "top1": 0.6, "top5": 0.9 },
            "device": "CPU",
            "vision": { "layers": 12, "width": 768, "patch_size": 32, "image_size": 224 },
        });
        let images = (0..102).map(|i| {
            json!({ "path": format!("{i}.jpg"), "label": i, "predicted": i, "confidence": 0.5, "text_predicted": i })
        });
        let class = json!({
            "images": 1, "predicted": 1, "right": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0,
        });
        let evaluation = json!({
            "split": "test", "class_names": flowers102::CLASS_NAMES.to_vec(), "metrics": metrics,
            "classes": [], "zero_shot": [class], "confusion": [], "calibration": [],
            "images": images.collect::<Vec<Value>>(),
        });
        RunData {
            name: name.into(),
            settings: Settings { seed, ..Settings::of(recipe) },
            summary: serde_json::from_value(summary).unwrap(),
            steps: Vec::new(),
            epochs: Vec::new(),
            evaluation: serde_json::from_value(evaluation).unwrap(),
        }
    }

    fn published_of(run: &RunData) -> [Option<Published>; 2] {
        let comparison = Comparison::of(std::slice::from_ref(run)).unwrap();
        [0, 1].map(|i| comparison.rows[i].published.clone())
    }

    #[test]
    fn published_results_stand_beside_the_same_technique_on_the_same_data() {
        let lora = run("lora", Recipe::Lora, 1, 0.9);
        let [plain, own] = published_of(&lora);
        assert_eq!(plain, Some(Published { test_top1: [0.665, 0.665], val_top1: None }));
        assert_eq!(own, Some(Published { test_top1: [0.912, 0.9205], val_top1: Some(0.9176) }));
        for recipe in Recipe::ALL {
            assert!(published_of(&run("run", recipe, 1, 0.9))[1].is_some(), "{recipe}");
        }
        // Folders in their own order, with underscores.
        let mut folders = lora.clone();
        folders.evaluation.class_names.sort_unstable();
        folders.evaluation.class_names.iter_mut().for_each(|name| *name = name.replace(' ', "_"));
        assert!(published_of(&folders).iter().all(Option::is_some));
        // Rates are no technique.
        let mut faster = lora.clone();
        (faster.settings.lr_lora, faster.settings.rank) = (1e-3, 16);
        assert_eq!(published_of(&faster)[1], own);
        for change in [
            |settings: &mut Settings| settings.mixup = 0.2,
            |settings: &mut Settings| settings.triplet = 0.3,
            |settings: &mut Settings| settings.method = crate::train::settings::Method::Linear,
            |settings: &mut Settings| settings.shots = Some(4),
            |settings: &mut Settings| settings.augment = Augment::CropFlip,
        ] {
            let mut other = lora.clone();
            change(&mut other.settings);
            assert_eq!(published_of(&other), [plain.clone(), None]);
        }
        let mut larger = lora.clone();
        larger.summary.vision = larger.summary.vision.map(|v| VisionSizes { patch_size: 16, ..v });
        let mut unknown = lora.clone();
        unknown.evaluation.class_names[3] = "daisy".into();
        let mut on_val = lora.clone();
        on_val.evaluation.split = "val".into();
        for other in [larger, unknown, on_val] {
            assert_eq!(published_of(&other), [None, None]);
        }
    }

    #[test]
    fn runs_with_several_seeds_become_one_technique() {
        let mut other_rank = run("other", Recipe::Lora, 1, 0.5);
        other_rank.settings.rank = 4;
        let runs = [
            run("lora/seed-1", Recipe::Lora, 1, 0.8),
            run("vpt", Recipe::Vpt, 1, 0.7),
            run("lora/seed-2", Recipe::Lora, 2, 0.9),
            run("lora/again", Recipe::Lora, 2, 0.1),
            other_rank,
        ];
        let comparison = Comparison::of(&runs).unwrap();
        let means = &comparison.means;
        assert_eq!(means[0].runs, ["lora/seed-1", "lora/seed-2"]);
        assert_eq!(means[0].seeds, [1, 2]);
        assert!((means[0].mean.test_top1 - 0.85).abs() < 1e-12);
        assert!((means[0].std.unwrap().test_top1 - 0.005f64.sqrt()).abs() < 1e-12);
        assert_eq!(means.iter().map(|row| row.runs.len()).collect::<Vec<_>>(), [2, 1, 1, 1]);
        assert!(means[1..].iter().all(|row| row.std.is_none()));
        let names: BTreeSet<&String> = means.iter().map(|row| &row.name).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        // Without two seeds of anything there are no means.
        assert!(Comparison::of(&runs[..2]).unwrap().means.is_empty());
    }

    #[test]
    fn different_models_are_said_and_different_flowers_refused() {
        let first = run("first", Recipe::Lora, 1, 0.8);
        let mut second = run("second", Recipe::Vpt, 1, 0.7);
        assert!(Comparison::of(&[first.clone(), second.clone()]).unwrap().warnings.is_empty());
        second.settings.model = Some("elsewhere".into());
        let warnings = Comparison::of(&[first.clone(), second.clone()]).unwrap().warnings;
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("first and second start from different models"), "{}", warnings[0]);
        let mut demo = [first, second];
        demo.iter_mut().for_each(|run| run.settings.demo = true);
        assert!(Comparison::of(&demo).is_ok());
        demo[1].settings.data_seed = Some(2);
        let error = Comparison::of(&demo).unwrap_err().to_string();
        assert!(error.contains("first and second") && error.contains("--data-seed 1 and 2"), "{error}");
        demo[1].evaluation.class_names.swap(0, 1);
        let error = Comparison::of(&demo).unwrap_err().to_string();
        assert!(error.contains("the same in another order"), "{error}");
        assert!(Comparison::of(&[]).is_err());
    }

    #[test]
    fn names_with_commas_quotes_and_lines_survive_csv() {
        let name = "r=8, \"wide\"\nsecond";
        let comparison = Comparison::of(&[run(name, Recipe::Lora, 1, 0.75)]).unwrap();
        let text = comparison.to_csv().unwrap();
        assert!(text.contains("\"r=8, \"\"wide\"\"\nsecond\"") && text.ends_with("\r\n"), "{text}");
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let column =
            |name: &str, headers: &csv::StringRecord| headers.iter().position(|h| h == name).unwrap();
        let headers = reader.headers().unwrap().clone();
        let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(&records[1][column("name", &headers)], name);
        assert_eq!(&records[1][column("test_top1", &headers)], "0.75");
        assert_eq!(&records[0][column("val_top1", &headers)], "");
    }

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let of = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["/runs/lora", "/runs/vpt"]), ["lora", "vpt"]);
        assert_eq!(
            of(&["/a/lora/seed-1", "/a/vpt/seed-1", "/a/vpt/seed-2"]),
            ["lora/seed-1", "vpt/seed-1", "seed-2"]
        );
        assert_eq!(of(&["/x/b/run", "/y/b/run"]), ["x/b/run", "y/b/run"]);
        let deep = of(&["/run", "/a/run"]);
        assert!(deep[0] != deep[1] && deep[1] == "a/run", "{deep:?}");
    }
}
