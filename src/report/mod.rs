//! What is drawn and written about finished runs: pictures, pages, tables.

pub mod compare;
pub mod data;
mod origin;
pub mod page;
pub mod plots;
mod published;
pub mod seeds;
mod table;
#[cfg(test)]
mod test_run;

pub use compare::Comparison;
pub use data::RunData;

use crate::data::{Cache, Split, SplitView};
use crate::progress::Monitor;
use crate::train::Result;
use crate::train::run_dir::RunDir;
use std::path::Path;

/// Files that [`Comparison::write`] and [`write_comparison`] write into the folder of a comparison.
pub const COMPARISON_FILES: [&str; 9] = [
    "comparison.json",
    "comparison.csv",
    "report.html",
    "plots/techniques.png",
    "plots/techniques.svg",
    "plots/curves.png",
    "plots/curves.svg",
    "plots/classes.png",
    "plots/classes.svg",
];

/// Draws the finished run in `dir` and writes its page: plots/ and report.html. `cache` holds the images
/// that it was evaluated on; `monitor` hears of names that no font can write.
pub fn write_run(dir: &RunDir, cache: &Cache, monitor: &dyn Monitor) -> Result<RunData> {
    let run = RunData::load(dir)?;
    plots::run_plots(&run, dir.path(), monitor)?;
    page::write_run_page(&run, Some(&evaluated(&run, cache)?), &dir.report())?;
    Ok(run)
}

/// Draws a comparison of `runs` into `dir` and writes its page: plots/ and report.html. Without a `cache`
/// the page shows no images; `monitor` as for [`write_run`].
pub fn write_comparison(
    comparison: &Comparison,
    runs: &[RunData],
    cache: Option<&Cache>,
    dir: &Path,
    monitor: &dyn Monitor,
) -> Result<()> {
    plots::comparison_plots(comparison, runs, &dir.join("plots"), monitor)?;
    let images = match (cache, runs.first()) {
        (Some(cache), Some(run)) => Some(evaluated(run, cache)?),
        _ => None,
    };
    page::write_comparison_page(comparison, runs, images.as_ref(), &dir.join("report.html"))
}

/// Whether `cache` holds the images that `run` was evaluated on: the same paths with the same labels.
pub fn shows(run: &RunData, cache: &Cache) -> bool {
    let Ok(images) = evaluated(run, cache) else { return false };
    let path = |index| images.path(index).unwrap_or_default().display().to_string();
    let evaluated = &run.evaluation.images;
    evaluated.len() == images.len()
        && evaluated.iter().zip(images.labels()).all(|(image, &label)| image.label == label)
        && evaluated.iter().enumerate().all(|(index, image)| image.path == path(index))
}

/// The images that a run was evaluated on.
fn evaluated<'a>(run: &RunData, cache: &'a Cache) -> Result<SplitView<'a>> {
    Ok(cache.split(run.evaluation.split.parse::<Split>()?))
}
