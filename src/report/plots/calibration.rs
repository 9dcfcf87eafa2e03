//! How far the head's confidence can be believed: the reliability diagram.

use super::axes::{Axis, Entry, Frame, Swatch, legend, percent, percent_number, range_of, ticks};
use super::line_chart::{LEFT, RIGHT, WIDTH};
use super::sheet::{EDGE, INK, RED, SKY, Sheet};
use super::typeface::Typeface;
use crate::report::RunData;

/// Draws accuracy over confidence, and below it how many images have that confidence.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let mut sheet = Sheet::new(font, WIDTH, 550.0);
    let entries = [
        Entry::new(Swatch::Bar(SKY), "accuracy"),
        Entry::new(Swatch::Line(RED), "mean confidence"),
        Entry::new(Swatch::Dashes(INK), "perfect calibration"),
    ];
    legend(&mut sheet, (LEFT, 10.0), RIGHT, &entries);
    let fractions = || ticks((0.0, 1.0), 5);
    let confidence = |title| Axis { title, ticks: fractions(), label: percent_number };
    let upper = Frame { left: LEFT, right: RIGHT, top: 48.0, bottom: 348.0, x: (0.0, 1.0), y: (0.0, 1.0) };
    let bins = &run.evaluation.calibration;
    let (count, images) = (bins.len() as f64, bins.iter().map(|bin| bin.images).sum::<u32>().max(1));
    let share = |images_of: u32| f64::from(images_of) / f64::from(images);
    let y = range_of(bins.iter().map(|bin| share(bin.images)).chain([0.0]));
    let lower = Frame { top: 390.0, bottom: 500.0, y, ..upper };
    upper.axes(
        &mut sheet,
        &confidence(""),
        &Axis { title: "accuracy (%)", ticks: fractions(), label: percent_number },
    );
    lower.axes(
        &mut sheet,
        &confidence("confidence (%)"),
        &Axis { title: "images (%)", ticks: ticks(y, 3), label: percent_number },
    );
    let last = bins.iter().rposition(|bin| bin.images > 0);
    for (i, bin) in bins.iter().enumerate() {
        let edges = [i, i + 1].map(|edge| edge as f64 / count);
        let (from, to) = (edges[0] + 0.003, edges[1] - 0.003);
        let [low, high] = edges.map(|edge| format!("{:.0} %", 100.0 * edge));
        let mut text = format!(
            "Confidence {low} to {high}: {} image{}",
            bin.images,
            if bin.images == 1 { "" } else { "s" }
        );
        if bin.images > 0 {
            sheet.area(upper.at(from, bin.accuracy), upper.at(to, 0.0), SKY);
            sheet.line(&[upper.at(from, bin.confidence), upper.at(to, bin.confidence)], 2.5, RED);
            sheet.area(lower.at(from, share(bin.images)), lower.at(to, 0.0), EDGE);
            let (accuracy, confidence) = (percent(bin.accuracy), percent(bin.confidence));
            text += &format!("\naccuracy {accuracy} at a mean confidence of {confidence}");
        }
        sheet.spot(&text, upper.at(edges[0], 1.0), lower.at(edges[1], 0.0), last == Some(i));
    }
    sheet.dashes(upper.at(0.0, 0.0), upper.at(1.0, 1.0), 1.0, INK);
    sheet
}

/// Draws frame and axes of a square of two runs' recalls, whose points the page draws.
pub fn square<'a>(font: &'a Typeface) -> Sheet<'a> {
    let mut sheet = Sheet::new(font, WIDTH, 390.0);
    let frame = Frame { left: LEFT, right: RIGHT, top: 12.0, bottom: 342.0, x: (0.0, 1.0), y: (0.0, 1.0) };
    let axis = |title| Axis { title, ticks: ticks((0.0, 1.0), 5), label: percent_number };
    frame.axes(&mut sheet, &axis("recall of the first (%)"), &axis("recall of the second (%)"));
    sheet.dashes(frame.at(0.0, 0.0), frame.at(1.0, 1.0), 1.0, INK);
    sheet.field(frame.at(0.0, 1.0), frame.at(1.0, 0.0));
    sheet
}
