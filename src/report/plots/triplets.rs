//! How hard the triplets of a run are: how many still have a loss, and how far apart their images are.

use super::axes::{
    Axis, Frame, Swatch, curve_widths, legend, number, percent_number, range_of, ticks, whole_ticks,
};
use super::font::Typeface;
use super::sheet::{BLUE, Colour, GREEN, Point, RED, Sheet};
use crate::report::RunData;
use crate::report::data::TripletMeans;

/// Draws the share of triplets that have a loss, and their mean distances, over the epochs; none where no triplets
/// were formed.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Option<Sheet<'a>> {
    let means = run.triplets();
    let (first, last) = (f64::from(means.first()?.epoch), f64::from(means.last()?.epoch));
    let x = if first == last { (first - 0.5, first + 0.5) } else { (first, last) };
    let mut sheet = Sheet::new(font, 920.0, 430.0);
    sheet.heading(&format!("{}: triplets", run.name), "means of the steps of an epoch");
    let curve = |name: &str, colour, value: fn(&TripletMeans) -> Option<f64>| {
        let points = means.iter().map(|mean| (f64::from(mean.epoch), value(mean).unwrap_or(f64::NAN)));
        (name.to_owned(), colour, points.collect::<Vec<Point>>())
    };
    let active = [curve("triplets with a loss", GREEN, |mean| mean.active)];
    let distances = [
        curve("to its own class", BLUE, |mean| mean.positive),
        curve("to another class", RED, |mean| mean.negative),
    ];
    let axis = Axis { title: "triplets with a loss (%)", ticks: ticks((0.0, 1.0), 5), label: percent_number };
    panel(&mut sheet, (66.0, 440.0), x, (0.0, 1.0), &axis, &active);
    let y = range_of(distances.iter().flat_map(|(.., points)| points).map(|p| p.1).chain([0.0]));
    let axis = Axis { title: "mean distance of an image", ticks: ticks(y, 6), label: number };
    panel(&mut sheet, (526.0, 900.0), x, y, &axis, &distances);
    Some(sheet)
}

fn panel(
    sheet: &mut Sheet<'_>,
    (left, right): (f64, f64),
    x: (f64, f64),
    y: (f64, f64),
    axis: &Axis<'_>,
    curves: &[(String, Colour, Vec<Point>)],
) {
    let frame = Frame { left, right, top: 96.0, bottom: 380.0, x, y };
    let there = |points: &[Point]| points.iter().any(|p| p.1.is_finite());
    let curves: Vec<_> = curves.iter().filter(|(.., points)| there(points)).collect();
    let widths = curve_widths(&frame, &curves.iter().map(|(.., points)| &points[..]).collect::<Vec<_>>());
    let entries: Vec<_> =
        curves.iter().map(|(name, colour, _)| (Swatch::Line(*colour), name.clone())).collect();
    legend(sheet, (left, 72.0), right, &entries);
    frame.axes(sheet, &Axis { title: "epoch", ticks: whole_ticks(x, 10), label: number }, axis);
    for ((_, colour, points), width) in curves.iter().zip(widths) {
        frame.curve(sheet, points, width, *colour);
    }
}
