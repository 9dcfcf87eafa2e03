//! The classifiers of a ladder below each other, each with its accuracies and their intervals.

use super::axes::{
    Entry, Frame, Swatch, accuracy_range, draw_interval, legend, percent, percent_number, ticks,
};
use super::line_chart::WIDTH;
use super::sheet::{Anchor, BLUE, Colour, EDGE, INK, LINE, MUTED, Point, SKY, SMALL_SIZE, Sheet, TEXT_SIZE};
use super::typeface::Typeface;
use crate::stats::interval::wilson_of;
use crate::train::records::{Ladder, Rung, RungScores};

/// Left and right edge of the picture's content.
const LEFT: f64 = 14.0;
const RIGHT: f64 = 388.0;
/// Width of the column of values.
const VALUES: f64 = 122.0;
/// Height of an interval's line, and of the space below a rung.
const STEP: f64 = 15.0;
const SPACE: f64 = 9.0;

/// A split that rungs are measured on.
struct Measured {
    split: &'static str,
    colour: Colour,
    scores: fn(&Rung) -> Option<RungScores>,
}

/// The split that decides first.
const SPLITS: [Measured; 2] = [
    Measured { split: "validation", colour: SKY, scores: |rung| rung.val },
    Measured { split: "test", colour: BLUE, scores: |rung| rung.test },
];

fn measured(rung: &Rung) -> impl Iterator<Item = (&'static Measured, RungScores)> {
    SPLITS.iter().filter_map(|on| Some((on, (on.scores)(rung)?)))
}

/// "87.8 % (82.1–91.9)".
fn accuracy(scores: RungScores) -> String {
    let (low, high) = wilson_of(scores.top1, scores.images);
    format!("{} ({:.1}–{:.1})", percent(scores.top1), 100.0 * low, 100.0 * high)
}

/// Text that the page shows for a rung.
fn text(rung: &Rung, kept: bool) -> String {
    let mut lines = vec![format!("{}{}", rung.kind.name(), if kept { ", kept" } else { "" })];
    lines.extend((!rung.chosen.is_empty()).then(|| rung.chosen.clone()));
    for (on, scores) in measured(rung) {
        let nll = if scores.nll.is_finite() { format!("{:.4}", scores.nll) } else { "–".into() };
        lines.push(format!("{}: {}, NLL {nll}", on.split, accuracy(scores)));
    }
    lines.push(format!("{:.1} s", rung.seconds));
    lines.join("\n")
}

/// The lines of what was chosen for a rung, below its name.
fn choice(font: &Typeface, rung: &Rung) -> Vec<String> {
    if rung.chosen.is_empty() {
        return Vec::new();
    }
    font.lines(&rung.chosen, SMALL_SIZE, RIGHT - LEFT - 12.0)
}

/// Height of a rung's name with what was chosen, and of all of the rung.
fn heights(font: &Typeface, rung: &Rung) -> (f64, f64) {
    let head = 6.0 + LINE * (TEXT_SIZE + choice(font, rung).len() as f64 * SMALL_SIZE);
    (head, head + measured(rung).count().max(1) as f64 * STEP + SPACE)
}

