//! The pictures of a run and of a comparison, as PNG for documents and as SVG for everything that scales and for
//! report.html.

mod axes;
mod calibration;
mod classes;
mod confusion;
mod curves;
mod group;
mod ladder;
mod line_chart;
mod names;
mod runs;
mod sheet;
mod techniques;
mod typeface;

use super::{Comparison, RunData};
use crate::files::write_atomic;
use crate::progress::Monitor;
use crate::train::{Result, TrainError};
use serde::Serialize;
use sheet::{Anchor, INK, MUTED, PAPER, Sheet, TEXT_SIZE, TITLE_SIZE};
use std::path::{Path, PathBuf};
use typeface::Typeface;

/// A picture of the page with its title.
#[derive(Debug, Serialize)]
pub(crate) struct Chart {
    title: String,
    svg: String,
}

impl Chart {
    fn new(title: impl Into<String>, sheet: &Sheet<'_>) -> Self {
        Chart { title: title.into(), svg: sheet.svg() }
    }
}

/// The pictures of a run that its page shows.
#[derive(Debug, Serialize)]
pub(crate) struct RunCharts {
    curves: Vec<Chart>,
    calibration: Chart,
    confusion: Chart,
    /// None where the run climbed none.
    ladder: Option<Chart>,
}

impl RunCharts {
    pub(crate) fn of(run: &RunData) -> Result<Self> {
        let font = Typeface::new(&run.evaluation.class_names)?;
        let mut curves = Vec::new();
        if !run.epochs.is_empty() {
            curves.push(Chart::new("Accuracy (top-1)", &curves::draw_accuracy(run, &font)));
            curves.push(Chart::new("Loss", &curves::draw_loss(run, &font)));
            if curves::has_parts(run) {
                curves.push(Chart::new("Parts of the training loss", &curves::draw_parts(run, &font)));
            }
        }
        let triplets = curves::draw_triplets(run, &font);
        curves.extend(triplets.iter().map(|(title, sheet)| Chart::new(*title, sheet)));
        Ok(RunCharts {
            curves,
            calibration: Chart::new("Accuracy by confidence", &calibration::draw(run, &font)),
            confusion: Chart::new("All classes", &confusion::draw_numbered(run, &font)),
            ladder: run
                .summary
                .ladder
                .as_ref()
                .map(|ladder| Chart::new("Top-1 in its 95 % interval", &ladder::draw(ladder, &font))),
        })
    }
}

/// The pictures of a comparison that its page shows.
#[derive(Debug, Serialize)]
pub(crate) struct ComparisonCharts {
    techniques: Chart,
    /// None where no run recorded an epoch.
    curves: Option<Chart>,
    /// The square for the classes of two runs.
    square: Chart,
}

impl ComparisonCharts {
    pub(crate) fn of(comparison: &Comparison, runs: &[RunData]) -> Result<Self> {
        let font = Typeface::new(&[])?;
        let split = if comparison.split == "val" { "validation" } else { &comparison.split };
        let title = format!("Top-1 on the {split} split");
        let curves = || runs::draw(comparison, &group::groups(comparison, runs), &font);
        let has_epochs = runs.iter().any(|run| !run.epochs.is_empty());
        Ok(ComparisonCharts {
            techniques: Chart::new(title, &techniques::draw(comparison, &font)),
            curves: has_epochs.then(|| Chart::new("Validation top-1", &curves())),
            square: Chart::new("A point for each class", &calibration::square(&font)),
        })
    }
}

/// Draws a run: curves, losses, classes, confusion, calibration, triplets where some were formed and ladder where one
/// was climbed, each as .png and .svg in the folder `plots` of `dir`. Returns the paths. `monitor` hears of names that
/// no font can write.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn run_plots(run: &RunData, dir: &Path, monitor: &dyn Monitor) -> Result<Vec<PathBuf>> {
    draw_run(run, dir, &Typeface::new(&run.evaluation.class_names)?, monitor)
}

/// Draws a run as [`run_plots`] does, with the fonts in `folders` in place of those of the machine.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn run_plots_with_fonts(
    run: &RunData,
    dir: &Path,
    folders: &[PathBuf],
    monitor: &dyn Monitor,
) -> Result<Vec<PathBuf>> {
    let font = Typeface::beside(Some(folders.to_vec()), &run.evaluation.class_names)?;
    draw_run(run, dir, &font, monitor)
}

fn warn(font: &Typeface, monitor: &dyn Monitor) {
    if let Some(warning) = font.warning() {
        monitor.warn(&warning);
    }
}

