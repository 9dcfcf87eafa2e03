//! What the page of a comparison shows.

use super::thumbnails::{Album, Picture, common_folder};
use crate::data::SplitView;
use crate::report::compare::{ComparisonRow, MeanRow};
use crate::report::origin::Origin;
use crate::report::plots::ComparisonCharts;
use crate::report::{Comparison, RunData};
use crate::stats::interval::wilson_of;
use crate::train::Result;
use serde::Serialize;
use std::path::Path;

/// Thumbnails of the images that every run gets wrong.
const MISTAKES: usize = 24;

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename = "comparison")]
pub(crate) struct ComparisonPage<'a> {
    origin: Origin,
    split: &'a str,
    classes: usize,
    rows: Vec<Row<'a>>,
    means: &'a [MeanRow],
    charts: ComparisonCharts,
    class_names: &'a [String],
    recalls: Vec<Recalls<'a>>,
    /// Places in `images`, and how many images all runs get wrong.
    mistakes: Vec<usize>,
    /// Classes that the runs take each of these mistakes for: one row a mistake, one column a run.
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
    /// 95 % confidence intervals of the accuracies on the split of the result and on the validation split.
    test_interval: Option<(f64, f64)>,
    val_interval: Option<(f64, f64)>,
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
        let rows = comparison.rows.iter().map(|row| {
            let has_page = |run: &RunData| folder.join(&run.name).join("report.html").is_file();
            row_of(row, runs, has_page)
        });
        let mut page = ComparisonPage {
            origin: Origin::of(&runs.iter().collect::<Vec<_>>()),
            split: &comparison.split,
            classes: comparison.classes,
            rows: rows.collect(),
            means: &comparison.means,
            charts: ComparisonCharts::of(comparison, runs)?,
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

fn row_of<'a>(row: &'a ComparisonRow, runs: &[RunData], has_page: impl Fn(&RunData) -> bool) -> Row<'a> {
    let own = runs.iter().find(|run| run.name == row.name);
    // All runs are tested on the same images, and those of validation may differ.
    let tested = own.or(runs.first()).map(|run| run.evaluation.images.len());
    let validated = match own {
        Some(run) => Some(run.summary.val.images),
        None => runs.first().and_then(|run| run.plain_on_val()).map(|plain| plain.images),
    };
    Row {
        row,
        page: own.is_some_and(has_page),
        test_interval: tested.map(|images| wilson_of(row.test_top1, images)),
        val_interval: row.val_top1.zip(validated).map(|(top1, images)| wilson_of(top1, images)),
    }
}

/// Plain CLIP first, under the name that it has in the table, then the runs.
fn recalls<'a>(comparison: &'a Comparison, runs: &'a [RunData]) -> Vec<Recalls<'a>> {
    let plain = comparison.plain().zip(runs.first()).map(|(row, run)| Recalls {
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
