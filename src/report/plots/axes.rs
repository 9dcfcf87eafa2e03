//! Axes, curves and legends.

use super::sheet::{Anchor, Colour, EDGE, GRID, INK, LINE, MUTED, Point, RED, SMALL_SIZE, Sheet, TEXT_SIZE};

/// The rectangle of a diagram with the ranges of its axes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
    pub x: (f64, f64),
    pub y: (f64, f64),
}

impl Frame {
    /// Where values are; those beyond the range at its edge.
    pub fn at(&self, x: f64, y: f64) -> Point {
        let place = |v: f64, range: (f64, f64)| ((v - range.0) / (range.1 - range.0)).clamp(0.0, 1.0);
        let right = place(x, self.x) * (self.right - self.left);
        (self.left + right, self.bottom - place(y, self.y) * (self.bottom - self.top))
    }

    /// Draws the grid, the axes, their numbers and their titles.
    pub(crate) fn axes(&self, sheet: &mut Sheet<'_>, x: &Axis<'_>, y: &Axis<'_>) {
        for &value in &y.ticks {
            let (_, height) = self.at(self.x.0, value);
            sheet.line(&[(self.left, height), (self.right, height)], 0.75, GRID);
            let number = (y.label)(value);
            sheet.digits(&number, (self.left - 6.0, height), SMALL_SIZE, MUTED, Anchor::End);
        }
        for &value in &x.ticks {
            let (across, _) = self.at(value, self.y.0);
            sheet.line(&[(across, self.bottom), (across, self.bottom + 3.5)], 0.75, EDGE);
            let number = (x.label)(value);
            sheet.text(&number, (across, self.bottom + 13.0), SMALL_SIZE, MUTED, Anchor::Middle);
        }
        sheet.line(&[(self.left, self.bottom), (self.right, self.bottom)], 0.75, EDGE);
        let middle = (self.left + self.right) / 2.0;
        sheet.text(x.title, (middle, self.bottom + 31.0), TEXT_SIZE, INK, Anchor::Middle);
        let middle = (self.top + self.bottom) / 2.0;
        sheet.turned_text(y.title, (self.left - 44.0, middle), TEXT_SIZE, INK, Anchor::Middle);
    }

    /// Draws a curve, with a gap where a value is not a number, and its points where there are few.
    pub fn curve(&self, sheet: &mut Sheet<'_>, points: &[Point], width: f64, colour: Colour) {
        for run in points.split(|p| !p.1.is_finite()) {
            let run: Vec<Point> = run.iter().map(|p| self.at(p.0, p.1)).collect();
            sheet.line(&run, width, colour);
            if points.len() <= 25 {
                run.iter().for_each(|&p| sheet.disc(p, 0.5 * width + 1.6, colour));
            }
        }
    }
}

/// Widths of curves that are drawn one over the other: one that lies under a later one for a third of its way is
/// wide enough to be seen on both sides of it.
pub(crate) fn curve_widths(frame: &Frame, curves: &[&[Point]]) -> Vec<f64> {
    let near = |a: &Point, b: &Point| {
        a.0 == b.0
            && a.1.is_finite()
            && b.1.is_finite()
            && (frame.at(a.0, a.1).1 - frame.at(b.0, b.1).1).abs() < 1.5
    };
    let is_under =
        |a: &[Point], b: &[Point]| 3 * a.iter().zip(b).filter(|(a, b)| near(a, b)).count() >= a.len().max(1);
    let width = |(i, curve): (usize, &&[Point])| {
        let over = curves[i + 1..].iter().filter(|later| is_under(curve, later)).count();
        CURVE + 3.0 * over as f64
    };
    curves.iter().enumerate().map(width).collect()
}

/// Width of a curve.
const CURVE: f64 = 1.75;

/// Numbers and title of an axis.
pub(crate) struct Axis<'a> {
    pub title: &'a str,
    pub ticks: Vec<f64>,
    pub label: fn(f64) -> String,
}

/// Round numbers within the range, at most about `most` of them.
pub(crate) fn ticks(range: (f64, f64), most: usize) -> Vec<f64> {
    multiples(range, round_step((range.1 - range.0) / most.max(1) as f64))
}

