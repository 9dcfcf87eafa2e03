//! The confusion matrix, readable from 2 classes to some hundreds.

use super::axes::{Entry, Swatch, legend};
use super::names::ClassName;
use super::sheet::{
    Anchor, BLUE, Colour, EDGE, GRID, INK, Letters, MUTED, Point, RED, SMALL_SIZE, Sheet, TEXT_SIZE,
};
use super::typeface::Typeface;
use crate::report::RunData;
use crate::train::metrics::Evaluation;

/// Space between names and matrix.
const GAP: f64 = 6.0;
/// The width in which names are broken into lines where that helps, and the most that they may take.
const BROKEN: f64 = 150.0;
const LONGEST: f64 = 460.0;
/// The smallest cell whose row has room for a name.
const NAMED: f64 = 9.0;
const MARGIN: f64 = 20.0;
const SCALE_WIDTH: f64 = 130.0;

/// Where everything is.
struct Layout {
    classes: usize,
    cell: f64,
    /// The names and their size; none where numbers stand for them.
    names: Option<(Vec<ClassName>, f64)>,
    left: f64,
    top: f64,
    below: f64,
    /// How much the cells of no share and of a whole one cover; what has its count in it stays light.
    opacity: (f64, f64),
}

impl Layout {
    fn of(cell: f64, names: Option<(Vec<ClassName>, f64)>, classes: usize, font: &Typeface) -> Self {
        let longest = |(names, size): &(Vec<ClassName>, f64)| {
            names.iter().map(|name| name.width(font, *size)).fold(0.0, f64::max)
        };
        let below = names.as_ref().map_or(24.0, longest) + GAP;
        let opacity = if digits(cell) >= LEAST_DIGITS { (0.2, 0.65) } else { (0.4, 1.0) };
        Layout { classes, cell, names, left: MARGIN + 22.0 + below, top: 8.0, below, opacity }
    }

    /// With the names where they have room.
    fn named(font: &Typeface, names: &[String]) -> Self {
        let n = names.len().max(1) as f64;
        let cell = if n <= 150.0 { (560.0 / n).clamp(10.0, 72.0) } else { (1400.0 / n).max(2.0) };
        let size = (0.85 * cell).min(SMALL_SIZE);
        let width = ClassName::width_for(font, names, size, cell, BROKEN);
        let written =
            (cell >= NAMED && width <= LONGEST).then(|| (ClassName::all(font, names, size, width), size));
        Layout::of(cell, written, names.len(), font)
    }

    fn side(&self) -> f64 {
        self.cell * self.classes as f64
    }

    /// The middle of row or column `class`, counted from the matrix's corner.
    fn middle(&self, class: usize) -> f64 {
        (class as f64 + 0.5) * self.cell
    }

    /// The colour of a cell by its share of the images of its class: single mistakes are still seen.
    fn shade(&self, colour: Colour, share: f64) -> Colour {
        colour.faint(self.opacity.0 + (self.opacity.1 - self.opacity.0) * share.sqrt())
    }
}

/// The smallest digits that can be read, and the size of those in a cell.
const LEAST_DIGITS: f64 = 6.5;

fn digits(cell: f64) -> f64 {
    (0.62 * cell).min(12.0)
}

/// Draws the matrix of the run's evaluation.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let evaluation = &run.evaluation;
    let layout = Layout::named(font, &evaluation.class_names);
    let width = (layout.left + layout.side() + SCALE_WIDTH + MARGIN).max(420.0);
    let bottom = layout.top + layout.side().max(160.0) + layout.below + 40.0;
    let key = Key::of(font, &layout, &evaluation.class_names, width);
    let width = width.max(key.column + 2.0 * MARGIN);
    let mut sheet = Sheet::new(font, width, bottom + key.height());
    draw_cells(&mut sheet, &layout, evaluation);
    draw_names(&mut sheet, &layout, evaluation);
    draw_scale(&mut sheet, &layout);
    key.draw(&mut sheet, bottom);
    sheet
}

