//! report.html: a run, or several beside each other, as one page that needs nothing but a browser.
//!
//! The page is a template with its style, its script and its data inside. The data is JSON in a script element that
//! the browser does not run: numbers, of which the script makes tables, and the charts, which [`plots`](super::plots)
//! has drawn as SVG. All else goes into the document as text, never as markup, so that a class may be called anything.

mod compared;
mod run;
mod thumbnails;

use super::{Comparison, RunData};
use crate::data::SplitView;
use crate::files::write_atomic;
use crate::train::{Result, TrainError};
use serde::Serialize;
use std::path::Path;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// In the order in which they build on each other.
const SCRIPTS: [&str; 6] = [
    include_str!("dom.js"),
    include_str!("chart.js"),
    include_str!("table.js"),
    include_str!("matrix.js"),
    include_str!("compared.js"),
    include_str!("page.js"),
];

/// Writes the page of one run.
///
/// `images` is the split that the run's evaluation is of; without it the page names its images and does not
/// show them.
///
/// # Errors
/// `images` that are not those of the evaluation, or cannot be read; a `path` that cannot be written.
pub fn write_run_page(run: &RunData, images: Option<&SplitView<'_>>, path: &Path) -> Result<()> {
    if let Some(images) = images {
        thumbnails::check_images(&run.evaluation, images, path)?;
    }
    write_page(&run::RunPage::new(run, images)?, path)
}

/// Writes the page of a comparison. It links to the report.html of each of the `runs` that has one in the
/// folder of the run's name beside `path`.
///
/// # Errors
/// As [`write_run_page`]; runs of different classes or splits.
pub fn write_comparison_page(
    comparison: &Comparison,
    runs: &[RunData],
    images: Option<&SplitView<'_>>,
    path: &Path,
) -> Result<()> {
    for run in runs {
        check_same_images(&runs[0], run, path)?;
        if let Some(images) = images {
            thumbnails::check_images(&run.evaluation, images, path)?;
        }
    }
    write_page(&compared::ComparisonPage::new(comparison, runs, images, path)?, path)
}

fn check_same_images(first: &RunData, run: &RunData, path: &Path) -> Result<()> {
    let (a, b) = (&first.evaluation, &run.evaluation);
    let same_paths = a.images.iter().map(|image| &image.path).eq(b.images.iter().map(|image| &image.path));
    let different = if a.class_names != b.class_names {
        "classes"
    } else if a.split != b.split || !same_paths {
        "images"
    } else {
        return Ok(());
    };
    let problem = format!(
        "{} and {} were evaluated on different {different}; compare runs on the same data",
        first.name, run.name
    );
    Err(TrainError::file(path, problem))
}

fn write_page(data: &impl Serialize, path: &Path) -> Result<()> {
    let json = serde_json::to_string(data)
        .map_err(|e| TrainError::file(path, format!("the page's data cannot be stored ({e})")))?;
    // In JSON a `<` is always inside a string, where this means the same. It ends no script element.
    let json = json.replace('<', "\\u003c");
    // The data comes last, so that nothing in it is taken for a place of the template.
    let page = TEMPLATE
        .replacen("{{style}}", STYLE, 1)
        .replacen("{{script}}", &SCRIPTS.concat(), 1)
        .replacen("{{data}}", &json, 1);
    Ok(write_atomic(path, page.as_bytes())?)
}
