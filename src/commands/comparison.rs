//! Runs beside each other.

use super::open::{Judged, material};
use super::run_set::RunSet;
use crate::TrainError;
use crate::data::Cache;
use crate::progress::Monitor;
use crate::report::compare::load_runs;
use crate::report::{self, COMPARISON_FILES, Comparison, RunData};
use crate::settings::{Augment, Settings};
use crate::train::run_dir::RunDir;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Compares finished runs, and leaves in `out`, where there is one, all that is known about them.
///
/// # Errors
/// Runs that have not finished or are not of the same classes and images, and a folder that holds something else.
pub fn compare(
    runs: &[PathBuf],
    out: Option<&Path>,
    overwrite: bool,
    monitor: &dyn Monitor,
) -> Result<Comparison> {
    let runs = load_runs(runs)?;
    let comparison = Comparison::of(&runs)?;
    if let Some(out) = out {
        check_vacant(out, overwrite)?;
        write(&comparison, &runs, images(&runs, monitor).as_ref(), out, monitor)?;
    }
    Ok(comparison)
}

/// Trains runs and compares them.
pub(crate) fn train(set: RunSet, monitor: &dyn Monitor) -> Result<Comparison> {
    let out = set.path().to_path_buf();
    let (runs, cache) = set.train(monitor)?;
    let comparison = Comparison::of(&runs)?;
    write(&comparison, &runs, Some(&cache), &out, monitor)?;
    Ok(comparison)
}

fn write(
    comparison: &Comparison,
    runs: &[RunData],
    cache: Option<&Cache>,
    out: &Path,
    monitor: &dyn Monitor,
) -> Result<()> {
    report::write_comparison(comparison, runs, cache, out, monitor)?;
    Ok(comparison.write(out)?)
}

/// Refuses a folder with an earlier comparison, and that of a run: its page and pictures have the same names.
fn check_vacant(dir: &Path, overwrite: bool) -> Result<()> {
    if RunDir::existing(dir).is_ok() {
        bail!(TrainError::file(dir, "is a run itself; choose another --out"));
    }
    match COMPARISON_FILES.iter().map(|name| dir.join(name)).find(|file| file.exists()) {
        Some(file) if !overwrite => {
            let problem = "is there already; replace it with --overwrite, or choose another --out";
            bail!(TrainError::file(&file, problem))
        }
        _ => Ok(()),
    }
}

/// The images of finished runs, for the page; none where they are not to be had any more.
fn images(runs: &[RunData], monitor: &dyn Monitor) -> Option<Cache> {
    let first = runs.first()?;
    let settings = Settings { augment: Augment::Off, ..first.settings.clone() };
    let problem = match material(&settings, &Judged::default(), monitor) {
        Ok(material) if report::shows(first, &material.cache) => {
            let now = material.cache.photos();
            if first.summary.photos.as_deref().is_some_and(|then| !then.is_empty() && then != now) {
                monitor.warn("the photos are not those that the runs were trained on: files were added, changed or removed");
            }
            return Some(material.cache);
        }
        Ok(_) => "they are not those that the runs were evaluated on".to_string(),
        Err(problem) => problem.to_string(),
    };
    monitor.warn(&format!("report.html shows no images: {problem}"));
    None
}