/// Draws the matrix for the page, which has the names beside it: small enough for a telephone.
pub(crate) fn draw_numbered<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let evaluation = &run.evaluation;
    let classes = evaluation.class_names.len();
    let largest = if classes > 20 { 640.0 } else { 320.0 };
    let mut layout = Layout::of((largest / classes.max(1) as f64).clamp(6.0, 40.0), None, classes, font);
    layout.left = layout.below + 26.0;
    let right = (layout.left + layout.side()).max(240.0);
    let mut sheet = Sheet::new(font, right + 2.0, 0.0);
    let entries = [(BLUE, "right (the diagonal)"), (RED, "mistakes")]
        .map(|(colour, text)| Entry::new(Swatch::Bar(layout.shade(colour, 1.0)), text));
    layout.top = legend(&mut sheet, (2.0, 10.0), right, &entries) + 4.0;
    sheet.height = (layout.top + layout.side() + layout.below + 26.0).ceil();
    draw_cells(&mut sheet, &layout, evaluation);
    draw_names(&mut sheet, &layout, evaluation);
    sheet
}

fn draw_cells(sheet: &mut Sheet<'_>, layout: &Layout, evaluation: &Evaluation) {
    let (left, top, side, cell) = (layout.left, layout.top, layout.side(), layout.cell);
    // Lines for the eye from a name or number to its cells.
    for i in (0..=layout.classes).step_by(if cell >= NAMED { 1 } else { 10 }) {
        let d = i as f64 * cell;
        sheet.line(&[(left, top + d), (left + side, top + d)], 0.5, GRID);
        sheet.line(&[(left + d, top), (left + d, top + side)], 0.5, GRID);
    }
    let inset = if cell >= NAMED { 0.25 } else { 0.0 };
    let digits = digits(cell);
    for (label, row) in evaluation.confusion.iter().enumerate() {
        let images = row.iter().sum::<u32>().max(1);
        for (predicted, &count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
            let share = f64::from(count) / f64::from(images);
            let (x, y) = (left + predicted as f64 * cell, top + label as f64 * cell);
            let opposite = (x + cell - inset, y + cell - inset);
            let colour = if label == predicted { BLUE } else { RED };
            sheet.area((x + inset, y + inset), opposite, layout.shade(colour, share));
            let text = count.to_string();
            if digits >= LEAST_DIGITS && sheet.font.width(&text, digits) <= cell - 2.0 {
                let middle = (x + cell / 2.0, y + cell / 2.0);
                sheet.digits(&text, middle, digits, INK, Anchor::Middle);
            }
        }
    }
    let square = |sheet: &mut Sheet<'_>, (x, y): Point, side: f64, width, colour| {
        let corners = [(0.0, 0.0), (side, 0.0), (side, side), (0.0, side), (0.0, 0.0)];
        sheet.line(&corners.map(|(dx, dy)| (x + dx, y + dy)), width, colour);
    };
    for class in (0..layout.classes).filter(|&i| cell >= NAMED && evaluation.confusion[i][i] > 0) {
        square(sheet, (left + class as f64 * cell, top + class as f64 * cell), cell, 1.0, BLUE);
    }
    square(sheet, (left, top), side, 0.75, EDGE);
    sheet.field((left, top), (left + side, top + side));
}

fn draw_names(sheet: &mut Sheet<'_>, layout: &Layout, evaluation: &Evaluation) {
    let (left, top, side) = (layout.left, layout.top, layout.side());
    let bottom = top + side;
    // Numbers keep a distance of at least two lines.
    let every = if layout.names.is_some() { 1 } else { ((20.0 / layout.cell) / 5.0).ceil() as usize * 5 };
    for class in 0..layout.classes {
        let colour = if evaluation.classes[class].images == 0 { MUTED } else { INK };
        let middle = layout.middle(class);
        let (row, column) = ((left - GAP, top + middle), (left + middle, bottom + GAP));
        if let Some((names, size)) = &layout.names {
            let letters = Letters { size: *size, colour, anchor: Anchor::End, turned: false };
            names[class].draw(sheet, row, letters);
            names[class].draw(sheet, column, Letters { turned: true, ..letters });
        } else if layout.cell >= NAMED || (class + 1) % every == 0 || class == 0 {
            let number = (class + 1).to_string();
            let size = if layout.cell >= NAMED { SMALL_SIZE.min(layout.cell) } else { SMALL_SIZE };
            sheet.text(&number, row, size, colour, Anchor::End);
            sheet.turned_text(&number, column, size, colour, Anchor::End);
        }
    }
    let across = (left + side / 2.0, bottom + layout.below + 16.0);
    sheet.text("predicted class", across, TEXT_SIZE, INK, Anchor::Middle);
    sheet.turned_text(
        "class",
        (left - layout.below - 16.0, top + side / 2.0),
        TEXT_SIZE,
        INK,
        Anchor::Middle,
    );
}

