//! The techniques of a comparison beside each other and beside what others published.

use super::axes::{LEGEND_LINE, Swatch, draw_spread, legend, percent_number};
use super::font::Typeface;
use super::group::{mean_and_deviation, seeds_text};
use super::sheet::{
    Anchor, BLUE, Colour, EDGE, GRID, INK, MUTED, Point, RED, SKY, SMALL_SIZE, Sheet, TEXT_SIZE,
};
use crate::report::Comparison;
use crate::report::compare::{ComparisonRow, MeanRow, PLAIN, Published};

const WIDTH: f64 = 920.0;
const LEFT: f64 = 210.0;
/// Right edge of the last column of values.
const PUBLISHED: f64 = 900.0;
const ROW: f64 = 42.0;
const BAR: f64 = 13.0;

/// Where the bars end, and the right edges of the columns of values.
#[derive(Debug, Clone, Copy)]
struct Columns {
    right: f64,
    test: f64,
    val: f64,
}

const NARROW: Columns = Columns { right: 680.0, test: 745.0, val: 812.0 };
/// With room for deviations.
const WIDE: Columns = Columns { right: 620.0, test: 718.0, val: 808.0 };

impl Columns {
    fn place(self, share: f64) -> f64 {
        LEFT + (self.right - LEFT) * share.clamp(0.0, 1.0)
    }
}

/// A fraction, and its deviation where it is a mean of several.
#[derive(Debug, Clone, Copy)]
struct Value {
    mean: f64,
    std: Option<f64>,
}

/// What a row of the picture shows.
struct Row<'a> {
    name: &'a str,
    /// In small letters below the name.
    remark: Vec<String>,
    test: Value,
    val: Option<Value>,
    published: Option<&'a Published>,
    /// Whether it is plain CLIP.
    plain: bool,
}

impl<'a> Row<'a> {
    fn run(row: &'a ComparisonRow) -> Self {
        let value = |mean| Value { mean, std: None };
        Row {
            name: &row.name,
            remark: other_recipe(&row.name, &row.recipe),
            test: value(row.test_top1),
            val: row.val_top1.map(value),
            published: row.published.as_ref(),
            plain: row.seed.is_none() && row.name == PLAIN,
        }
    }

    /// `seeds`: whether their number is to be said.
    fn mean(row: &'a MeanRow, seeds: bool) -> Self {
        let mut remark = other_recipe(&row.name, &row.recipe);
        remark.extend(seeds.then(|| seeds_text(std::slice::from_ref(row))));
        Row {
            name: &row.name,
            remark,
            test: Value { mean: row.mean.test_top1, std: row.std.map(|std| std.test_top1) },
            val: Some(Value { mean: row.mean.val_top1, std: row.std.map(|std| std.val_top1) }),
            published: row.published.as_ref(),
            plain: false,
        }
    }
}

fn other_recipe(name: &str, recipe: &str) -> Vec<String> {
    if recipe == name { Vec::new() } else { vec![recipe.to_owned()] }
}

/// The rows in the order of the comparison; a mean where its first run was.
fn rows(comparison: &Comparison) -> Vec<Row<'_>> {
    let uneven = comparison.means.windows(2).any(|pair| pair[0].seeds.len() != pair[1].seeds.len());
    let mut rows = Vec::new();
    for row in &comparison.rows {
        match comparison.mean_of(&row.name) {
            None => rows.push(Row::run(row)),
            Some(mean) if mean.runs.first() == Some(&row.name) => rows.push(Row::mean(mean, uneven)),
            Some(_) => {}
        }
    }
    rows
}

/// Draws test and validation accuracy of every technique: of the runs, or of their means where there are some.
pub fn draw<'a>(comparison: &Comparison, font: &'a Typeface) -> Sheet<'a> {
    let (rows, several) = (rows(comparison), !comparison.means.is_empty());
    let columns = if several { WIDE } else { NARROW };
    let both = comparison.split == "test";
    // What others report of their test split says nothing of another.
    let published = both && rows.iter().any(|row| row.published.is_some());
    let top = 126.0;
    let bottom = top + ROW * rows.len() as f64 + 6.0;
    let mut sheet = Sheet::new(font, WIDTH, bottom + 48.0);
    draw_heading(&mut sheet, comparison);
    draw_legend(&mut sheet, columns, both, several, published);
    for tick in 0..=5 {
        let x = columns.place(f64::from(tick) / 5.0);
        sheet.line(&[(x, top), (x, bottom)], 0.75, GRID);
        sheet.text(&(20 * tick).to_string(), (x, bottom + 11.0), SMALL_SIZE, MUTED, Anchor::Middle);
    }
    draw_column_titles(&mut sheet, columns, top - 11.0, both, published);
    for (i, row) in rows.iter().enumerate() {
        draw_row(&mut sheet, columns, top + 3.0 + ROW * (i as f64 + 0.5), row, both);
    }
    if let Some(plain) = rows.iter().find(|row| row.plain) {
        let x = columns.place(plain.test.mean);
        sheet.dashes((x, top), (x, bottom), 1.25, INK);
    }
    sheet.line(&[(LEFT, top), (LEFT, bottom)], 0.75, EDGE);
    let middle = (LEFT + columns.right) / 2.0;
    sheet.text("top-1 accuracy (%)", (middle, bottom + 31.0), TEXT_SIZE, INK, Anchor::Middle);
    sheet
}

