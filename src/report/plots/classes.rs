//! The accuracy on each class: a run beside plain CLIP, or two runs against each other.

use super::axes::{Entry, Swatch, legend, percent};
use super::names::ClassName;
use super::sheet::{
    Anchor, BLUE, Colour, EDGE, GREY, GRID, INK, Letters, MUTED, ORANGE, SMALL_SIZE, Sheet, TEXT_SIZE,
};
use super::typeface::Typeface;
use crate::report::RunData;
use crate::report::compare::PLAIN;
use crate::train::metrics::{ClassMetrics, Evaluation};
use std::cmp::Ordering;

/// The names, where none is longer.
const NAMES: f64 = 200.0;
/// A name of more than this is written in several lines.
const LONGEST: f64 = 330.0;
/// Width of a bar of 100 %.
const BARS: f64 = 460.0;
/// Right edges of the columns of both values, of a third, and of the picture, from the right end of the bars.
const VALUES: [f64; 2] = [60.0, 120.0];
const THIRD: f64 = 210.0;
const MARGIN: f64 = 20.0;

/// One of the two bars of every class.
struct Series<'a> {
    name: String,
    colour: Colour,
    classes: &'a [ClassMetrics],
}

/// Draws a run beside plain CLIP, the best class first.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let evaluation = &run.evaluation;
    let series = [
        Series { name: run.name.clone(), colour: BLUE, classes: &evaluation.classes },
        Series { name: PLAIN.into(), colour: GREY, classes: &evaluation.zero_shot },
    ];
    let order = sorted(evaluation, |i| series[0].classes[i].recall);
    bars(font, evaluation, &series, &order, ("right / images", counts))
}

/// Draws two runs of the same classes, the largest lead of the first in front.
pub(crate) fn draw_two<'a>(first: &RunData, second: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let series = [
        Series { name: first.name.clone(), colour: BLUE, classes: &first.evaluation.classes },
        Series { name: second.name.clone(), colour: ORANGE, classes: &second.evaluation.classes },
    ];
    let order = sorted(&first.evaluation, |i| lead([&series[0].classes[i], &series[1].classes[i]]));
    bars(font, &first.evaluation, &series, &order, ("difference", difference))
}

/// Text of a class in the column on the right.
type Value = fn([&ClassMetrics; 2]) -> String;

fn counts([class, _]: [&ClassMetrics; 2]) -> String {
    format!("{} / {}", class.right, class.images)
}

fn difference(pair: [&ClassMetrics; 2]) -> String {
    let points = lead(pair).map(|lead| 100.0 * lead);
    points.map_or("–".into(), |d| if d.abs() < 0.05 { "0.0".into() } else { format!("{d:+.1}") })
}

/// How much more of the class the first of two runs recognises.
fn lead([first, second]: [&ClassMetrics; 2]) -> Option<f64> {
    Some(first.recall? - second.recall?)
}

/// Labels with the highest `value` first, those without one last, equals in label order.
fn sorted(evaluation: &Evaluation, value: impl Fn(usize) -> Option<f64>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..evaluation.class_names.len()).collect();
    order.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).unwrap_or(Ordering::Equal));
    order
}

/// Where bars begin, and where one of 100 % ends.
#[derive(Debug, Clone, Copy)]
struct Columns {
    left: f64,
    right: f64,
}

fn bars<'a>(
    font: &'a Typeface,
    evaluation: &Evaluation,
    series: &[Series<'_>; 2],
    order: &[usize],
    (column, value): (&str, Value),
) -> Sheet<'a> {
    let least: f64 = if order.len() > 40 { 15.0 } else { 22.0 };
    let names = ClassName::all(font, &evaluation.class_names, SMALL_SIZE, LONGEST);
    let longest = names.iter().map(|name| name.width(font, SMALL_SIZE)).fold(NAMES, f64::max);
    let left = MARGIN + longest.ceil() + 10.0;
    let columns = Columns { left, right: left + BARS };
    let rows: Vec<f64> =
        order.iter().map(|&class| least.max(names[class].height(SMALL_SIZE) + 5.0)).collect();
    let width = columns.right + THIRD + MARGIN;
    let mut sheet = Sheet::new(font, width, 0.0);
    let entries = series.each_ref().map(|s| Entry::new(Swatch::Bar(s.colour), &s.name));
    let top = legend(&mut sheet, (left, 10.0), columns.right, &entries) + 16.0;
    let bottom = top + rows.iter().sum::<f64>() + 6.0;
    sheet.height = (bottom + 48.0).ceil();
    draw_axis(&mut sheet, columns, (top, bottom));
    for (series, right) in series.iter().zip(VALUES.map(|x| columns.right + x)) {
        sheet.area((right - 16.0, top - 14.5), (right, top - 5.5), series.colour);
    }
    let third = columns.right + THIRD;
    sheet.text(column, (third, top - 10.0), SMALL_SIZE, MUTED, Anchor::End);
    let mut y = top + 3.0;
    for (&class, row) in order.iter().zip(&rows) {
        let middle = y + row / 2.0;
        let letters = Letters { size: SMALL_SIZE, colour: INK, anchor: Anchor::End, turned: false };
        names[class].draw(&mut sheet, (left - 8.0, middle), letters);
        let pair = series.each_ref().map(|s| &s.classes[class]);
        draw_pair(&mut sheet, columns, (middle, least), series, pair);
        sheet.text(&value(pair), (third, middle), SMALL_SIZE, MUTED, Anchor::End);
        y += row;
    }
    sheet.line(&[(left, top), (left, bottom)], 0.75, EDGE);
    let middle = (left + columns.right) / 2.0;
    sheet.text("accuracy (%)", (middle, bottom + 31.0), TEXT_SIZE, INK, Anchor::Middle);
    sheet
}

fn draw_axis(sheet: &mut Sheet<'_>, columns: Columns, (top, bottom): (f64, f64)) {
    for tick in 0..=5 {
        let x = columns.left + BARS * f64::from(tick) / 5.0;
        sheet.line(&[(x, top), (x, bottom)], 0.75, GRID);
        let number = (20 * tick).to_string();
        // Above as well: the picture is taller than a screen.
        sheet.text(&number, (x, top - 10.0), SMALL_SIZE, MUTED, Anchor::Middle);
        sheet.text(&number, (x, bottom + 11.0), SMALL_SIZE, MUTED, Anchor::Middle);
    }
}

/// The bars of one class, around the height `y`, and their values.
fn draw_pair(
    sheet: &mut Sheet<'_>,
    Columns { left, right }: Columns,
    (y, row): (f64, f64),
    series: &[Series<'_>; 2],
    pair: [&ClassMetrics; 2],
) {
    if pair.iter().all(|class| class.images == 0) {
        sheet.text("no images", (left + 6.0, y), SMALL_SIZE, MUTED, Anchor::Start);
        return;
    }
    let thickness = 0.41 * row;
    for (i, (series, class)) in series.iter().zip(pair).enumerate() {
        let top = y + (i as f64 - 1.0) * thickness;
        let recall = class.recall.unwrap_or(0.0);
        let end = left + BARS * recall;
        sheet.area((left, top), (end, top + thickness - 0.5), series.colour);
        sheet.text(&percent(recall), (right + VALUES[i], y), SMALL_SIZE, INK, Anchor::End);
    }
}