/// Whole numbers within the range, at most about `most` of them.
pub(crate) fn whole_ticks(range: (f64, f64), most: usize) -> Vec<f64> {
    multiples(range, round_step((range.1 - range.0) / most.max(1) as f64).max(1.0))
}

fn multiples(range: (f64, f64), step: f64) -> Vec<f64> {
    let first = (range.0 / step - 1e-9).ceil() as i64;
    let last = (range.1 / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-12).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= least * 0.999).unwrap_or(10.0 * power)
}

/// A range that holds all numbers among `values` and ends at round numbers. It begins at 0 where they come
/// near to it.
pub(crate) fn range_of(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let low = if low >= 0.0 && low < 0.5 * high { 0.0 } else { low };
    let step = round_step((high - low).max(0.02 * high.abs()).max(1e-6) / 5.0);
    let (down, up) = ((low / step).floor() * step, (high / step).ceil() * step);
    if up > down { (down, up) } else { (down, down + step) }
}

/// Returns the range of an axis of accuracies: within 0 and 1, and wide enough that a few images make no mountain.
pub(crate) fn accuracy_range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = range_of(values);
    let low = low.min(high - 0.05).clamp(0.0, 0.95);
    (low, high.clamp(low + 0.05, 1.0))
}

pub fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A fraction as a whole number of per cent, for axes whose title has the unit.
pub(crate) fn percent_number(value: f64) -> String {
    number((1e4 * value).round() / 1e2)
}

/// A fraction in words.
pub fn percent(value: f64) -> String {
    if value.is_finite() { format!("{:.1} %", 100.0 * value) } else { "not a number".to_owned() }
}

/// Mark of an entry of a legend, in front of its text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Swatch {
    Line(Colour),
    Dashes(Colour),
    Bar(Colour),
    /// A deviation to both sides.
    Spread,
    /// A value in its interval.
    Interval(Colour),
    /// From the lowest to the highest that was published.
    Range,
}

const SWATCH_WIDTH: f64 = 20.0;
/// Height of a line of a legend, and from swatch to text.
pub(crate) const LEGEND_LINE: f64 = 16.0;
const SWATCH_GAP: f64 = 5.0;

/// An entry of a legend: a swatch and what it stands for. With a value it has a line of its own and the value at the
/// line's end.
pub struct Entry {
    pub swatch: Swatch,
    pub text: String,
    pub value: String,
}

impl Entry {
    pub fn new(swatch: Swatch, text: impl Into<String>) -> Self {
        Entry { swatch, text: text.into(), value: String::new() }
    }
}

/// Draws entries from `at` to the right, on a new line where they do not fit before `right`; returns the middle of
/// the line after the last.
pub fn legend(sheet: &mut Sheet<'_>, at: Point, right: f64, entries: &[Entry]) -> f64 {
    let (mut x, mut y) = at;
    let text_left = SWATCH_WIDTH + SWATCH_GAP;
    for entry in entries {
        let value = sheet.font.width(&entry.value, SMALL_SIZE);
        let room = right - at.0 - text_left - if value > 0.0 { value + 10.0 } else { 0.0 };
        let lines = sheet.font.lines(&entry.text, SMALL_SIZE, room);
        let widest = lines.iter().map(|line| sheet.font.width(line, SMALL_SIZE)).fold(0.0, f64::max);
        if x > at.0 && (value > 0.0 || x + text_left + widest > right) {
            (x, y) = (at.0, y + LEGEND_LINE);
        }
        draw_swatch(sheet, entry.swatch, (x, y));
        sheet.text(&entry.value, (right, y), SMALL_SIZE, INK, Anchor::End);
        for (i, line) in lines.iter().enumerate() {
            let down = i as f64 * LINE * SMALL_SIZE;
            sheet.text(line, (x + text_left, y + down), SMALL_SIZE, INK, Anchor::Start);
        }
        x += text_left + widest + 16.0;
        if lines.len() > 1 || value > 0.0 {
            (x, y) = (at.0, y + LEGEND_LINE + (lines.len() - 1) as f64 * LINE * SMALL_SIZE);
        }
    }
    if x > at.0 { y + LEGEND_LINE } else { y }
}

