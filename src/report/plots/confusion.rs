//! The confusion matrix, readable from 2 classes to some hundreds.

use super::font::Typeface;
use super::names::ClassName;
use super::sheet::{Anchor, Colour, EDGE, GRID, INK, MUTED, PAPER, SMALL_SIZE, Sheet, TEXT_SIZE};
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
const TOP: f64 = 66.0;
const SCALE_WIDTH: f64 = 130.0;

/// Where everything is.
struct Layout {
    classes: usize,
    cell: f64,
    /// The names and their size; none where numbers stand for them.
    names: Option<(Vec<ClassName>, f64)>,
    left: f64,
    below: f64,
}

impl Layout {
    fn of(font: &Typeface, names: &[String]) -> Self {
        let classes = names.len();
        let n = classes.max(1) as f64;
        let cell = if n <= 150.0 { (560.0 / n).clamp(10.0, 72.0) } else { (1400.0 / n).max(2.0) };
        let size = (0.85 * cell).min(SMALL_SIZE);
        let width = ClassName::width_for(font, names, size, cell, BROKEN);
        let written =
            (cell >= NAMED && width <= LONGEST).then(|| (ClassName::all(font, names, size, width), size));
        let longest = |(names, size): &(Vec<ClassName>, f64)| {
            names.iter().map(|name| name.width(font, *size)).fold(0.0, f64::max)
        };
        let below = written.as_ref().map_or(24.0, longest) + GAP;
        Layout { classes, cell, names: written, left: MARGIN + 22.0 + below, below }
    }

    fn side(&self) -> f64 {
        self.cell * self.classes as f64
    }

    /// The middle of row or column `class`, counted from the matrix's corner.
    fn middle(&self, class: usize) -> f64 {
        (class as f64 + 0.5) * self.cell
    }
}

/// Draws the matrix of the run's evaluation.
pub fn draw<'a>(run: &RunData, font: &'a Typeface) -> Sheet<'a> {
    let evaluation = &run.evaluation;
    let layout = Layout::of(font, &evaluation.class_names);
    let title = format!("{}: confusion matrix", run.name);
    let heading = font.width(&title, super::sheet::TITLE_SIZE).min(600.0) + 2.0 * MARGIN;
    let width = (layout.left + layout.side() + SCALE_WIDTH + MARGIN).max(heading).max(420.0);
    let bottom = TOP + layout.side().max(160.0) + layout.below + 40.0;
    let key = Key::of(font, &layout, &evaluation.class_names, width);
    let width = width.max(key.column + 2.0 * MARGIN);
    let mut sheet = Sheet::new(font, width, bottom + key.height());
    let subtitle = format!("{} split, {} images", evaluation.split, evaluation.metrics.images);
    sheet.heading(&title, &subtitle);
    draw_cells(&mut sheet, &layout, evaluation);
    draw_names(&mut sheet, &layout, evaluation);
    draw_scale(&mut sheet, &layout);
    key.draw(&mut sheet, bottom);
    sheet
}

fn draw_cells(sheet: &mut Sheet<'_>, layout: &Layout, evaluation: &Evaluation) {
    let (left, side, cell) = (layout.left, layout.side(), layout.cell);
    if cell >= NAMED {
        // Lines for the eye from a name to its cells.
        for i in 0..=layout.classes {
            let d = i as f64 * cell;
            sheet.line(&[(left, TOP + d), (left + side, TOP + d)], 0.5, GRID);
            sheet.line(&[(left + d, TOP), (left + d, TOP + side)], 0.5, GRID);
        }
    }
    let inset = if cell >= NAMED { 0.25 } else { 0.0 };
    let digits = (0.62 * cell).min(12.0);
    for (label, row) in evaluation.confusion.iter().enumerate() {
        let images = row.iter().sum::<u32>().max(1);
        for (predicted, &count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
            let share = f64::from(count) / f64::from(images);
            let (x, y) = (left + predicted as f64 * cell, TOP + label as f64 * cell);
            let opposite = (x + cell - inset, y + cell - inset);
            let ramp = if label == predicted { RIGHT } else { WRONG };
            sheet.area((x + inset, y + inset), opposite, ramp.shade(share));
            let text = count.to_string();
            if digits >= 6.5 && sheet.font.width(&text, digits) <= cell - 2.0 {
                let colour = if share > 0.45 { PAPER } else { INK };
                let middle = (x + cell / 2.0, y + cell / 2.0);
                sheet.digits(&text, middle, digits, colour, Anchor::Middle);
            }
        }
    }
    for class in (0..layout.classes).filter(|&i| cell >= NAMED && evaluation.confusion[i][i] > 0) {
        let (x, y) = (left + class as f64 * cell, TOP + class as f64 * cell);
        let corners = [(0.0, 0.0), (cell, 0.0), (cell, cell), (0.0, cell), (0.0, 0.0)];
        sheet.line(&corners.map(|(dx, dy)| (x + dx, y + dy)), 1.0, RIGHT.shade(1.0));
    }
    let corners = [(0.0, 0.0), (side, 0.0), (side, side), (0.0, side), (0.0, 0.0)];
    sheet.line(&corners.map(|(x, y)| (left + x, TOP + y)), 0.75, EDGE);
}

