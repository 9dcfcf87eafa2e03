//! The accuracy on each class: a run beside plain CLIP, or two runs against each other.

use super::axes::{LEGEND_LINE, Swatch, legend, percent};
use super::font::Typeface;
use super::sheet::{Anchor, BLUE, Colour, EDGE, GRID, INK, MUTED, ORANGE, SMALL_SIZE, Sheet, TEXT_SIZE};
use crate::report::RunData;
use crate::train::metrics::{ClassMetrics, Evaluation};
use std::cmp::Ordering;

const WIDTH: f64 = 920.0;
/// Where bars begin and end.
const LEFT: f64 = 230.0;
const RIGHT: f64 = 690.0;
/// Right edges of the columns of both values, and of a third.
const VALUES: [f64; 2] = [750.0, 810.0];
const THIRD: f64 = WIDTH - 20.0;
const PLAIN: Colour = Colour(0xa6, 0xa6, 0xa6);

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
        Series { name: "plain CLIP".into(), colour: PLAIN, classes: &evaluation.zero_shot },
    ];
    let order = sorted(evaluation, |i| series[0].classes[i].recall);
    let title = format!("{}: accuracy per class", run.name);
    let column = ("right / images", counts as Value);
    bars(font, evaluation, &title, &series, &order, column)
}

/// Draws two runs of the same classes, the largest lead of the first in front.
pub fn draw_two<'a>(first: &RunData, second: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let series = [
        Series { name: first.name.clone(), colour: BLUE, classes: &first.evaluation.classes },
        Series { name: second.name.clone(), colour: ORANGE, classes: &second.evaluation.classes },
    ];
    let order = sorted(&first.evaluation, |i| lead([&series[0].classes[i], &series[1].classes[i]]));
    let title = format!("{} against {}: accuracy per class", first.name, second.name);
    let column = ("difference", difference as Value);
    bars(font, &first.evaluation, &title, &series, &order, column)
}

/// What the column on the right says of a class.
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

fn bars<'a>(
    font: &'a Typeface,
    evaluation: &Evaluation,
    title: &str,
    series: &[Series<'_>; 2],
    order: &[usize],
    (column, value): (&str, Value),
) -> Sheet<'a> {
    let row = if order.len() > 40 { 15.0 } else { 22.0 };
    let mut scratch = Sheet::new(font, WIDTH, 100.0);
    let entries = series.each_ref().map(|s| (Swatch::Bar(s.colour), s.name.clone()));
    let lines = legend(&mut scratch, (LEFT, 72.0), RIGHT, &entries);
    let top = 104.0 + (lines - 1) as f64 * LEGEND_LINE;
    let bottom = top + row * order.len() as f64 + 6.0;
    let mut sheet = Sheet::new(font, WIDTH, bottom + 48.0);
    let subtitle = format!("share of the {} images of a class that are recognised", evaluation.split);
    sheet.heading(title, &subtitle);
    legend(&mut sheet, (LEFT, 72.0), RIGHT, &entries);
    for (series, right) in series.iter().zip(VALUES) {
        sheet.area((right - 16.0, top - 14.5), (right, top - 5.5), series.colour);
    }
    sheet.text(column, (THIRD, top - 10.0), SMALL_SIZE, MUTED, Anchor::End);
    for tick in 0..=5 {
        let x = LEFT + (RIGHT - LEFT) * f64::from(tick) / 5.0;
        sheet.line(&[(x, top), (x, bottom)], 0.75, GRID);
        let number = (20 * tick).to_string();
        // Above as well: the picture is taller than a screen.
        sheet.text(&number, (x, top - 10.0), SMALL_SIZE, MUTED, Anchor::Middle);
        sheet.text(&number, (x, bottom + 11.0), SMALL_SIZE, MUTED, Anchor::Middle);
    }
    let names = font.shorten_each(&evaluation.class_names, SMALL_SIZE, LEFT - 30.0);
    for (place, &class) in order.iter().enumerate() {
        let y = top + 3.0 + row * (place as f64 + 0.5);
        sheet.text(&names[class], (LEFT - 8.0, y), SMALL_SIZE, INK, Anchor::End);
        let pair = series.each_ref().map(|s| &s.classes[class]);
        draw_pair(&mut sheet, y, row, series, pair);
        sheet.text(&value(pair), (THIRD, y), SMALL_SIZE, MUTED, Anchor::End);
    }
    sheet.line(&[(LEFT, top), (LEFT, bottom)], 0.75, EDGE);
    let middle = (LEFT + RIGHT) / 2.0;
    sheet.text("accuracy (%)", (middle, bottom + 31.0), TEXT_SIZE, INK, Anchor::Middle);
    sheet
}

/// The bars of one class, around the height `y`, and their values.
fn draw_pair(sheet: &mut Sheet<'_>, y: f64, row: f64, series: &[Series<'_>; 2], pair: [&ClassMetrics; 2]) {
    if pair.iter().all(|class| class.images == 0) {
        sheet.text("no images", (LEFT + 6.0, y), SMALL_SIZE, MUTED, Anchor::Start);
        return;
    }
    let thickness = 0.41 * row;
    for (i, (series, class)) in series.iter().zip(pair).enumerate() {
        let top = y + (i as f64 - 1.0) * thickness;
        let recall = class.recall.unwrap_or(0.0);
        let end = LEFT + (RIGHT - LEFT) * recall;
        sheet.area((LEFT, top), (end, top + thickness - 0.5), series.colour);
        sheet.text(&percent(recall), (VALUES[i], y), SMALL_SIZE, INK, Anchor::End);
    }
}
