//! The validation accuracy of several runs in one picture.

use super::axes::{Axis, accuracy_range, percent, percent_number, ticks};
use super::group::{Group, seeds_text};
use super::line_chart::{Curve, LineChart, epoch_range};
use super::sheet::{Colour, PALETTE, Point, Sheet};
use super::typeface::Typeface;
use crate::report::compare::PLAIN;
use crate::report::{Comparison, RunData};
use std::collections::BTreeMap;

/// Draws a curve per group, the best in front and on top: that of the run, or the mean of the runs over these.
pub fn draw<'a>(comparison: &Comparison, groups: &[Group<'_>], font: &'a Typeface) -> Sheet<'a> {
    let curves: Vec<Curve> =
        groups.iter().zip(colours(groups)).map(|(group, colour)| curve(group, colour)).collect();
    let level = comparison.plain().and_then(|row| row.val_top1).map(|value| (PLAIN, value));
    let runs = || groups.iter().flat_map(|group| group.runs.iter());
    let y = accuracy_range(
        runs().flat_map(|run| run.epochs.iter().map(|e| e.val.top1)).chain(level.map(|(_, value)| value)),
    );
    LineChart {
        epochs: "epoch",
        shift: 0.0,
        x: epoch_range(runs().flat_map(|run| run.epochs.iter().map(|e| e.epoch))),
        y,
        axis: Axis { title: "top-1 accuracy (%)", ticks: ticks(y, 6), label: percent_number },
        value: percent,
        curves,
        level,
        kept: None,
    }
    .draw(font)
}

pub(crate) fn subtitle(comparison: &Comparison) -> String {
    if comparison.means.is_empty() {
        return "of every run; in the key that of the kept epoch".into();
    }
    let seeds = seeds_text(&comparison.means);
    format!(
        "means of the runs that had the epoch, the runs faint behind them; in the key that of the kept epochs, \
         mean ± standard deviation of {seeds}"
    )
}

fn curve(group: &Group<'_>, colour: Colour) -> Curve {
    let points = |run: &&RunData| -> Vec<Point> {
        run.epochs.iter().map(|e| (f64::from(e.epoch), e.val.top1)).collect()
    };
    let remark = group.val_text();
    if let [run] = group.runs[..] {
        return Curve { remark, ..Curve::new(group.name, colour, points(&run).into_iter()) };
    }
    let behind: Vec<Vec<Point>> = group.runs.iter().map(points).collect();
    let mut by_epoch: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for record in group.runs.iter().flat_map(|run| &run.epochs).filter(|e| e.val.top1.is_finite()) {
        by_epoch.entry(record.epoch).or_default().push(record.val.top1);
    }
    let mean = |(epoch, values): (u32, Vec<f64>)| {
        (f64::from(epoch), values.iter().sum::<f64>() / values.len() as f64)
    };
    Curve { remark, behind, ..Curve::new(group.name, colour, by_epoch.into_iter().map(mean)) }
}

/// A colour for each group; where there are more groups than colours, one for each recipe.
fn colours(groups: &[Group<'_>]) -> Vec<Colour> {
    let mut seen = Vec::new();
    let of_place = |place: usize| PALETTE[place % PALETTE.len()];
    if groups.len() <= PALETTE.len() {
        return (0..groups.len()).map(of_place).collect();
    }
    let places = groups.iter().map(|group| {
        let recipe = group.runs.first().map(|run| run.summary.recipe);
        seen.iter().position(|&r| r == recipe).unwrap_or_else(|| {
            seen.push(recipe);
            seen.len() - 1
        })
    });
    places.map(of_place).collect()
}
