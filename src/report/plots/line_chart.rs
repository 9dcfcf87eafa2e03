//! Curves over the epochs in one frame: legend, axes, what lies behind, and the values at each epoch.

use super::axes::{Axis, Entry, Frame, Swatch, curve_widths, legend, number, whole_ticks};
use super::sheet::{Anchor, Colour, EDGE, INK, MUTED, Point, SMALL_SIZE, Sheet, TEXT_SIZE};
use super::typeface::Typeface;

/// Width of the picture, and height of its frame.
pub const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 230.0;
/// The frame's sides.
pub(crate) const LEFT: f64 = 58.0;
pub(crate) const RIGHT: f64 = 388.0;

/// A curve of the picture; where a value is not a number it has a gap.
pub(crate) struct Curve {
    pub name: String,
    /// Text at the right end of the curve's line in the legend.
    pub remark: String,
    pub colour: Colour,
    pub points: Vec<Point>,
    /// Thin curves behind it, of what it is made of.
    pub behind: Vec<Vec<Point>>,
}

impl Curve {
    pub fn new(name: &str, colour: Colour, points: impl Iterator<Item = Point>) -> Self {
        let (points, behind) = (points.collect(), Vec::new());
        Curve { name: name.to_owned(), remark: String::new(), colour, points, behind }
    }
}

pub(crate) struct LineChart<'a> {
    /// Title of the axis of epochs, and where an epoch's point is, from its end.
    pub epochs: &'static str,
    pub shift: f64,
    pub x: (f64, f64),
    pub y: (f64, f64),
    pub axis: Axis<'a>,
    /// A value in words.
    pub value: fn(f64) -> String,
    /// The later over the earlier; where the legend has remarks, they are in order of merit and the first is on top.
    pub curves: Vec<Curve>,
    /// A value that is the same in every epoch, with its name.
    pub level: Option<(&'static str, f64)>,
    /// The epoch that is marked.
    pub kept: Option<u32>,
}

impl LineChart<'_> {
    pub fn draw<'a>(&self, font: &'a Typeface) -> Sheet<'a> {
        let ranked = self.curves.iter().any(|curve| !curve.remark.is_empty());
        let entry = |curve: &Curve| Entry {
            value: curve.remark.clone(),
            ..Entry::new(Swatch::Line(curve.colour), &curve.name)
        };
        let mut entries: Vec<Entry> = self.curves.iter().map(entry).collect();
        entries.extend(self.level.map(|(name, value)| match (self.value)(value) {
            value if ranked => Entry { value, ..Entry::new(Swatch::Dashes(INK), name) },
            value => Entry::new(Swatch::Dashes(INK), format!("{name}: {value}")),
        }));
        let mut sheet = Sheet::new(font, WIDTH, 0.0);
        let top = legend(&mut sheet, (LEFT, 10.0), RIGHT, &entries) + 8.0;
        let frame = Frame { left: LEFT, right: RIGHT, top, bottom: top + HEIGHT, x: self.x, y: self.y };
        sheet.height = (frame.bottom + 44.0).ceil();
        let epochs = Axis { title: self.epochs, ticks: whole_ticks(self.x, 10), label: number };
        frame.axes(&mut sheet, &epochs, &self.axis);
        self.draw_kept(&mut sheet, &frame);
        let mut drawn: Vec<&Curve> = self.curves.iter().collect();
        if ranked {
            drawn.reverse();
        }
        for curve in &drawn {
            for points in curve.behind.iter().flat_map(|points| points.split(|p| !p.1.is_finite())) {
                let points: Vec<Point> = points.iter().map(|p| frame.at(p.0, p.1)).collect();
                sheet.line(&points, 0.75, curve.colour.faint(0.4));
            }
        }
        let points: Vec<_> = drawn.iter().map(|curve| &curve.points[..]).collect();
        for (curve, width) in drawn.iter().zip(curve_widths(&frame, &points)) {
            frame.curve(&mut sheet, &curve.points, width, curve.colour);
        }
        if let Some((_, value)) = self.level {
            let (_, height) = frame.at(self.x.0, value);
            sheet.dashes((LEFT, height), (RIGHT, height), 1.25, INK);
        }
        self.draw_spots(&mut sheet, &frame);
        sheet
    }

    fn draw_kept(&self, sheet: &mut Sheet<'_>, frame: &Frame) {
        let Some(kept) = self.kept else { return };
        let (across, _) = frame.at(f64::from(kept) - self.shift, self.y.0);
        sheet.line(&[(across, frame.top), (across, frame.bottom)], 1.0, EDGE);
        // The text stays within the frame.
        let half = sheet.font.width("kept", SMALL_SIZE) / 2.0;
        let middle = across.clamp(LEFT + half, RIGHT - half);
        sheet.text("kept", (middle, frame.top - 7.0), SMALL_SIZE, MUTED, Anchor::Middle);
    }

    /// A spot for each epoch, with the values of all curves.
    fn draw_spots(&self, sheet: &mut Sheet<'_>, frame: &Frame) {
        let mut epochs: Vec<f64> = self.curves.iter().flat_map(|c| &c.points).map(|p| p.0).collect();
        epochs.sort_by(f64::total_cmp);
        epochs.dedup();
        if epochs.is_empty() {
            let middle = ((LEFT + RIGHT) / 2.0, (frame.top + frame.bottom) / 2.0);
            sheet.text("no epoch was recorded", middle, TEXT_SIZE, MUTED, Anchor::Middle);
        }
        for (i, &epoch) in epochs.iter().enumerate() {
            let to = |other: Option<&f64>| {
                frame.at(other.map_or(epoch, |other| (epoch + other) / 2.0), self.y.0).0
            };
            let (left, right) = (to(i.checked_sub(1).map(|i| &epochs[i])), to(epochs.get(i + 1)));
            let (left, right) =
                (left.min(frame.at(epoch, 0.0).0 - 3.0), right.max(frame.at(epoch, 0.0).0 + 3.0));
            let number_of = epoch + self.shift;
            let mut text = format!("epoch {}", number(number_of));
            for curve in &self.curves {
                let value = curve.points.iter().find(|p| p.0 == epoch).map_or(f64::NAN, |p| p.1);
                let value = if value.is_finite() { (self.value)(value) } else { "–".to_owned() };
                text += &format!("\n{}: {value}", curve.name);
            }
            if let Some((name, value)) = self.level {
                text += &format!("\n{name}: {}", (self.value)(value));
            }
            let first = self.kept.map_or(i + 1 == epochs.len(), |kept| f64::from(kept) == number_of);
            sheet.spot(&text, (left, frame.top), (right, frame.bottom), first);
        }
    }
}

/// The epochs of a picture as the range of its axis.
pub(crate) fn epoch_range(epochs: impl Iterator<Item = u32> + Clone) -> (f64, f64) {
    let (first, last) = (epochs.clone().min().unwrap_or(1), epochs.max().unwrap_or(1));
    if first == last { (f64::from(first) - 0.5, f64::from(first) + 0.5) } else { (first.into(), last.into()) }
}
