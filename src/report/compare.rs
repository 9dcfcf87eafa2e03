//! Runs beside each other, and beside plain CLIP.
//!
//! Results are compared only where they are results on the same images: the same classes, split and photos.
//! Runs of different models are compared with a warning.

use super::RunData;
pub use super::published::Published;
use super::published::{published, published_plain};
use super::seeds::{Scores, mean_and_std};
use crate::files::write_atomic;
use crate::settings::Settings;
use crate::train::metrics::{Evaluation, macro_f1, number};
use crate::train::run_dir::RunDir;
use crate::train::{Result, TrainError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The name of plain CLIP, in rows and pictures.
pub(crate) const PLAIN: &str = "plain CLIP";

/// The name of the row of [`crate::train::records::Baseline`].
pub(crate) const BASELINE: &str = "logistic regression";

/// Techniques on the same data; the content of comparison.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Split that `test_top1` was measured on: "test", or "val" where there is no test split.
    pub split: String,
    /// Number of classes C.
    pub classes: usize,
    /// Images of the split; 0 in a file from before it was recorded.
    #[serde(default)]
    pub images: usize,
    /// Plain CLIP first, then the baseline where it is known, then the runs in the order in which they were named.
    pub rows: Vec<ComparisonRow>,
    /// A row for every technique, where one was trained with several seeds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub means: Vec<MeanRow>,
    /// Reasons to read the comparison with care, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One technique.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonRow {
    /// The run's name; "plain CLIP" for plain CLIP, "logistic regression" for the baseline.
    pub name: String,
    /// The recipe's name; of plain CLIP and the baseline their own.
    pub recipe: String,
    /// None for plain CLIP and the baseline, and in files from before it was recorded.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Top-1 accuracy on the validation split, as all scores a fraction. None for the baseline, and for plain CLIP
    /// where it was not tested on that split.
    pub val_top1: Option<f64>,
    /// Top-1 accuracy of the head; for plain CLIP that of the text logits.
    pub test_top1: f64,
    /// Fraction of images whose class is among the first five, of the same logits. Not a number, null in JSON, for the
    /// baseline.
    #[serde(deserialize_with = "number")]
    pub test_top5: f64,
    /// Top-1 accuracy of the text logits, none for the baseline; this and the two below on the split of `test_top1`
    /// too.
    pub text_top1: Option<f64>,
    /// See [`crate::train::metrics::EvalMetrics::macro_f1`]; for plain CLIP that of the text logits.
    pub macro_f1: Option<f64>,
    /// Expected calibration error; none for plain CLIP, and where an image has no confidence.
    pub ece: Option<f64>,
    /// Elements of all trained tensors; 0 for plain CLIP and, as all below but `seconds`, for the baseline.
    pub trained_parameters: usize,
    /// Epochs that ran; 0 for plain CLIP.
    pub epochs: u32,
    /// The epoch that was kept, counted from 1; 0 for plain CLIP.
    pub best_epoch: u32,
    /// Seconds of training and validation; 0 for plain CLIP.
    pub seconds: f64,
    /// Images per second of the training steps alone; 0 for plain CLIP.
    pub images_per_s: f64,
    /// Results that others report for the same technique on the same data, where they are known.
    pub published: Option<Published>,
}

