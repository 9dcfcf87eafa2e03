//! The techniques of a comparison beside each other and beside what others published.

use super::axes::{Entry, Swatch, draw_range, draw_spread, legend, percent_number};
use super::group::{mean_and_deviation, seeds_text};
use super::line_chart::WIDTH;
use super::sheet::{Anchor, BLUE, Colour, EDGE, GRID, INK, LINE, MUTED, SKY, SMALL_SIZE, Sheet, TEXT_SIZE};
use super::typeface::Typeface;
use crate::report::Comparison;
use crate::report::compare::{ComparisonRow, MeanRow, PLAIN, Published};

/// Left and right edge of the picture's content.
const LEFT: f64 = 14.0;
const RIGHT: f64 = 388.0;
/// Width of the column of values, and of what was published.
const VALUES: f64 = 94.0;
const PUBLISHED: f64 = 84.0;
/// Height of a bar, and of the space below a row.
const BAR: f64 = 14.0;
const SPACE: f64 = 12.0;

/// Where bars of 100 % end, and the right edge of the values.
#[derive(Debug, Clone, Copy)]
struct Columns {
    bars: f64,
    values: f64,
}

impl Columns {
    fn of(rows: &[Row<'_>]) -> Self {
        let published = rows.iter().any(|row| row.published.is_some());
        let values = if published { RIGHT - PUBLISHED } else { RIGHT };
        Columns { bars: values - VALUES, values }
    }

    /// Where a share is, those beyond the axis at its edge.
    fn place(self, share: f64) -> f64 {
        LEFT + (self.bars - LEFT) * share.clamp(0.0, 1.0)
    }
}

/// A fraction, and its deviation where it is a mean of several.
#[derive(Debug, Clone, Copy)]
struct Value {
    mean: f64,
    std: Option<f64>,
}

impl Value {
    fn text(self) -> String {
        mean_and_deviation(self.mean, self.std)
    }
}

struct Row<'a> {
    name: &'a str,
    /// In small letters behind the name.
    remark: String,
    test: Value,
    val: Option<Value>,
    published: Option<&'a Published>,
    /// Whether it is plain CLIP.
    plain: bool,
}

impl<'a> Row<'a> {
    fn run(row: &'a ComparisonRow, both: bool) -> Self {
        let value = |mean| Value { mean, std: None };
        Row {
            name: &row.name,
            remark: remark(&row.name, &row.recipe, None),
            test: value(row.test_top1),
            val: row.val_top1.filter(|_| both).map(value),
            published: row.published.as_ref().filter(|_| both),
            plain: row.seed.is_none() && row.name == PLAIN,
        }
    }

    fn mean(row: &'a MeanRow, both: bool) -> Self {
        let val = Value { mean: row.mean.val_top1, std: row.std.map(|std| std.val_top1) };
        Row {
            name: &row.name,
            remark: remark(&row.name, &row.recipe, Some(seeds_text(std::slice::from_ref(row)))),
            test: Value { mean: row.mean.test_top1, std: row.std.map(|std| std.test_top1) },
            val: Some(val).filter(|_| both),
            published: row.published.as_ref().filter(|_| both),
            plain: false,
        }
    }

    /// Text that the page shows for the row.
    fn text(&self) -> String {
        let mut text = format!("{}: {}", self.name, self.test.text());
        if !self.remark.is_empty() {
            text += &format!(", {}", self.remark);
        }
        if let Some(val) = self.val {
            text += &format!("\nvalidation: {}", val.text());
        }
        if let Some(published) = self.published {
            text += &format!("\npublished: {}", range_text(published));
        }
        text
    }
}

fn remark(name: &str, recipe: &str, seeds: Option<String>) -> String {
    let recipe = (recipe != name).then(|| recipe.to_owned());
    recipe.into_iter().chain(seeds).collect::<Vec<_>>().join(", ")
}

/// Text of the range that others report of the test split.
fn range_text(published: &Published) -> String {
    let [low, high] = published.test_top1;
    let (from, to) = (percent_number(low), percent_number(high));
    if low == high { format!("{to} %") } else { format!("{from}–{to} %") }
}

/// The rows in the order of the comparison; a mean where its first run was. What others report of their test split
/// says nothing of another.
fn rows(comparison: &Comparison, both: bool) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for row in &comparison.rows {
        match comparison.mean_of(&row.name) {
            None => rows.push(Row::run(row, both)),
            Some(mean) if mean.runs.first() == Some(&row.name) => rows.push(Row::mean(mean, both)),
            Some(_) => {}
        }
    }
    rows
}

/// Title and subtitle of the picture.
pub fn heading(comparison: &Comparison) -> (String, String) {
    let classes = comparison.classes;
    if comparison.means.is_empty() {
        ("Techniques".into(), format!("top-1 accuracy, {classes} classes"))
    } else {
        let title = format!("Techniques, means of {}", seeds_text(&comparison.means));
        (title, format!("top-1 accuracy ± standard deviation, {classes} classes"))
    }
}