/// Draws a swatch with the middle of its left side at `at`.
fn draw_swatch(sheet: &mut Sheet<'_>, swatch: Swatch, (x, y): Point) {
    match swatch {
        Swatch::Line(colour) => sheet.line(&[(x, y), (x + SWATCH_WIDTH, y)], 2.0, colour),
        Swatch::Dashes(colour) => sheet.dashes((x, y), (x + SWATCH_WIDTH, y), 1.25, colour),
        Swatch::Bar(colour) => sheet.area((x + 4.0, y - 4.5), (x + SWATCH_WIDTH, y + 4.5), colour),
        Swatch::Range => draw_range(sheet, (x + 1.0, y), x + SWATCH_WIDTH - 1.0),
        Swatch::Spread => draw_spread(sheet, (x + 2.0, y), x + SWATCH_WIDTH, [true; 2]),
        Swatch::Interval(colour) => {
            draw_interval(sheet, (x + 1.0, y), x + SWATCH_WIDTH / 2.0, x + SWATCH_WIDTH - 1.0, colour);
        }
    }
}

/// Draws a thin line to the right as far as `high`, with a stroke across those of its ends that are `closed`.
pub(crate) fn draw_spread(sheet: &mut Sheet<'_>, (low, y): Point, high: f64, closed: [bool; 2]) {
    sheet.line(&[(low, y), (high, y)], 1.0, INK);
    for (x, _) in [low, high].into_iter().zip(closed).filter(|(_, closed)| *closed) {
        sheet.line(&[(x, y - 3.0), (x, y + 3.0)], 1.0, INK);
    }
}

/// Draws a disc at `value` on a line to the right as far as `high`, between two strokes.
pub(crate) fn draw_interval(sheet: &mut Sheet<'_>, (low, y): Point, value: f64, high: f64, colour: Colour) {
    sheet.line(&[(low, y), (high, y)], CURVE, colour);
    for x in [low, high] {
        sheet.line(&[(x, y - 3.5), (x, y + 3.5)], CURVE, colour);
    }
    sheet.disc((value, y), 3.5, colour);
}

/// Draws a range as a line between two strokes; one stroke where both ends are the same.
pub(crate) fn draw_range(sheet: &mut Sheet<'_>, (low, y): Point, high: f64) {
    sheet.line(&[(low, y), (high, y)], 2.0, RED);
    for x in [low, high] {
        sheet.line(&[(x, y - 5.5), (x, y + 5.5)], 2.0, RED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_range() {
        assert_eq!(ticks((0.0, 1.0), 5).len(), 6);
        assert_eq!(ticks((0.55, 1.0), 5), [0.6, 0.7, 0.8, 0.9, 1.0].map(|v: f64| (v * 10.0).round() * 0.1));
        assert_eq!(whole_ticks((1.0, 4.0), 10), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(whole_ticks((1.0, 40.0), 10), [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0]);
        assert_eq!(whole_ticks((1.0, 1.5), 10), [1.0]);
    }

    #[test]
    fn ranges_hold_their_values() {
        for values in [vec![], vec![f64::NAN], vec![0.0], vec![3.0, 3.0], vec![-2.0, 7.3], vec![91.2, 92.7]] {
            let (low, high) = range_of(values.iter().copied());
            assert!(low < high, "{values:?}");
            assert!(values.iter().all(|v| v.is_nan() || (low <= *v && *v <= high + 1e-9)), "{values:?}");
        }
        assert_eq!(range_of([0.2, 1.7].into_iter()), (0.0, 2.0));
        for values in [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.412, 0.412], [0.97, 0.99]] {
            let (low, high) = accuracy_range(values.into_iter());
            assert!(0.0 <= low && low <= values[0] && values[1] <= high && high <= 1.0, "{low} {high}");
            assert!(high - low > 0.0499, "{low} {high}");
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(["0", "0.1", "25", "-0.5"], [-0.0, 0.1 + 1e-12, 25.0, -0.5].map(number));
        assert_eq!(percent(0.6654), "66.5 %");
    }
}
