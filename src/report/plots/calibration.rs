//! How far the head's confidence can be believed: the reliability diagram.

use super::axes::{Axis, Frame, Swatch, legend, percent, percent_number, range_of, ticks};
use super::font::Typeface;
use super::sheet::{EDGE, INK, RED, SKY, Sheet};
use crate::report::RunData;

/// Draws accuracy over confidence, and below it how many images have that confidence.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let evaluation = &run.evaluation;
    let mut sheet = Sheet::new(font, 500.0, 600.0);
    let error = percent(evaluation.metrics.ece);
    let subtitle = format!("expected calibration error {error}, {} split", evaluation.split);
    sheet.heading(&format!("{}: calibration", run.name), &subtitle);
    let entries = [
        (Swatch::Bar(SKY), "accuracy".to_owned()),
        (Swatch::Line(RED), "mean confidence".to_owned()),
        (Swatch::Dashes(INK), "perfect calibration".to_owned()),
    ];
    legend(&mut sheet, (66.0, 72.0), 480.0, &entries);
    let fractions = || ticks((0.0, 1.0), 5);
    let confidence = |title| Axis { title, ticks: fractions(), label: percent_number };
    let upper = Frame { left: 66.0, right: 480.0, top: 92.0, bottom: 400.0, x: (0.0, 1.0), y: (0.0, 1.0) };
    let bins = &evaluation.calibration;
    let (count, images) = (bins.len() as f64, bins.iter().map(|bin| bin.images).sum::<u32>().max(1));
    let share = |images_of: u32| f64::from(images_of) / f64::from(images);
    let y = range_of(bins.iter().map(|bin| share(bin.images)).chain([0.0]));
    let lower = Frame { top: 440.0, bottom: 550.0, y, ..upper };
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
    for (i, bin) in bins.iter().enumerate().filter(|(_, bin)| bin.images > 0) {
        let (from, to) = (i as f64 / count + 0.003, (i + 1) as f64 / count - 0.003);
        sheet.area(upper.at(from, bin.accuracy), upper.at(to, 0.0), SKY);
        sheet.line(&[upper.at(from, bin.confidence), upper.at(to, bin.confidence)], 2.5, RED);
        sheet.area(lower.at(from, share(bin.images)), lower.at(to, 0.0), EDGE);
    }
    sheet.dashes(upper.at(0.0, 0.0), upper.at(1.0, 1.0), 1.0, INK);
    sheet
}