/// Draws test and validation accuracy of every technique: of the runs, or of their means where there are some.
pub fn draw<'a>(comparison: &Comparison, font: &'a Typeface) -> Sheet<'a> {
    let both = comparison.split == "test";
    let rows = rows(comparison, both);
    let columns = Columns::of(&rows);
    let mut sheet = Sheet::new(font, WIDTH, 0.0);
    let top = draw_legend(&mut sheet, comparison, &rows, both) + 12.0;
    let heights: Vec<f64> = rows.iter().map(|row| names(font, row).1 + bars_height(row) + SPACE).collect();
    let bottom = top + heights.iter().sum::<f64>();
    sheet.height = (bottom + 46.0).ceil();
    for tick in 0..=5 {
        let x = columns.place(f64::from(tick) / 5.0);
        sheet.line(&[(x, top), (x, bottom)], 0.75, GRID);
        sheet.text(&(20 * tick).to_string(), (x, bottom + 11.0), SMALL_SIZE, MUTED, Anchor::Middle);
    }
    let plain = rows.iter().find(|row| row.plain).map(|row| columns.place(row.test.mean));
    let mut y = top;
    for (row, height) in rows.iter().zip(&heights) {
        draw_row(&mut sheet, columns, y, row);
        if let Some(x) = plain {
            // Not through the names.
            let end = y + height - SPACE + 3.0;
            sheet.dashes((x, end - bars_height(row) - 6.0), (x, end), 1.25, INK);
        }
        sheet.spot(&row.text(), (LEFT - 6.0, y), (RIGHT + 6.0, y + height - 2.0), y == top);
        y += height;
    }
    sheet.line(&[(LEFT, top), (LEFT, bottom)], 0.75, EDGE);
    let middle = (LEFT + columns.bars) / 2.0;
    sheet.text("top-1 accuracy (%)", (middle, bottom + 31.0), TEXT_SIZE, INK, Anchor::Middle);
    sheet
}

fn draw_legend(sheet: &mut Sheet<'_>, comparison: &Comparison, rows: &[Row<'_>], both: bool) -> f64 {
    let mut entries = vec![Entry::new(Swatch::Bar(BLUE), if both { "test" } else { "validation" })];
    entries.extend(both.then(|| Entry::new(Swatch::Bar(SKY), "validation")));
    entries.push(Entry::new(Swatch::Dashes(INK), PLAIN));
    entries
        .extend((!comparison.means.is_empty()).then(|| Entry::new(Swatch::Spread, "± standard deviation")));
    let published = rows.iter().any(|row| row.published.is_some());
    let text = "published elsewhere for the same split, lowest to highest";
    entries.extend(published.then(|| Entry::new(Swatch::Range, text)));
    legend(sheet, (LEFT, 10.0), RIGHT, &entries)
}

/// The lines of a row's name, which its remark follows, and the height of both.
fn names(font: &Typeface, row: &Row<'_>) -> (Vec<String>, f64) {
    let lines = font.lines(row.name, TEXT_SIZE, RIGHT - LEFT - 6.0);
    let height = 6.0 + (lines.len() + usize::from(remark_below(font, row, &lines))) as f64 * LINE * TEXT_SIZE;
    (lines, height)
}

/// Whether there is no room for the remark behind the name.
fn remark_below(font: &Typeface, row: &Row<'_>, lines: &[String]) -> bool {
    let last = lines.last().map_or(0.0, |line| font.width(line, TEXT_SIZE));
    !row.remark.is_empty() && LEFT + last + 16.0 + font.width(&row.remark, SMALL_SIZE) > RIGHT
}

fn bars_height(row: &Row<'_>) -> f64 {
    if row.val.is_some() { 2.0 * BAR } else { BAR }
}

/// A row below the height `y`: its name, and below that its bars with their values.
fn draw_row(sheet: &mut Sheet<'_>, columns: Columns, y: f64, row: &Row<'_>) {
    let (lines, height) = names(sheet.font, row);
    let below = remark_below(sheet.font, row, &lines);
    for (i, line) in lines.iter().enumerate() {
        let at = (LEFT + 6.0, y + 9.0 + i as f64 * LINE * TEXT_SIZE);
        sheet.text(line, at, TEXT_SIZE, INK, Anchor::Start);
        if i + 1 == lines.len() {
            let at = match below {
                true => (at.0, at.1 + LINE * TEXT_SIZE),
                false => (at.0 + sheet.font.width(line, TEXT_SIZE) + 8.0, at.1),
            };
            sheet.text(&row.remark, at, SMALL_SIZE, MUTED, Anchor::Start);
        }
    }
    let test_y = y + height + BAR / 2.0;
    draw_bar(sheet, columns, test_y, row.test, BLUE);
    let val_y = row.val.map(|val| {
        draw_bar(sheet, columns, test_y + BAR, val, SKY);
        test_y + BAR
    });
    if let Some(published) = row.published {
        let [low, high] = published.test_top1;
        draw_published(sheet, columns, (low, high), test_y, &range_text(published));
        if let (Some(val), Some(y)) = (published.val_top1, val_y) {
            draw_published(sheet, columns, (val, val), y, &format!("{} %", percent_number(val)));
        }
    }
    draw_deviation(sheet, columns, test_y, row.test);
    if let (Some(val), Some(y)) = (row.val, val_y) {
        draw_deviation(sheet, columns, y, val);
    }
}

fn draw_bar(sheet: &mut Sheet<'_>, columns: Columns, y: f64, value: Value, colour: Colour) {
    sheet.area((LEFT, y - BAR / 2.0 + 0.5), (columns.place(value.mean), y + BAR / 2.0 - 0.5), colour);
    sheet.text(&value.text(), (columns.values, y), SMALL_SIZE, INK, Anchor::End);
}

/// An error bar, open where it reaches beyond the axis.
fn draw_deviation(sheet: &mut Sheet<'_>, columns: Columns, y: f64, value: Value) {
    let Some(std) = value.std else { return };
    let [low, high] = [value.mean - std, value.mean + std];
    draw_spread(sheet, (columns.place(low), y), columns.place(high), [low >= 0.0, high <= 1.0]);
}

fn draw_published(sheet: &mut Sheet<'_>, columns: Columns, (low, high): (f64, f64), y: f64, text: &str) {
    draw_range(sheet, (columns.place(low), y), columns.place(high));
    sheet.text(text, (RIGHT, y), SMALL_SIZE, INK, Anchor::End);
}
