//! What the training loss is made of, per epoch and per step.

use super::axes::{Axis, Frame, Swatch, curve_widths, legend, number, range_of, ticks, whole_ticks};
use super::font::Typeface;
use super::sheet::{BLUE, Colour, GREEN, INK, ORANGE, Point, Sheet};
use crate::report::RunData;
use crate::report::data::{StepRecord, TrainRecord};

/// More points than this are drawn as means of several steps.
const MOST_POINTS: usize = 600;

/// A curve of the picture.
struct Part {
    name: String,
    colour: Colour,
    of_step: fn(&StepRecord) -> f64,
    of_epoch: fn(&TrainRecord) -> f64,
}

/// Draws the loss and its parts before they are weighted.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let mut sheet = Sheet::new(font, 920.0, 440.0);
    let group = run.steps.len().div_ceil(MOST_POINTS).max(1);
    let faint = if group == 1 { "single steps".to_owned() } else { format!("means of {group} steps") };
    let subtitle =
        format!("strong: means of an epoch, at its middle, wider where another lies on it; faint: {faint}");
    sheet.heading(&format!("{}: parts of the training loss", run.name), &subtitle);
    let parts = parts(run);
    let steps: Vec<Vec<Point>> = parts.iter().map(|part| step_curve(run, part.of_step, group)).collect();
    let epochs: Vec<Vec<Point>> = parts.iter().map(|part| epoch_curve(run, part.of_epoch)).collect();

    let x = (0.0, run.epochs.last().map_or(1.0, |e| f64::from(e.epoch)));
    let y = range_of(steps.iter().chain(&epochs).flatten().map(|p| p.1).chain([0.0]));
    let frame = Frame { left: 66.0, top: 96.0, right: 900.0, bottom: 390.0, x, y };
    let entries: Vec<_> = parts.iter().map(|part| (Swatch::Line(part.colour), part.name.clone())).collect();
    legend(&mut sheet, (66.0, 72.0), 900.0, &entries);
    frame.axes(
        &mut sheet,
        &Axis { title: "epochs of training", ticks: whole_ticks(x, 20), label: number },
        &Axis { title: "loss", ticks: ticks(y, 6), label: number },
    );
    for (points, part) in steps.iter().zip(&parts) {
        for points in points.split(|p| !p.1.is_finite()) {
            let points: Vec<Point> = points.iter().map(|p| frame.at(p.0, p.1)).collect();
            sheet.line(&points, 0.75, part.colour.faint(0.35));
        }
    }
    let widths = curve_widths(&frame, &epochs.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for ((points, part), width) in epochs.iter().zip(&parts).zip(widths) {
        frame.curve(&mut sheet, points, width, part.colour);
    }
    sheet
}

/// The total, and the parts that count in it.
fn parts(run: &RunData) -> Vec<Part> {
    let objective = run.objective();
    let part = |name: &str, colour, of_step, of_epoch| Part { name: name.into(), colour, of_step, of_epoch };
    let weighted = |name: &str, weight: f64| format!("{name} (weight {})", number(weight));
    let mut parts = vec![part("total", INK, |s| s.loss, |e| e.loss)];
    if objective.head != 0.0 {
        let name = weighted("head", objective.head);
        parts.push(part(&name, BLUE, |s| s.parts.loss_head, |e| e.parts.loss_head));
    }
    if objective.text != 0.0 {
        let name = weighted("text", objective.text);
        parts.push(part(&name, ORANGE, |s| s.parts.loss_text, |e| e.parts.loss_text));
    }
    if objective.triplet != 0.0 {
        let name = weighted("triplet", objective.triplet);
        parts.push(part(&name, GREEN, |s| s.parts.loss_triplet, |e| e.parts.loss_triplet));
    }
    let of_epochs = |part: &Part| run.epochs.iter().any(|e| (part.of_epoch)(&e.train).is_finite());
    let of_steps = |part: &Part| run.steps.iter().any(|step| (part.of_step)(step).is_finite());
    parts.retain(|part| of_epochs(part) || of_steps(part));
    parts
}

/// Means of `group` steps each, at their place in the epochs.
fn step_curve(run: &RunData, value: fn(&StepRecord) -> f64, group: usize) -> Vec<Point> {
    let mut curve = Vec::new();
    for epoch in run.steps.chunk_by(|a, b| a.epoch == b.epoch) {
        let steps = epoch.len() as f64;
        for (i, group_of) in epoch.chunks(group).enumerate() {
            let n = group_of.len() as f64;
            let done = ((i * group) as f64 + n / 2.0) / steps;
            let mean = group_of.iter().map(value).sum::<f64>() / n;
            curve.push((f64::from(epoch[0].epoch) - 1.0 + done, mean));
        }
    }
    curve
}

fn epoch_curve(run: &RunData, value: fn(&TrainRecord) -> f64) -> Vec<Point> {
    run.epochs.iter().map(|record| (f64::from(record.epoch) - 0.5, value(&record.train))).collect()
}