/// The colours and what they stand for, to the right of the matrix: what is right on the left.
fn draw_scale(sheet: &mut Sheet<'_>, layout: &Layout) {
    let (left, top) = (layout.left + layout.side() + 34.0, layout.top);
    let height = layout.side().clamp(120.0, 300.0);
    const STEPS: usize = 50;
    for (colour, name, x) in [(BLUE, "right (diagonal)", left), (RED, "mistakes", left + 34.0)] {
        for i in 0..STEPS {
            let share = 1.0 - (i as f64 + 0.5) / STEPS as f64;
            let y = |i: usize| top + height * i as f64 / STEPS as f64;
            sheet.area((x, y(i)), (x + 12.0, y(i + 1)), layout.shade(colour, share));
        }
        let corners = [(0.0, 0.0), (12.0, 0.0), (12.0, height), (0.0, height), (0.0, 0.0)];
        sheet.line(&corners.map(|(dx, y)| (x + dx, top + y)), 0.75, EDGE);
        sheet.turned_text(name, (x - 9.0, top + height), SMALL_SIZE, INK, Anchor::Start);
    }
    for tick in 0..=5 {
        let y = top + height * (1.0 - f64::from(tick) / 5.0);
        sheet.digits(&(20 * tick).to_string(), (left + 52.0, y), SMALL_SIZE, MUTED, Anchor::Start);
    }
    sheet.text("white: none", (left - 2.0, top + height + 18.0), SMALL_SIZE, MUTED, Anchor::Start);
    let middle = (left + 86.0, top + height / 2.0);
    let title = if height > 200.0 { "images of the class (%)" } else { "of the class (%)" };
    sheet.turned_text(title, middle, SMALL_SIZE, INK, Anchor::Middle);
}

/// The names that the numbers stand for, in columns under a matrix too large for names.
struct Key {
    names: Vec<ClassName>,
    columns: usize,
    /// Width of a column.
    column: f64,
}

impl Key {
    const LINE: f64 = 12.0;
    const NUMBER: f64 = 28.0;
    /// A longer name makes the picture wider.
    const WIDEST: f64 = 600.0;

    /// In a picture of so many points; empty where the names stand at the matrix.
    fn of(font: &Typeface, layout: &Layout, names: &[String], width: f64) -> Self {
        let names = match layout.names {
            Some(_) => Vec::new(),
            None => ClassName::all(font, names, SMALL_SIZE, Self::WIDEST),
        };
        let longest = names.iter().map(|name| name.width(font, SMALL_SIZE)).fold(0.0, f64::max);
        let column = if names.is_empty() { 0.0 } else { Self::NUMBER + longest.ceil() + 12.0 };
        let columns = (((width - 2.0 * MARGIN) / column.max(1.0)) as usize).max(1);
        Key { names, columns, column }
    }

    /// Names of a column; each takes the height of the highest.
    fn lines(&self) -> (usize, f64) {
        let highest = self.names.iter().map(|name| name.height(SMALL_SIZE)).fold(Self::LINE, f64::max);
        (self.names.len().div_ceil(self.columns), highest)
    }

    fn height(&self) -> f64 {
        let (lines, line) = self.lines();
        if self.names.is_empty() { 0.0 } else { lines as f64 * line + MARGIN }
    }

    fn draw(&self, sheet: &mut Sheet<'_>, top: f64) {
        let (lines, line) = self.lines();
        for (class, name) in self.names.iter().enumerate() {
            let (column, place) = (class / lines, class % lines);
            let at = (MARGIN + column as f64 * self.column, top + place as f64 * line);
            sheet.text(&(class + 1).to_string(), at, SMALL_SIZE, MUTED, Anchor::Start);
            let letters = Letters { size: SMALL_SIZE, colour: INK, anchor: Anchor::Start, turned: false };
            name.draw(sheet, (at.0 + Self::NUMBER, at.1), letters);
        }
    }
}
