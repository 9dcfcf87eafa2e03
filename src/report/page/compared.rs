//! What the page of a comparison shows.

use super::thumbnails::{Album, Picture, common_folder};
use crate::data::SplitView;
use crate::report::compare::{ComparisonRow, MeanRow};
use crate::report::{Comparison, RunData};
use crate::train::Result;
use serde::Serialize;
use std::path::Path;

/// Thumbnails of the images that every run gets wrong.
const MISTAKES: usize = 24;

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename = "comparison")]
pub struct ComparisonPage<'a> {
    split: &'a str,
    rows: Vec<Row<'a>>,
    means: &'a [MeanRow],
    curves: Vec<Curve<'a>>,
    class_names: &'a [String],
    recalls: Vec<Recalls<'a>>,
    /// Places in `images`, and how many images all runs get wrong.
    mistakes: Vec<usize>,
    /// What each run takes each of these for.
    choices: Vec<Vec<u32>>,
    mistakes_in_all: usize,
    root: &'a str,
    images: Vec<Picture>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    row: &'a ComparisonRow,
    /// Whether the run's own page is beside this one.
    page: bool,
}

/// A run's accuracy on the validation split after each epoch.
#[derive(Debug, Serialize)]
struct Curve<'a> {
    name: &'a str,
    epochs: Vec<u32>,
    top1: Vec<f64>,
}

/// The recall of each class, in label order.
#[derive(Debug, Serialize)]
struct Recalls<'a> {
    name: &'a str,
    recalls: Vec<Option<f64>>,
}

impl<'a> ComparisonPage<'a> {
    pub fn new(
        comparison: &'a Comparison,
        runs: &'a [RunData],
        images: Option<&SplitView<'_>>,
        path: &Path,
    ) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let rows = comparison.rows.iter().map(|row| Row {
            row,
            page: runs.iter().any(|run| run.name == row.name)
                && folder.join(&row.name).join("report.html").is_file(),
        });
        let mut page = ComparisonPage {
            split: &comparison.split,
            rows: rows.collect(),
            means: &comparison.means,
            curves: runs.iter().map(curve).collect(),
            class_names: &[],
            recalls: recalls(comparison, runs),
            mistakes: Vec::new(),
            choices: Vec::new(),
            mistakes_in_all: 0,
            root: "",
            images: Vec::new(),
        };
        if let Some(first) = runs.first() {
            let mut album = Album::default();
            let mut mistakes = common_mistakes(runs);
            page.class_names = &first.evaluation.class_names;
            page.mistakes_in_all = mistakes.len();
            mistakes.truncate(MISTAKES);
            let choices =
                |&index: &usize| runs.iter().map(|run| run.evaluation.images[index].predicted).collect();
            page.choices = mistakes.iter().map(choices).collect();
            page.mistakes = mistakes.into_iter().map(|index| album.place(index)).collect();
            page.root = common_folder(&first.evaluation.images);
            page.images = album.pictures(&first.evaluation, page.root, images)?;
        }
        Ok(page)
    }
}

fn curve(run: &RunData) -> Curve<'_> {
    Curve {
        name: &run.name,
        epochs: run.epochs.iter().map(|record| record.epoch).collect(),
        top1: run.epochs.iter().map(|record| record.val.top1).collect(),
    }
}

/// Plain CLIP first, under the name that it has in the table, then the runs.
fn recalls<'a>(comparison: &'a Comparison, runs: &'a [RunData]) -> Vec<Recalls<'a>> {
    let plain = comparison.rows.iter().find(|row| runs.iter().all(|run| run.name != row.name));
    let plain = plain.zip(runs.first()).map(|(row, run)| Recalls {
        name: &row.name,
        recalls: run.evaluation.zero_shot.iter().map(|class| class.recall).collect(),
    });
    let tuned = runs.iter().map(|run| Recalls {
        name: &run.name,
        recalls: run.evaluation.classes.iter().map(|class| class.recall).collect(),
    });
    plain.into_iter().chain(tuned).collect()
}

/// Indices of the images that no run gets right, those first of which the runs together are the surest.
fn common_mistakes(runs: &[RunData]) -> Vec<usize> {
    let images = runs.first().map_or(0, |run| run.evaluation.images.len());
    let results = |index: usize| runs.iter().map(move |run| &run.evaluation.images[index]);
    let confidence = |index: usize| results(index).map(|image| f64::from(image.confidence)).sum::<f64>();
    let mut wrong: Vec<usize> =
        (0..images).filter(|&index| results(index).all(|image| image.label != image.predicted)).collect();
    wrong.sort_by(|&a, &b| confidence(b).total_cmp(&confidence(a)));
    wrong
}
