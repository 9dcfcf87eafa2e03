//! How a run went: loss and accuracy of training and validation over the epochs.

use super::axes::{
    Axis, Frame, Swatch, accuracy_range, curve_widths, legend, number, percent, percent_number, range_of,
    ticks, whole_ticks,
};
use super::font::Typeface;
use super::sheet::{
    Anchor, BLUE, Colour, EDGE, INK, MUTED, ORANGE, Point, RED, SKY, SMALL_SIZE, Sheet, TEXT_SIZE,
};
use crate::report::RunData;
use crate::report::compare::PLAIN;
use crate::report::data::EpochRecord;

/// A curve of the picture.
struct Curve {
    points: Vec<Point>,
    colour: Colour,
    name: &'static str,
}

/// Draws loss and top-1 of both splits beside each other.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let mut sheet = Sheet::new(font, 920.0, 446.0);
    let val = &run.summary.val;
    let subtitle = format!("kept epoch {}: validation top-1 {}", run.summary.best_epoch, percent(val.top1));
    sheet.heading(&format!("{}: training", run.name), &subtitle);
    let curve = |name, colour, value: fn(&EpochRecord) -> f64| {
        let points = run.epochs.iter().map(|record| (f64::from(record.epoch), value(record)));
        Curve { points: points.collect(), colour, name }
    };
    let loss = [curve("training", BLUE, |e| e.train.loss), curve("validation", RED, |e| e.val.loss)];
    let top1 = [
        curve("training", BLUE, |e| e.train.top1),
        curve("validation", RED, |e| e.val.top1),
        curve("training, text logits", SKY, |e| e.train.text_top1),
        curve("validation, text logits", ORANGE, |e| e.val.text_top1),
    ];
    let values =
        |curves: &[Curve]| curves.iter().flat_map(|c| c.points.iter().map(|p| p.1)).collect::<Vec<_>>();

    let y = range_of(values(&loss).into_iter());
    let axis = Axis { title: "loss", ticks: ticks(y, 6), label: number };
    panel(&mut sheet, run, (66.0, 440.0), y, &axis, &loss, None);

    let plain = run.plain_on_val().map(|plain| plain.top1);
    let y = accuracy_range(values(&top1).into_iter().chain(plain));
    let axis = Axis { title: "top-1 accuracy (%)", ticks: ticks(y, 6), label: percent_number };
    panel(&mut sheet, run, (526.0, 900.0), y, &axis, &top1, plain);
    sheet
}

/// The epochs of a picture as the range of its axis.
pub(super) fn epoch_range<'a>(epochs: impl Iterator<Item = &'a EpochRecord> + Clone) -> (f64, f64) {
    let first = epochs.clone().map(|e| e.epoch).min().unwrap_or(1);
    let last = epochs.map(|e| e.epoch).max().unwrap_or(1);
    if first == last { (f64::from(first) - 0.5, f64::from(first) + 0.5) } else { (first.into(), last.into()) }
}

fn panel(
    sheet: &mut Sheet<'_>,
    run: &RunData,
    (left, right): (f64, f64),
    y: (f64, f64),
    axis: &Axis<'_>,
    curves: &[Curve],
    plain: Option<f64>,
) {
    let x = epoch_range(run.epochs.iter());
    let frame = Frame { left, right, top: 128.0, bottom: 396.0, x, y };
    let mut entries: Vec<_> = curves.iter().map(|c| (Swatch::Line(c.colour), c.name.to_owned())).collect();
    entries.extend(
        plain.map(|top1| (Swatch::Dashes(INK), format!("{PLAIN}, validation split: {}", percent(top1)))),
    );
    legend(sheet, (left, 72.0), right, &entries);
    frame.axes(sheet, &Axis { title: "epoch", ticks: whole_ticks(x, 10), label: number }, axis);
    let (kept, _) = frame.at(f64::from(run.summary.best_epoch), y.0);
    sheet.line(&[(kept, frame.top), (kept, frame.bottom)], 1.0, EDGE);
    // The text stays within the frame.
    let half = sheet.font.width("kept", SMALL_SIZE) / 2.0;
    let middle = kept.clamp(left + half, right - half);
    sheet.text("kept", (middle, frame.top - 9.0), SMALL_SIZE, MUTED, Anchor::Middle);
    let points: Vec<_> = curves.iter().map(|curve| &curve.points[..]).collect();
    for (curve, width) in curves.iter().zip(curve_widths(&frame, &points)) {
        frame.curve(sheet, &curve.points, width, curve.colour);
    }
    if let Some(top1) = plain {
        let (_, height) = frame.at(x.0, top1);
        sheet.dashes((left, height), (right, height), 1.25, INK);
    }
    if run.epochs.is_empty() {
        let middle = ((left + right) / 2.0, (frame.top + frame.bottom) / 2.0);
        sheet.text("no epoch was recorded", middle, TEXT_SIZE, MUTED, Anchor::Middle);
    }
}
