//! The pictures of a run and of a comparison, as PNG for documents and as SVG for everything that scales.

mod axes;
mod calibration;
mod classes;
mod confusion;
mod curves;
mod font;
mod group;
mod losses;
mod runs;
mod sheet;
mod techniques;

use super::{Comparison, RunData};
use crate::train::files::write_atomic;
use crate::train::{Result, TrainError};
use font::Typeface;
use sheet::Sheet;
use std::path::{Path, PathBuf};

/// Draws a run: curves, losses, classes, confusion and calibration, each as .png and .svg in the folder
/// `plots` of `dir`. Returns the paths.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn run_plots(run: &RunData, dir: &Path) -> Result<Vec<PathBuf>> {
    let font = Typeface::embedded()?;
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
        files.extend(write(&dir, name, &draw(run, &font))?);
    }
    Ok(files)
}

/// Draws a comparison: techniques, curves, and the classes of the two runs with the best validation accuracy
/// against each other (of a single run, beside plain CLIP), each as .png and .svg in `dir`. Where the comparison
/// has means, these are the best runs of the two techniques with the best mean. Returns the paths.
///
/// # Errors
/// A folder or file that cannot be written, no run, or runs of different classes.
pub fn comparison_plots(comparison: &Comparison, runs: &[RunData], dir: &Path) -> Result<Vec<PathBuf>> {
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