fn draw_names(sheet: &mut Sheet<'_>, layout: &Layout, evaluation: &Evaluation) {
    let (left, side) = (layout.left, layout.side());
    let bottom = TOP + side;
    // Numbers keep a distance of at least two lines.
    let every = if layout.names.is_some() { 1 } else { ((20.0 / layout.cell) / 5.0).ceil() as usize * 5 };
    for class in 0..layout.classes {
        let colour = if evaluation.classes[class].images == 0 { MUTED } else { INK };
        let middle = layout.middle(class);
        let (row, column) = ((left - GAP, TOP + middle), (left + middle, bottom + GAP));
        if let Some((names, size)) = &layout.names {
            names[class].draw(sheet, row, *size, colour, Anchor::End, false);
            names[class].draw(sheet, column, *size, colour, Anchor::End, true);
        } else if layout.cell >= NAMED || (class + 1) % every == 0 || class == 0 {
            let number = (class + 1).to_string();
            sheet.text(&number, row, SMALL_SIZE.min(layout.cell.max(6.0)), colour, Anchor::End);
            sheet.turned_text(&number, column, SMALL_SIZE.min(layout.cell.max(6.0)), colour, Anchor::End);
        }
    }
    let across = (left + side / 2.0, bottom + layout.below + 16.0);
    sheet.text("predicted class", across, TEXT_SIZE, INK, Anchor::Middle);
    sheet.turned_text("class", (MARGIN + 6.0, TOP + side / 2.0), TEXT_SIZE, INK, Anchor::Middle);
}

/// The colours and what they stand for, to the right of the matrix: what is right on the left.
fn draw_scale(sheet: &mut Sheet<'_>, layout: &Layout) {
    let left = layout.left + layout.side() + 34.0;
    let height = layout.side().clamp(120.0, 300.0);
    const STEPS: usize = 100;
    for (ramp, name, x) in [(RIGHT, "right (diagonal)", left), (WRONG, "mistakes", left + 34.0)] {
        for i in 0..STEPS {
            let share = 1.0 - (i as f64 + 0.5) / STEPS as f64;
            let y = |i: usize| TOP + height * i as f64 / STEPS as f64;
            sheet.area((x, y(i)), (x + 12.0, y(i + 1)), ramp.shade(share));
        }
        let corners = [(0.0, 0.0), (12.0, 0.0), (12.0, height), (0.0, height), (0.0, 0.0)];
        sheet.line(&corners.map(|(dx, y)| (x + dx, TOP + y)), 0.75, EDGE);
        sheet.turned_text(name, (x - 9.0, TOP + height), SMALL_SIZE, INK, Anchor::Start);
    }
    for tick in 0..=5 {
        let y = TOP + height * (1.0 - f64::from(tick) / 5.0);
        sheet.digits(&(20 * tick).to_string(), (left + 52.0, y), SMALL_SIZE, MUTED, Anchor::Start);
    }
    sheet.text("white: none", (left - 2.0, TOP + height + 18.0), SMALL_SIZE, MUTED, Anchor::Start);
    let middle = (left + 86.0, TOP + height / 2.0);
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
            name.draw(sheet, (at.0 + Self::NUMBER, at.1), SMALL_SIZE, INK, Anchor::Start, false);
        }
    }
}

/// Colours of shares: even steps in Oklab, which even steps for the eye follow, from pale to dark. The palest one
/// still stands out from paper: a single mistake must be seen.
#[derive(Debug, Clone, Copy)]
struct Ramp {
    pale: [f64; 3],
    dark: [f64; 3],
}

/// Blue and orange, which all kinds of colour vision tell apart.
const RIGHT: Ramp = Ramp { pale: [0.92, -0.035, -0.03], dark: [0.30, -0.01, -0.13] };
const WRONG: Ramp = Ramp { pale: [0.93, 0.02, 0.05], dark: [0.42, 0.11, 0.085] };

impl Ramp {
    fn shade(self, share: f64) -> Colour {
        let [l, a, b]: [f64; 3] =
            std::array::from_fn(|i| self.pale[i] + share * (self.dark[i] - self.pale[i]));
        oklab(l, a, b)
    }
}

/// Oklab (Ottosson 2020) as sRGB.
fn oklab(l: f64, a: f64, b: f64) -> Colour {
    let cube = |v: f64| v * v * v;
    let long = cube(l + 0.3963377774 * a + 0.2158037573 * b);
    let medium = cube(l - 0.1055613458 * a - 0.0638541728 * b);
    let short = cube(l - 0.0894841775 * a - 1.2914855480 * b);
    let byte = |linear: f64| {
        let v = linear.clamp(0.0, 1.0);
        let v = if v <= 0.0031308 { 12.92 * v } else { 1.055 * v.powf(1.0 / 2.4) - 0.055 };
        (255.0 * v).round() as u8
    };
    Colour(
        byte(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        byte(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        byte(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oklab_gives_the_corners_of_srgb() {
        assert_eq!(oklab(1.0, 0.0, 0.0), Colour(255, 255, 255));
        assert_eq!(oklab(0.0, 0.0, 0.0), Colour(0, 0, 0));
        // Red and blue as the author of Oklab lists them.
        assert_eq!(oklab(0.627955, 0.224863, 0.125846), Colour(255, 0, 0));
        assert_eq!(oklab(0.452014, -0.032457, -0.311528), Colour(0, 0, 255));
    }

    #[test]
    fn shades_darken_and_both_hues_stay_apart() {
        let light = |c: Colour| 299 * u32::from(c.0) + 587 * u32::from(c.1) + 114 * u32::from(c.2);
        let steps = (0..=20).map(|i| f64::from(i) / 20.0);
        for ramp in [RIGHT, WRONG] {
            let shades: Vec<u32> = steps.clone().map(|share| light(ramp.shade(share))).collect();
            assert!(shades.windows(2).all(|pair| pair[0] > pair[1]), "{shades:?}");
            assert!(shades[0] < light(Colour(240, 240, 240)));
        }
        for share in steps {
            let (right, wrong) = (RIGHT.shade(share), WRONG.shade(share));
            assert!(right.2 > right.0 && wrong.0 > wrong.2, "{share}: {right:?} {wrong:?}");
        }
    }
}
