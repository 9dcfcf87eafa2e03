//! How a run went: loss and accuracy of training and validation over the epochs.

use super::axes::{
    Axis, Frame, Swatch, accuracy_range, legend, number, percent, percent_number, range_of, ticks,
    whole_ticks,
};
use super::font::Typeface;
use super::sheet::{Anchor, BLUE, EDGE, INK, MUTED, Point, RED, SMALL_SIZE, Sheet, TEXT_SIZE};
use crate::report::RunData;
use crate::report::data::EpochRecord;

/// Draws loss and top-1 of both splits beside each other.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let mut sheet = Sheet::new(font, 920.0, 430.0);
    let (val, zero_shot) = (&run.summary.val, &run.summary.zero_shot);
    let subtitle = format!("kept epoch {}: validation top-1 {}", run.summary.best_epoch, percent(val.top1));
    sheet.heading(&format!("{}: training", run.name), &subtitle);
    let curve = |value: fn(&EpochRecord) -> f64| -> Vec<Point> {
        run.epochs.iter().map(|record| (f64::from(record.epoch), value(record))).collect()
    };
    let loss = [curve(|e| e.train.loss), curve(|e| e.val.loss)];
    let top1 = [curve(|e| e.train.top1), curve(|e| e.val.top1)];
    let splits = [(Swatch::Line(BLUE), "training".to_owned()), (Swatch::Line(RED), "validation".to_owned())];

    let y = range_of(loss.iter().flatten().map(|p| p.1));
    let axis = Axis { title: "loss", ticks: ticks(y, 6), label: number };
    panel(&mut sheet, run, (66.0, 440.0), y, &axis, &loss, &splits);

    let y = accuracy_range(top1.iter().flatten().map(|p| p.1).chain([zero_shot.top1]));
    let axis = Axis { title: "top-1 accuracy (%)", ticks: ticks(y, 6), label: percent_number };
    let baseline = format!("plain CLIP, {} split: {}", zero_shot.split, percent(zero_shot.top1));
    let entries = [&splits[..], &[(Swatch::Dashes(INK), baseline)]].concat();
    let frame = panel(&mut sheet, run, (526.0, 900.0), y, &axis, &top1, &entries);
    let height = frame.at(frame.x.0, zero_shot.top1).1;
    sheet.dashes((frame.left, height), (frame.right, height), 1.25, INK);
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
    curves: &[Vec<Point>; 2],
    entries: &[(Swatch, String)],
) -> Frame {
    let x = epoch_range(run.epochs.iter());
    let frame = Frame { left, right, top: 112.0, bottom: 380.0, x, y };
    legend(sheet, (left, 72.0), right, entries);
    frame.axes(sheet, &Axis { title: "epoch", ticks: whole_ticks(x, 10), label: number }, axis);
    let (kept, _) = frame.at(f64::from(run.summary.best_epoch), y.0);
    sheet.line(&[(kept, frame.top), (kept, frame.bottom)], 1.0, EDGE);
    // The text stays within the frame.
    let half = sheet.font.width("kept", SMALL_SIZE) / 2.0;
    let middle = kept.clamp(left + half, right - half);
    sheet.text("kept", (middle, frame.top - 9.0), SMALL_SIZE, MUTED, Anchor::Middle);
    for (points, colour) in curves.iter().zip([BLUE, RED]) {
        frame.curve(sheet, points, 1.75, colour);
    }
    if run.epochs.is_empty() {
        let middle = ((left + right) / 2.0, (frame.top + frame.bottom) / 2.0);
        sheet.text("no epoch was recorded", middle, TEXT_SIZE, MUTED, Anchor::Middle);
    }
    frame
}