/// Draws the validation and the test accuracy of every rung.
pub(crate) fn draw<'a>(ladder: &Ladder, font: &'a Typeface) -> Sheet<'a> {
    let mut sheet = Sheet::new(font, WIDTH, 0.0);
    let is_there = |on: &&Measured| ladder.rungs.iter().any(|rung| (on.scores)(rung).is_some());
    let entry = |on: &Measured| Entry::new(Swatch::Interval(on.colour), on.split);
    let mut entries: Vec<Entry> = SPLITS.iter().filter(is_there).map(entry).collect();
    entries.push(Entry::new(Swatch::Bar(FAINT), "kept"));
    let top = legend(&mut sheet, (LEFT, 10.0), RIGHT, &entries) + 8.0;
    let bottom = top + ladder.rungs.iter().map(|rung| heights(font, rung).1).sum::<f64>();
    sheet.height = (bottom + 46.0).ceil();
    let all = ladder.rungs.iter().flat_map(measured).map(|(_, s)| wilson_of(s.top1, s.images));
    let x = accuracy_range(all.flat_map(|(low, high)| [low, high]));
    let frame = Frame { left: LEFT + 6.0, right: RIGHT - VALUES, top, bottom, x, y: (0.0, 1.0) };
    draw_rungs(&mut sheet, &frame, ladder);
    sheet.line(&[(frame.left, bottom), (frame.right, bottom)], 0.75, EDGE);
    let middle = (frame.left + frame.right) / 2.0;
    sheet.text("top-1 accuracy (%)", (middle, bottom + 31.0), TEXT_SIZE, INK, Anchor::Middle);
    sheet
}

/// Translucent colour of the area behind the rung that is kept, and of the lines that are seen on it too.
const FAINT: Colour = EDGE.faint(0.25);

fn draw_rungs(sheet: &mut Sheet<'_>, frame: &Frame, ladder: &Ladder) {
    for share in ticks(frame.x, 5) {
        let (across, _) = frame.at(share, 0.0);
        sheet.line(&[(across, frame.bottom), (across, frame.bottom + 3.5)], 0.75, EDGE);
        let at = (across, frame.bottom + 13.0);
        sheet.text(&percent_number(share), at, SMALL_SIZE, MUTED, Anchor::Middle);
    }
    let mut y = frame.top;
    for (place, rung) in ladder.rungs.iter().enumerate() {
        let (_, height) = heights(sheet.font, rung);
        let kept = place == ladder.kept;
        let (corner, opposite) = ((LEFT - 6.0, y), (RIGHT + 6.0, y + height - 3.0));
        if kept {
            sheet.area(corner, opposite, FAINT);
            sheet.text("kept", (RIGHT, y + 10.0), SMALL_SIZE, INK, Anchor::End);
        }
        draw_rung(sheet, frame, y, rung);
        sheet.spot(&text(rung, kept), corner, opposite, kept);
        y += height;
    }
}

/// A rung below the height `y`: its name, what was chosen, and below that a line for each split.
fn draw_rung(sheet: &mut Sheet<'_>, frame: &Frame, y: f64, rung: &Rung) {
    let (head, height) = heights(sheet.font, rung);
    sheet.text(rung.kind.name(), (LEFT, y + 10.0), TEXT_SIZE, INK, Anchor::Start);
    for (i, line) in choice(sheet.font, rung).iter().enumerate() {
        let down = 10.0 + LINE * (TEXT_SIZE + i as f64 * SMALL_SIZE);
        sheet.text(line, (LEFT, y + down), SMALL_SIZE, MUTED, Anchor::Start);
    }
    let (top, bottom) = (y + head, y + head + STEP);
    if measured(rung).next().is_none() {
        sheet.text("not measured", (LEFT, (top + bottom) / 2.0), SMALL_SIZE, MUTED, Anchor::Start);
        return;
    }
    for share in ticks(frame.x, 5) {
        let (across, _) = frame.at(share, 0.0);
        sheet.line(&[(across, top), (across, y + height - SPACE)], 0.75, FAINT);
    }
    for (i, (on, scores)) in measured(rung).enumerate() {
        draw_scores(sheet, frame, top + (i as f64 + 0.5) * STEP, scores, on.colour);
    }
}

fn draw_scores(sheet: &mut Sheet<'_>, frame: &Frame, y: f64, scores: RungScores, colour: Colour) {
    let (low, high) = wilson_of(scores.top1, scores.images);
    let at = |share| -> Point { (frame.at(share, 0.0).0, y) };
    draw_interval(sheet, at(low), at(scores.top1).0, at(high).0, colour);
    sheet.text(&accuracy(scores), (RIGHT, y), SMALL_SIZE, INK, Anchor::End);
}
