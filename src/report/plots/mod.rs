//! The pictures of a run and of a comparison, as PNG for documents and as SVG for everything that scales.

mod axes;
mod calibration;
mod classes;
mod confusion;
mod curves;
mod font;
mod group;
mod losses;
mod machine;
mod names;
mod runs;
mod script;
mod sheet;
mod techniques;
mod triplets;

use super::{Comparison, RunData};
use crate::files::write_atomic;
use crate::progress::Monitor;
use crate::train::{Result, TrainError};
use font::Typeface;
use sheet::Sheet;
use std::path::{Path, PathBuf};

/// Draws a run: curves, losses, classes, confusion, calibration and, where triplets were formed, triplets, each as
/// .png and .svg in the folder `plots` of `dir`. Returns the paths. `monitor` hears of names that no font can write.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn run_plots(run: &RunData, dir: &Path, monitor: &dyn Monitor) -> Result<Vec<PathBuf>> {
    let font = Typeface::embedded()?;
    let files = draw_run(run, dir, &font)?;
    warn(&font, monitor);
    Ok(files)
}

/// The same with other fonts than those of the machine, which lie in `folders`.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn run_plots_with_fonts(
    run: &RunData,
    dir: &Path,
    folders: &[PathBuf],
    monitor: &dyn Monitor,
) -> Result<Vec<PathBuf>> {
    let font = Typeface::beside(Some(folders.to_vec()))?;
    let files = draw_run(run, dir, &font)?;
    warn(&font, monitor);
    Ok(files)
}

fn warn(font: &Typeface, monitor: &dyn Monitor) {
    if let Some(warning) = font.warning() {
        monitor.warn(&warning);
    }
}

fn draw_run(run: &RunData, dir: &Path, font: &Typeface) -> Result<Vec<PathBuf>> {
    let dir = dir.join("plots");
    let mut files = Vec::new();
    type Picture = for<'a> fn(&RunData, &'a Typeface) -> Sheet<'a>;
    let pictures: [(&str, Picture); 5] = [
        ("curves", curves::draw),
        ("losses", losses::draw),
        ("classes", classes::draw),
        ("confusion", confusion::draw),
        ("calibration", calibration::draw),
    ];
    for (name, draw) in pictures {
        files.extend(write(&dir, name, &draw(run, font))?);
    }
    if let Some(picture) = triplets::draw(run, font) {
        files.extend(write(&dir, "triplets", &picture)?);
    }
    Ok(files)
}

/// Draws a comparison: techniques, curves, and the classes of the two runs with the best validation accuracy
/// against each other (of a single run, beside plain CLIP), each as .png and .svg in `dir`. Where the comparison
/// has means, these are the best runs of the two techniques with the best mean. Returns the paths.
///
/// # Errors
/// A folder or file that cannot be written, no run, or runs of different classes.
pub fn comparison_plots(
    comparison: &Comparison,
    runs: &[RunData],
    dir: &Path,
    monitor: &dyn Monitor,
) -> Result<Vec<PathBuf>> {
    let font = Typeface::embedded()?;
    let groups = group::groups(comparison, runs);
    let best: Vec<&RunData> = groups.iter().filter_map(|group| group.runs.first().copied()).collect();
    let classes = match best[..] {
        [] => return Err(TrainError::file(dir, "there is no run to draw; name at least one")),
        [run] => classes::draw(run, &font),
        [first, second, ..] if first.evaluation.class_names == second.evaluation.class_names => {
            classes::draw_two(first, second, &font)
        }
        [first, second, ..] => {
            let problem = format!(
                "{} and {} have different classes; compare runs on the same data",
                first.name, second.name
            );
            return Err(TrainError::file(dir, problem));
        }
    };
    let mut files = write(dir, "techniques", &techniques::draw(comparison, &font))?;
    files.extend(write(dir, "curves", &runs::draw(comparison, &groups, &font))?);
    files.extend(write(dir, "classes", &classes)?);
    warn(&font, monitor);
    Ok(files)
}

/// Writes both forms of a picture.
fn write(dir: &Path, name: &str, sheet: &Sheet<'_>) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "create the folder"))?;
    let (png, svg) = (dir.join(format!("{name}.png")), dir.join(format!("{name}.svg")));
    let wrong = |path: &Path| {
        let path = path.to_path_buf();
        move |problem: String| TrainError::file(&path, format!("cannot be drawn ({problem})"))
    };
    write_atomic(&png, &sheet.png().map_err(wrong(&png))?)?;
    write_atomic(&svg, sheet.svg().map_err(wrong(&svg))?.as_bytes())?;
    Ok(vec![png, svg])
}
