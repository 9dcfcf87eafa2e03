//! The validation accuracy of several runs in one picture.

use super::axes::{
    Axis, Frame, LEGEND_LINE, Swatch, accuracy_range, draw_swatch, number, percent, percent_number, ticks,
    whole_ticks,
};
use super::curves::epoch_range;
use super::font::Typeface;
use super::sheet::{Anchor, Colour, INK, PALETTE, Point, SMALL_SIZE, Sheet};
use crate::report::data::EpochRecord;
use crate::report::{Comparison, RunData};

/// Where the key begins, and its width.
const KEY: f64 = 650.0;
const KEY_WIDTH: f64 = 250.0;

/// Draws a curve per run, the best first in the key.
pub fn draw<'a>(comparison: &Comparison, runs: &[RunData], font: &'a Typeface) -> Sheet<'a> {
    let mut order: Vec<&RunData> = runs.iter().collect();
    order.sort_by(|a, b| b.summary.val.top1.total_cmp(&a.summary.val.top1));
    let colours = colours(&order);
    let plain = comparison.rows.iter().find(|row| row.val_top1.is_none());
    let lines = runs.len() + usize::from(plain.is_some());
    let mut sheet = Sheet::new(font, 920.0, (110.0 + LEGEND_LINE * lines as f64).max(460.0));
    sheet.heading("Validation accuracy", "of every run; in the key that of the kept epoch");
    let x = epoch_range(runs.iter().flat_map(|run| &run.epochs));
    let values = runs.iter().flat_map(|run| run.epochs.iter().map(|e| e.val.top1));
    let y = accuracy_range(values.chain(plain.map(|row| row.test_top1)));
    let frame = Frame { left: 66.0, right: KEY - 24.0, top: 66.0, bottom: sheet.height - 50.0, x, y };
    frame.axes(
        &mut sheet,
        &Axis { title: "epoch", ticks: whole_ticks(x, 12), label: number },
        &Axis { title: "top-1 accuracy (%)", ticks: ticks(y, 6), label: percent_number },
    );
    // The best on top.
    for (run, colour) in order.iter().zip(&colours).rev() {
        let curve = |e: &EpochRecord| (f64::from(e.epoch), e.val.top1);
        let points: Vec<Point> = run.epochs.iter().map(curve).collect();
        frame.curve(&mut sheet, &points, 1.75, *colour);
    }
    for (place, (run, colour)) in order.iter().zip(&colours).enumerate() {
        key_line(&mut sheet, place, Swatch::Line(*colour), (&run.name, run.summary.val.top1));
    }
    if let Some(plain) = plain {
        let height = frame.at(x.0, plain.test_top1).1;
        sheet.dashes((frame.left, height), (frame.right, height), 1.25, INK);
        let name = format!("plain CLIP, {} split", comparison.split);
        key_line(&mut sheet, order.len(), Swatch::Dashes(INK), (&name, plain.test_top1));
    }
    sheet
}

/// A colour for each run; where there are more runs than colours, one for each recipe.
fn colours(runs: &[&RunData]) -> Vec<Colour> {
    let mut seen = Vec::new();
    let of_place = |place: usize| PALETTE[place % PALETTE.len()];
    if runs.len() <= PALETTE.len() {
        return (0..runs.len()).map(of_place).collect();
    }
    let places = runs.iter().map(|run| {
        let recipe = run.summary.recipe;
        seen.iter().position(|&r| r == recipe).unwrap_or_else(|| {
            seen.push(recipe);
            seen.len() - 1
        })
    });
    places.map(of_place).collect()
}

fn key_line(sheet: &mut Sheet<'_>, place: usize, swatch: Swatch, (name, top1): (&str, f64)) {
    let y = 72.0 + LEGEND_LINE * place as f64;
    draw_swatch(sheet, swatch, (KEY, y));
    let name = sheet.font.shorten(name, SMALL_SIZE, KEY_WIDTH - 25.0 - 50.0);
    sheet.text(&name, (KEY + 25.0, y), SMALL_SIZE, INK, Anchor::Start);
    sheet.text(&percent(top1), (KEY + KEY_WIDTH, y), SMALL_SIZE, INK, Anchor::End);
}