/// The runs of one technique that differ in their seed alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeanRow {
    /// The folder around the runs or else their recipe; the first run's name where these would not tell the
    /// rows apart.
    pub name: String,
    /// The recipe's name.
    pub recipe: String,
    /// In the order in which the runs were named.
    pub seeds: Vec<u64>,
    /// Names of the runs, in the order of `seeds`.
    pub runs: Vec<String>,
    /// Mean of each score over all runs.
    pub mean: Scores,
    /// Sample standard deviation of each score; none of a single run.
    pub std: Option<Scores>,
    /// Elements of all trained tensors, the same in every run.
    pub trained_parameters: usize,
    /// Mean of the epochs that ran.
    pub epochs: f64,
    /// Mean of the epochs that were kept.
    pub best_epoch: f64,
    /// Mean time of training and validation.
    pub seconds: f64,
    /// See [`ComparisonRow::published`].
    pub published: Option<Published>,
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
        rows.extend(runs.iter().find_map(baseline_row));
        rows.extend(runs.iter().map(row));
        Ok(Comparison {
            split: first.evaluation.split.clone(),
            classes: first.evaluation.class_names.len(),
            images: first.evaluation.images.len(),
            rows,
            means: means(runs),
            warnings: runs.iter().filter_map(|run| different_model(first, run)).collect(),
        })
    }

    pub(crate) fn plain(&self) -> Option<&ComparisonRow> {
        self.rows.iter().find(|row| row.seed.is_none() && row.name == PLAIN)
    }

    /// The mean that the run of this name is in.
    pub(crate) fn mean_of(&self, run: &str) -> Option<&MeanRow> {
        self.means.iter().find(|row| row.runs.iter().any(|name| name == run))
    }

    /// Writes comparison.json and comparison.csv into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "create the folder"))?;
        let [json, csv] = ["comparison.json", "comparison.csv"].map(|name| dir.join(name));
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| TrainError::file(&json, format!("cannot be stored ({e})")))?;
        write_atomic(&json, (text + "\n").as_bytes())?;
        let table = self.to_csv().map_err(|e| TrainError::file(&csv, format!("cannot be stored ({e})")))?;
        Ok(write_atomic(&csv, table.as_bytes())?)
    }
}

pub(super) fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Reads finished runs. Each is called as its folder; where two of these are the same, the folders around
/// them come before.
///
/// # Errors
/// A folder without a finished run, and a run that is named twice.
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

/// Names a class that one list has and the other has not, in a few words.
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
    } else if let (Some(a), Some(b)) = (&first.summary.photos, &run.summary.photos)
        && a != b
    {
        "were trained on different photos"
    } else {
        return None;
    };
    Some(format!("{} and {} {difference}; the row {PLAIN} is of {}", first.name, run.name, first.name))
}

/// Plain CLIP as `run` found it.
fn plain_row(run: &RunData) -> ComparisonRow {
    let plain = &run.summary.zero_shot;
    ComparisonRow {
        name: PLAIN.into(),
        recipe: PLAIN.into(),
        seed: None,
        val_top1: run.plain_on_val().map(|plain| plain.top1),
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
        published: published_plain(run),
    }
}

/// The baseline as `run` found it.
fn baseline_row(run: &RunData) -> Option<ComparisonRow> {
    let baseline = run.summary.baseline.as_ref().filter(|baseline| baseline.split == run.evaluation.split)?;
    Some(ComparisonRow {
        name: BASELINE.into(),
        recipe: BASELINE.into(),
        seed: None,
        val_top1: None,
        test_top1: baseline.top1,
        test_top5: f64::NAN,
        text_top1: None,
        macro_f1: finite(baseline.macro_f1),
        ece: finite(baseline.ece),
        trained_parameters: 0,
        epochs: 0,
        best_epoch: 0,
        seconds: baseline.seconds,
        images_per_s: 0.0,
        published: None,
    })
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

/// Returns the settings without the seed and without what may differ beside it: equal ones are of the same technique.
/// That runs see the same test images is known.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::test_run::run;
    use crate::settings::Recipe;

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
    fn a_ladder_changes_nothing_in_a_comparison() {
        let runs = [run("first", Recipe::Lora, 1, 0.8), run("second", Recipe::Vpt, 1, 0.7)];
        let mut climbed = runs.clone();
        let ladder = serde_json::json!({
            "rungs": [{
                "kind": "plain-clip", "chosen": "", "seconds": 1.0,
                "val": { "images": 10, "top1": 0.5, "nll": null }, "test": null,
            }],
            "kept": 0, "reason": "Nothing else was tried.",
        });
        climbed[0].summary.ladder = Some(serde_json::from_value(ladder).unwrap());
        assert_eq!(Comparison::of(&climbed).unwrap(), Comparison::of(&runs).unwrap());
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