fn draw_heading(sheet: &mut Sheet<'_>, comparison: &Comparison) {
    let classes = comparison.classes;
    if comparison.means.is_empty() {
        sheet.heading("Techniques", &format!("top-1 accuracy, {classes} classes"));
    } else {
        let title = format!("Techniques, means of {}", seeds_text(&comparison.means));
        sheet.heading(&title, &format!("top-1 accuracy ± standard deviation, {classes} classes"));
    }
}

fn draw_legend(sheet: &mut Sheet<'_>, columns: Columns, both: bool, several: bool, published: bool) {
    let mut entries = vec![(Swatch::Bar(BLUE), if both { "test" } else { "validation" }.to_owned())];
    if both {
        entries.push((Swatch::Bar(SKY), "validation".to_owned()));
    }
    entries.push((Swatch::Dashes(INK), PLAIN.to_owned()));
    if several {
        entries.push((Swatch::Spread, "± standard deviation".to_owned()));
    }
    legend(sheet, (LEFT, 72.0), columns.right, &entries);
    if published {
        let y = 72.0 + LEGEND_LINE;
        draw_range(sheet, (LEFT + 1.0, y), LEFT + 19.0);
        let text = "published elsewhere for the same split, lowest to highest";
        sheet.text(text, (LEFT + 25.0, y), SMALL_SIZE, INK, Anchor::Start);
    }
}

fn draw_column_titles(sheet: &mut Sheet<'_>, columns: Columns, y: f64, both: bool, published: bool) {
    let first = if both { "test" } else { "validation" };
    sheet.text(first, (columns.test, y), SMALL_SIZE, MUTED, Anchor::End);
    if both {
        sheet.text("validation", (columns.val, y), SMALL_SIZE, MUTED, Anchor::End);
    }
    if published {
        sheet.text("published", (PUBLISHED, y), SMALL_SIZE, MUTED, Anchor::End);
    }
}

/// A row around the height `y`.
fn draw_row(sheet: &mut Sheet<'_>, columns: Columns, y: f64, row: &Row<'_>, both: bool) {
    let name = sheet.font.shorten(row.name, TEXT_SIZE, LEFT - 30.0);
    if row.remark.is_empty() {
        sheet.text(&name, (LEFT - 8.0, y), TEXT_SIZE, INK, Anchor::End);
    } else {
        sheet.text(&name, (LEFT - 8.0, y - 7.0), TEXT_SIZE, INK, Anchor::End);
        let remark = sheet.font.shorten(&row.remark.join(", "), SMALL_SIZE, LEFT - 30.0);
        sheet.text(&remark, (LEFT - 8.0, y + 8.0), SMALL_SIZE, MUTED, Anchor::End);
    }
    let val = row.val.filter(|_| both);
    let test_y = if val.is_some() { y - 0.5 - BAR / 2.0 } else { y };
    let val_y = y + 0.5 + BAR / 2.0;
    draw_bar(sheet, columns, test_y, row.test, BLUE);
    draw_value(sheet, (columns.test, test_y), row.test);
    if let Some(val) = val {
        draw_bar(sheet, columns, val_y, val, SKY);
        draw_value(sheet, (columns.val, val_y), val);
    }
    if let Some(published) = row.published.filter(|_| both) {
        draw_published(sheet, columns, published, test_y, val.map(|_| val_y));
    }
    draw_deviation(sheet, columns, test_y, row.test);
    if let Some(val) = val {
        draw_deviation(sheet, columns, val_y, val);
    }
}

fn draw_bar(sheet: &mut Sheet<'_>, columns: Columns, y: f64, value: Value, colour: Colour) {
    sheet.area((LEFT, y - BAR / 2.0), (columns.place(value.mean), y + BAR / 2.0), colour);
}

fn draw_value(sheet: &mut Sheet<'_>, at: Point, value: Value) {
    sheet.text(&mean_and_deviation(value.mean, value.std), at, SMALL_SIZE, INK, Anchor::End);
}

/// An error bar, open where it reaches beyond the axis.
fn draw_deviation(sheet: &mut Sheet<'_>, columns: Columns, y: f64, value: Value) {
    let Some(std) = value.std else { return };
    let [low, high] = [value.mean - std, value.mean + std];
    draw_spread(sheet, (columns.place(low), y), columns.place(high), [low >= 0.0, high <= 1.0]);
}

fn draw_published(
    sheet: &mut Sheet<'_>,
    columns: Columns,
    published: &Published,
    test_y: f64,
    val_y: Option<f64>,
) {
    let [low, high] = published.test_top1;
    draw_range(sheet, (columns.place(low), test_y), columns.place(high));
    let (from, to) = (percent_number(low), percent_number(high));
    let text = if low == high { format!("{to} %") } else { format!("{from}–{to} %") };
    sheet.text(&text, (PUBLISHED, test_y), SMALL_SIZE, INK, Anchor::End);
    if let (Some(val), Some(y)) = (published.val_top1, val_y) {
        draw_range(sheet, (columns.place(val), y), columns.place(val));
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
