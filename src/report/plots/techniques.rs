//! The techniques of a comparison beside each other and beside what others published.

use super::axes::{LEGEND_LINE, Swatch, legend, percent, percent_number};
use super::font::Typeface;
use super::sheet::{
    Anchor, BLUE, Colour, EDGE, GRID, INK, MUTED, Point, RED, SKY, SMALL_SIZE, Sheet, TEXT_SIZE,
};
use crate::report::Comparison;
use crate::report::compare::{ComparisonRow, Published};

const WIDTH: f64 = 920.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 680.0;
/// Right edges of the columns of values.
const TEST: f64 = 745.0;
const VAL: f64 = 812.0;
const PUBLISHED: f64 = 900.0;
const ROW: f64 = 42.0;
const BAR: f64 = 13.0;

/// Draws test and validation accuracy of every row.
pub fn draw<'a>(comparison: &Comparison, font: &'a Typeface) -> Sheet<'a> {
    let both = comparison.split == "test";
    // What others report of their test split says nothing of another.
    let published = both && comparison.rows.iter().any(|row| row.published.is_some());
    let top = 126.0;
    let bottom = top + ROW * comparison.rows.len() as f64 + 6.0;
    let mut sheet = Sheet::new(font, WIDTH, bottom + 48.0);
    let subtitle = format!("top-1 accuracy, {} classes", comparison.classes);
    sheet.heading("Techniques", &subtitle);
    draw_legend(&mut sheet, both, published);
    for tick in 0..=5 {
        let x = place(f64::from(tick) / 5.0);
        sheet.line(&[(x, top), (x, bottom)], 0.75, GRID);
        sheet.text(&(20 * tick).to_string(), (x, bottom + 11.0), SMALL_SIZE, MUTED, Anchor::Middle);
    }
    let first = if both { "test" } else { "validation" };
    sheet.text(first, (TEST, top - 11.0), SMALL_SIZE, MUTED, Anchor::End);
    if both {
        sheet.text("validation", (VAL, top - 11.0), SMALL_SIZE, MUTED, Anchor::End);
    }
    if published {
        sheet.text("published", (PUBLISHED, top - 11.0), SMALL_SIZE, MUTED, Anchor::End);
    }
    for (i, row) in comparison.rows.iter().enumerate() {
        draw_row(&mut sheet, top + 3.0 + ROW * (i as f64 + 0.5), row, both);
    }
    if let Some(plain) = comparison.rows.iter().find(|row| row.val_top1.is_none()) {
        let x = place(plain.test_top1);
        sheet.dashes((x, top), (x, bottom), 1.25, INK);
    }
    sheet.line(&[(LEFT, top), (LEFT, bottom)], 0.75, EDGE);
    let middle = (LEFT + RIGHT) / 2.0;
    sheet.text("top-1 accuracy (%)", (middle, bottom + 31.0), TEXT_SIZE, INK, Anchor::Middle);
    sheet
}

fn place(share: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * share.clamp(0.0, 1.0)
}

fn draw_legend(sheet: &mut Sheet<'_>, both: bool, published: bool) {
    let mut entries = vec![(Swatch::Bar(BLUE), if both { "test" } else { "validation" }.to_owned())];
    if both {
        entries.push((Swatch::Bar(SKY), "validation".to_owned()));
    }
    entries.push((Swatch::Dashes(INK), "plain CLIP".to_owned()));
    legend(sheet, (LEFT, 72.0), RIGHT, &entries);
    if published {
        let y = 72.0 + LEGEND_LINE;
        draw_range(sheet, (LEFT + 1.0, y), LEFT + 19.0);
        let text = "published elsewhere for the same split, lowest to highest";
        sheet.text(text, (LEFT + 25.0, y), SMALL_SIZE, INK, Anchor::Start);
    }
}

/// A row around the height `y`.
fn draw_row(sheet: &mut Sheet<'_>, y: f64, row: &ComparisonRow, both: bool) {
    let name = sheet.font.shorten(&row.name, TEXT_SIZE, LEFT - 30.0);
    if row.recipe == row.name {
        sheet.text(&name, (LEFT - 8.0, y), TEXT_SIZE, INK, Anchor::End);
    } else {
        sheet.text(&name, (LEFT - 8.0, y - 7.0), TEXT_SIZE, INK, Anchor::End);
        let recipe = sheet.font.shorten(&row.recipe, SMALL_SIZE, LEFT - 30.0);
        sheet.text(&recipe, (LEFT - 8.0, y + 8.0), SMALL_SIZE, MUTED, Anchor::End);
    }
    let val = row.val_top1.filter(|_| both);
    let test_y = if val.is_some() { y - 0.5 - BAR / 2.0 } else { y };
    let val_y = y + 0.5 + BAR / 2.0;
    draw_bar(sheet, test_y, row.test_top1, BLUE);
    sheet.text(&percent(row.test_top1), (TEST, test_y), SMALL_SIZE, INK, Anchor::End);
    if let Some(val) = val {
        draw_bar(sheet, val_y, val, SKY);
        sheet.text(&percent(val), (VAL, val_y), SMALL_SIZE, INK, Anchor::End);
    }
    if let Some(published) = row.published.as_ref().filter(|_| both) {
        draw_published(sheet, published, test_y, val.map(|_| val_y));
    }
}

fn draw_bar(sheet: &mut Sheet<'_>, y: f64, share: f64, colour: Colour) {
    sheet.area((LEFT, y - BAR / 2.0), (place(share), y + BAR / 2.0), colour);
}

fn draw_published(sheet: &mut Sheet<'_>, published: &Published, test_y: f64, val_y: Option<f64>) {
    let [low, high] = published.test_top1;
    draw_range(sheet, (place(low), test_y), place(high));
    let (from, to) = (percent_number(low), percent_number(high));
    let text = if low == high { format!("{to} %") } else { format!("{from}–{to} %") };
    sheet.text(&text, (PUBLISHED, test_y), SMALL_SIZE, INK, Anchor::End);
    if let (Some(val), Some(y)) = (published.val_top1, val_y) {
        draw_range(sheet, (place(val), y), place(val));
        sheet.text(&format!("{} %", percent_number(val)), (PUBLISHED, y), SMALL_SIZE, INK, Anchor::End);
    }
}

/// A range as a line between two strokes; one stroke where both ends are the same.
fn draw_range(sheet: &mut Sheet<'_>, (low, y): Point, high: f64) {
    sheet.line(&[(low, y), (high, y)], 2.0, RED);
    for x in [low, high] {
        sheet.line(&[(x, y - 5.5), (x, y + 5.5)], 2.0, RED);
    }
}
