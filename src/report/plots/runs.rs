//! The validation accuracy of several runs in one picture.

use super::axes::{
    Axis, Frame, LEGEND_LINE, Swatch, accuracy_range, draw_swatch, number, percent, percent_number, ticks,
    whole_ticks,
};
use super::curves::epoch_range;
use super::font::Typeface;
use super::group::{Group, seeds_text};
use super::sheet::{Anchor, Colour, INK, PALETTE, Point, SMALL_SIZE, Sheet};
use crate::report::compare::PLAIN;
use crate::report::data::EpochRecord;
use crate::report::{Comparison, RunData};

/// Where the key begins, and its width.
const KEY: f64 = 650.0;
const KEY_WIDTH: f64 = 250.0;

/// Draws a curve per run and a line in the key per group, the best first.
pub fn draw<'a>(comparison: &Comparison, groups: &[Group<'_>], font: &'a Typeface) -> Sheet<'a> {
    let colours = colours(groups);
    let plain = comparison.plain().and_then(|row| row.val_top1);
    let lines = groups.len() + usize::from(plain.is_some());
    let mut sheet = Sheet::new(font, 920.0, (110.0 + LEGEND_LINE * lines as f64).max(460.0));
    sheet.heading("Validation accuracy", &subtitle(comparison));
    let runs = || groups.iter().flat_map(|group| group.runs.iter().copied());
    let x = epoch_range(runs().flat_map(|run| &run.epochs));
    let values = runs().flat_map(|run| run.epochs.iter().map(|e| e.val.top1));
    let y = accuracy_range(values.chain(plain));
    let frame = Frame { left: 66.0, right: KEY - 24.0, top: 66.0, bottom: sheet.height - 50.0, x, y };
    frame.axes(
        &mut sheet,
        &Axis { title: "epoch", ticks: whole_ticks(x, 12), label: number },
        &Axis { title: "top-1 accuracy (%)", ticks: ticks(y, 6), label: percent_number },
    );
    // The best on top.
    for (group, colour) in groups.iter().zip(&colours).rev() {
        let width = if group.runs.len() > 1 { 1.0 } else { 1.75 };
        group.runs.iter().rev().for_each(|run| draw_run(&mut sheet, &frame, run, width, *colour));
    }
    for (place, (group, colour)) in groups.iter().zip(&colours).enumerate() {
        key_line(&mut sheet, place, Swatch::Line(*colour), group.name, &group.val_text());
    }
    if let Some(plain) = plain {
        let height = frame.at(x.0, plain).1;
        sheet.dashes((frame.left, height), (frame.right, height), 1.25, INK);
        key_line(&mut sheet, groups.len(), Swatch::Dashes(INK), PLAIN, &percent(plain));
    }
    sheet
}

fn subtitle(comparison: &Comparison) -> String {
    if comparison.means.is_empty() {
        return "of every run; in the key that of the kept epoch".into();
    }
    let seeds = seeds_text(&comparison.means);
    format!("of every run; in the key that of the kept epochs, mean ± standard deviation of {seeds}")
}

fn draw_run(sheet: &mut Sheet<'_>, frame: &Frame, run: &RunData, width: f64, colour: Colour) {
    let point = |e: &EpochRecord| (f64::from(e.epoch), e.val.top1);
    let points: Vec<Point> = run.epochs.iter().map(point).collect();
    frame.curve(sheet, &points, width, colour);
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

fn key_line(sheet: &mut Sheet<'_>, place: usize, swatch: Swatch, name: &str, value: &str) {
    let y = 72.0 + LEGEND_LINE * place as f64;
    draw_swatch(sheet, swatch, (KEY, y));
    let room = KEY_WIDTH - 25.0 - 10.0 - sheet.font.width(value, SMALL_SIZE).max(40.0);
    let name = sheet.font.shorten(name, SMALL_SIZE, room);
    sheet.text(&name, (KEY + 25.0, y), SMALL_SIZE, INK, Anchor::Start);
    sheet.text(value, (KEY + KEY_WIDTH, y), SMALL_SIZE, INK, Anchor::End);
}