fn draw_run(run: &RunData, dir: &Path, font: &Typeface, monitor: &dyn Monitor) -> Result<Vec<PathBuf>> {
    let dir = dir.join("plots");
    let (name, evaluation, summary) = (&run.name, &run.evaluation, &run.summary);
    let (split, ece) = (&evaluation.split, axes::percent(evaluation.metrics.ece));
    let mut files = Vec::new();
    let mut write = |file: &str, title: &str, subtitle: String, parts: Vec<Sheet<'_>>| -> Result<()> {
        files.extend(write(&dir, file, &composed(font, &format!("{name}: {title}"), &subtitle, parts))?);
        Ok(())
    };
    let kept =
        format!("kept epoch {}: validation top-1 {}", summary.best_epoch, axes::percent(summary.val.top1));
    let parts = vec![curves::draw_loss(run, font), curves::draw_accuracy(run, font)];
    write("curves", "training", kept, parts)?;
    let means = "strong: means of an epoch, at its middle, wider where another lies on it; faint";
    let parts = vec![curves::draw_parts(run, font)];
    write("losses", "parts of the training loss", format!("{means}: {}", curves::of_steps(run)), parts)?;
    let shares = format!("share of the {split} images of a class that are recognised");
    write("classes", "accuracy per class", shares, vec![classes::draw(run, font)])?;
    let images = format!("{split} split, {} images", evaluation.metrics.images);
    write("confusion", "confusion matrix", images, vec![confusion::draw(run, font)])?;
    let error = format!("expected calibration error {ece}, {split} split");
    write("calibration", "calibration", error, vec![calibration::draw(run, font)])?;
    let triplets: Vec<Sheet<'_>> =
        curves::draw_triplets(run, font).into_iter().map(|(_, sheet)| sheet).collect();
    if !triplets.is_empty() {
        write("triplets", "triplets", "means of the steps of an epoch".to_owned(), triplets)?;
    }
    if let Some(ladder) = &summary.ladder {
        let intervals = format!("top-1 accuracy in its 95 % interval, {} classes", summary.classes);
        write("ladder", "what was tried", intervals, vec![ladder::draw(ladder, font)])?;
    }
    warn(font, monitor);
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
    let font = Typeface::new(runs.first().map_or(&[], |run| &run.evaluation.class_names[..]))?;
    let groups = group::groups(comparison, runs);
    let best: Vec<&RunData> = groups.iter().filter_map(|group| group.runs.first().copied()).collect();
    let (against, classes) = match best[..] {
        [] => return Err(TrainError::file(dir, "there is no run to draw; name at least one")),
        [run] => (run.name.clone(), classes::draw(run, &font)),
        [first, second, ..] if first.evaluation.class_names == second.evaluation.class_names => {
            (format!("{} against {}", first.name, second.name), classes::draw_two(first, second, &font))
        }
        [first, second, ..] => {
            let problem = format!(
                "{} and {} have different classes; compare runs on the same data",
                first.name, second.name
            );
            return Err(TrainError::file(dir, problem));
        }
    };
    let (title, subtitle) = techniques::heading(comparison);
    let techniques = composed(&font, &title, &subtitle, vec![techniques::draw(comparison, &font)]);
    let mut files = write(dir, "techniques", &techniques)?;
    let curves = vec![runs::draw(comparison, &groups, &font)];
    let curves = composed(&font, "Validation accuracy", &runs::subtitle(comparison), curves);
    files.extend(write(dir, "curves", &curves)?);
    let shares = format!("share of the {} images of a class that are recognised", comparison.split);
    let classes = composed(&font, &format!("{against}: accuracy per class"), &shares, vec![classes]);
    files.extend(write(dir, "classes", &classes)?);
    warn(&font, monitor);
    Ok(files)
}

/// A picture on paper: parts beside each other under a heading.
fn composed<'a>(font: &'a Typeface, title: &str, subtitle: &str, parts: Vec<Sheet<'a>>) -> Sheet<'a> {
    const MARGIN: f64 = 20.0;
    let width = parts.iter().map(|part| part.width).sum();
    let mut heading = Sheet::new(font, width, 0.0);
    let mut y = 12.0;
    for (text, size, colour) in [(title, TITLE_SIZE, INK), (subtitle, TEXT_SIZE, MUTED)] {
        for line in font.lines(text, size, width - 2.0 * MARGIN) {
            heading.text(&line, (MARGIN, y + 0.6 * size), size, colour, Anchor::Start);
            y += 1.3 * size;
        }
    }
    y += 8.0;
    let height = parts.iter().map(|part| part.height).fold(0.0, f64::max);
    let mut sheet = Sheet::new(font, width, y + height);
    sheet.area((0.0, 0.0), (sheet.width, sheet.height), PAPER);
    sheet.place(heading, (0.0, 0.0));
    let mut x = 0.0;
    for part in parts {
        let next = x + part.width;
        // Their axes on one height.
        let lower = height - part.height;
        sheet.place(part, (x, y + lower));
        x = next;
    }
    sheet
}

/// Writes both forms of a picture.
fn write(dir: &Path, name: &str, sheet: &Sheet<'_>) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "create the folder"))?;
    let (png, svg) = (dir.join(format!("{name}.png")), dir.join(format!("{name}.svg")));
    let drawn =
        sheet.png().map_err(|problem| TrainError::file(&png, format!("cannot be drawn ({problem})")))?;
    write_atomic(&png, &drawn)?;
    write_atomic(&svg, sheet.svg().as_bytes())?;
    Ok(vec![png, svg])
}
