//! How a run went: accuracy, loss, the parts of the training loss and its triplets over the epochs.

use super::axes::{Axis, accuracy_range, number, percent, percent_number, range_of, ticks};
use super::line_chart::{Curve, LineChart, epoch_range};
use super::sheet::{BLUE, Colour, GREEN, INK, ORANGE, Point, RED, SKY, Sheet};
use super::typeface::Typeface;
use crate::report::RunData;
use crate::report::data::TripletMeans;
use crate::train::records::{EpochRecord, StepRecord, TrainRecord};

/// More points than this are drawn as means of several steps.
const MOST_POINTS: usize = 600;

/// A loss in words.
fn loss(value: f64) -> String {
    format!("{value:.4}")
}

fn values(curves: &[Curve]) -> impl Iterator<Item = f64> {
    curves.iter().flat_map(|curve| curve.points.iter().chain(curve.behind.iter().flatten())).map(|p| p.1)
}

fn losses(run: &RunData, curves: Vec<Curve>) -> LineChart<'static> {
    let y = range_of(values(&curves));
    LineChart {
        epochs: "epoch",
        shift: 0.0,
        x: epoch_range(run.epochs.iter().map(|record| record.epoch)),
        y,
        axis: Axis { title: "loss", ticks: ticks(y, 6), label: number },
        value: loss,
        curves,
        level: None,
        kept: Some(run.summary.best_epoch),
    }
}

fn accuracies(run: &RunData, curves: Vec<Curve>, level: Option<(&'static str, f64)>) -> LineChart<'static> {
    let y = accuracy_range(values(&curves).chain(level.map(|(_, value)| value)));
    let axis = Axis { title: "top-1 accuracy (%)", ticks: ticks(y, 6), label: percent_number };
    LineChart { y, axis, value: percent, level, ..losses(run, curves) }
}

fn of_epochs(run: &RunData, name: &str, colour: Colour, value: fn(&EpochRecord) -> f64) -> Curve {
    Curve::new(name, colour, run.epochs.iter().map(|record| (f64::from(record.epoch), value(record))))
}

/// Draws the loss of both splits.
pub(crate) fn draw_loss<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let curve = |name, colour, value| of_epochs(run, name, colour, value);
    let curves = vec![curve("training", BLUE, |e| e.train.loss), curve("validation", RED, |e| e.val.loss)];
    losses(run, curves).draw(font)
}

/// Draws top-1 of both splits, and plain CLIP's on the validation split.
pub(crate) fn draw_accuracy<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let curve = |name, colour, value| of_epochs(run, name, colour, value);
    let curves = vec![
        curve("training", BLUE, |e| e.train.top1),
        curve("validation", RED, |e| e.val.top1),
        curve("training, text logits", SKY, |e| e.train.text_top1),
        curve("validation, text logits", ORANGE, |e| e.val.text_top1),
    ];
    let level = run.plain_on_val().map(|plain| ("plain CLIP, validation", plain.top1));
    accuracies(run, curves, level).draw(font)
}

/// Says what the faint curves of [`draw_parts`] show.
pub(crate) fn of_steps(run: &RunData) -> String {
    match steps_of_point(run) {
        1 => "single steps".to_owned(),
        group => format!("means of {group} steps"),
    }
}

fn steps_of_point(run: &RunData) -> usize {
    run.steps.len().div_ceil(MOST_POINTS).max(1)
}

/// Whether the training loss has several parts.
pub(crate) fn has_parts(run: &RunData) -> bool {
    parts(run).len() > 2
}

/// Draws the training loss and its parts before they are weighted: of epochs, at their middle, over those of steps.
pub(crate) fn draw_parts<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let curves = parts(run);
    let y = range_of(values(&curves).chain([0.0]));
    let x = (0.0, run.epochs.last().map_or(1.0, |e| f64::from(e.epoch)));
    let axis = Axis { title: "loss", ticks: ticks(y, 6), label: number };
    LineChart { epochs: "epochs of training", shift: 0.5, x, y, axis, ..losses(run, curves) }.draw(font)
}

/// The total, and the parts that count in it.
fn parts(run: &RunData) -> Vec<Curve> {
    let objective = run.objective();
    let part =
        |name: &str, colour: Colour, of_step: fn(&StepRecord) -> f64, of_epoch: fn(&TrainRecord) -> f64| {
            let points = run.epochs.iter().map(|e| (f64::from(e.epoch) - 0.5, of_epoch(&e.train)));
            Curve { behind: vec![step_curve(run, of_step)], ..Curve::new(name, colour, points) }
        };
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
    parts.retain(|part| part.points.iter().chain(&part.behind[0]).any(|p| p.1.is_finite()));
    parts
}

/// Values of steps, or means of several, at their place in the epochs.
fn step_curve(run: &RunData, value: fn(&StepRecord) -> f64) -> Vec<Point> {
    let group = steps_of_point(run);
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

/// Draws how hard the triplets are: the share that has a loss, and the mean distances of their images. What was not
/// recorded is left out, with its name and picture.
pub(crate) fn draw_triplets<'a>(run: &RunData, font: &'a Typeface) -> Vec<(&'static str, Sheet<'a>)> {
    let means = run.triplets();
    let curve = |name, colour, value: fn(&TripletMeans) -> Option<f64>| {
        let points = means.iter().map(|mean| (f64::from(mean.epoch), value(mean).unwrap_or(f64::NAN)));
        Curve::new(name, colour, points)
    };
    let there = |mut curves: Vec<Curve>| {
        curves.retain(|curve| curve.points.iter().any(|p| p.1.is_finite()));
        (!curves.is_empty()).then_some(curves)
    };
    let x = epoch_range(means.iter().map(|mean| mean.epoch));
    let active = there(vec![curve("triplets with a loss", GREEN, |mean| mean.active)]).map(|curves| {
        let (y, title) = ((0.0, 1.0), "triplets with a loss (%)");
        let axis = Axis { title, ticks: ticks(y, 5), label: percent_number };
        let chart = LineChart { x, y, axis, ..accuracies(run, curves, None) };
        ("Triplets with a loss", chart.draw(font))
    });
    let distances = vec![
        curve("to its own class", BLUE, |mean| mean.positive),
        curve("to another class", RED, |mean| mean.negative),
    ];
    let distances = there(distances).map(|curves| {
        let y = range_of(values(&curves).chain([0.0]));
        let axis = Axis { title: "mean distance of an image", ticks: ticks(y, 6), label: number };
        let chart = LineChart { x, y, axis, ..losses(run, curves) };
        ("Mean distance of an image in a triplet", chart.draw(font))
    });
    active.into_iter().chain(distances).collect()
}
