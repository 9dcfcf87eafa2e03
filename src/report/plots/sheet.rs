//! A picture as a list of marks, drawn once and written as PNG and as SVG.

use super::font::{FAMILY, Ink, Typeface};
use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use plotters_backend::text_anchor::{HPos, Pos, VPos};
use plotters_backend::{
    BackendColor, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind, FontFamily, FontTransform,
};
use plotters_bitmap::BitMapBackend;
use plotters_svg::SVGBackend;

/// Of a position from the top left corner, in points: 1/96 inch on screens.
pub type Point = (f64, f64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(pub u8, pub u8, pub u8);

/// Okabe and Ito's palette, which all kinds of colour vision tell apart, less its yellow, too light for lines.
pub const PALETTE: [Colour; 6] = [BLUE, ORANGE, GREEN, PURPLE, RED, SKY];
pub const BLUE: Colour = Colour(0x00, 0x72, 0xb2);
pub const ORANGE: Colour = Colour(0xe6, 0x9f, 0x00);
pub const GREEN: Colour = Colour(0x00, 0x9e, 0x73);
pub const PURPLE: Colour = Colour(0xcc, 0x79, 0xa7);
pub const RED: Colour = Colour(0xd5, 0x5e, 0x00);
pub const SKY: Colour = Colour(0x56, 0xb4, 0xe9);

pub const PAPER: Colour = Colour(255, 255, 255);
pub const INK: Colour = Colour(0x22, 0x22, 0x22);
/// Of text that is read second, of frames and of grids.
pub const MUTED: Colour = Colour(0x5c, 0x5c, 0x5c);
pub const EDGE: Colour = Colour(0x9a, 0x9a, 0x9a);
pub const GRID: Colour = Colour(0xe8, 0xe8, 0xe8);

pub const TITLE_SIZE: f64 = 15.0;
pub const TEXT_SIZE: f64 = 11.0;
pub const SMALL_SIZE: f64 = 9.5;

impl Colour {
    /// The colour on paper when a share of it covers: 1 is the colour, 0 the paper.
    pub fn faint(self, share: f64) -> Colour {
        let mix = |a: u8, b: u8| (f64::from(a) * share + f64::from(b) * (1.0 - share)).round() as u8;
        Colour(mix(self.0, PAPER.0), mix(self.1, PAPER.1), mix(self.2, PAPER.2))
    }
}

/// Where a text's position is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// A line of text, upright or turned to be read from below.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    pub text: String,
    /// At half the height of an x.
    pub at: Point,
    pub size: f64,
    pub colour: Colour,
    pub anchor: Anchor,
    pub turned: bool,
    /// The form of the picture that has it; none for both.
    pub form: Option<Form>,
}

/// What a picture is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Png,
    Svg,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    Line { points: Vec<Point>, width: f64, colour: Colour },
    Area { corner: Point, opposite: Point, colour: Colour },
    Disc { centre: Point, radius: f64, colour: Colour },
    Text(Label),
}

/// `text` without what XML has no form of.
pub fn printable(text: &str) -> String {
    let allowed =
        |c: char| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c };
    text.chars().map(allowed).collect()
}

/// A picture in the making.
pub struct Sheet<'a> {
    pub width: f64,
    pub height: f64,
    pub font: &'a Typeface,
    marks: Vec<Mark>,
}

impl<'a> Sheet<'a> {
    pub fn new(font: &'a Typeface, width: f64, height: f64) -> Self {
        Sheet { width, height, font, marks: Vec::new() }
    }

    pub fn line(&mut self, points: &[Point], width: f64, colour: Colour) {
        if points.len() > 1 {
            self.marks.push(Mark::Line { points: points.to_vec(), width, colour });
        }
    }

    /// A straight line of dashes.
    pub fn dashes(&mut self, from: Point, to: Point, width: f64, colour: Colour) {
        const DASH: f64 = 5.0;
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy);
        let at = |d: f64| (from.0 + dx * d / length, from.1 + dy * d / length);
        let mut start = 0.0;
        while start < length {
            self.line(&[at(start), at((start + DASH).min(length))], width, colour);
            start += 1.7 * DASH;
        }
    }

    pub fn area(&mut self, corner: Point, opposite: Point, colour: Colour) {
        self.marks.push(Mark::Area { corner, opposite, colour });
    }

    pub fn disc(&mut self, centre: Point, radius: f64, colour: Colour) {
        self.marks.push(Mark::Disc { centre, radius, colour });
    }

    /// A number in the middle of the height that is given: digits are taller than an x.
    pub fn digits(&mut self, text: &str, (x, y): Point, size: f64, colour: Colour, anchor: Anchor) {
        self.text(text, (x, y + 0.09 * size), size, colour, anchor);
    }

    pub fn text(&mut self, text: &str, at: Point, size: f64, colour: Colour, anchor: Anchor) {
        self.label(Label { text: text.to_owned(), at, size, colour, anchor, turned: false, form: None });
    }

    /// A text that is read from below.
    pub fn turned_text(&mut self, text: &str, at: Point, size: f64, colour: Colour, anchor: Anchor) {
        self.label(Label { text: text.to_owned(), at, size, colour, anchor, turned: true, form: None });
    }

    pub fn label(&mut self, mut label: Label) {
        if label.text.is_empty() {
            return;
        }
        label.text = printable(&label.text);
        self.marks.push(Mark::Text(label));
    }

    /// The heading in the top left corner, and a line below it.
    pub fn heading(&mut self, title: &str, subtitle: &str) {
        let room = self.width - 40.0;
        let title = self.font.shorten(title, TITLE_SIZE, room);
        self.text(&title, (20.0, 22.0), TITLE_SIZE, INK, Anchor::Start);
        let subtitle = self.font.shorten(subtitle, TEXT_SIZE, room);
        self.text(&subtitle, (20.0, 42.0), TEXT_SIZE, MUTED, Anchor::Start);
    }

    /// The picture as PNG, two pixels to the point.
    ///
    /// # Errors
    /// What stands in the way, in words.
    pub fn png(&self) -> Result<Vec<u8>, String> {
        // Twice as large again and brought down, which smooths lines and letters; not where that takes
        // hundreds of megabytes.
        let shrink = if self.width * self.height > 5e6 { 1 } else { 2 };
        let size = self.size(2 * shrink);
        let mut pixels = vec![255; 3 * size.0 as usize * size.1 as usize];
        self.replay(&mut BitMapBackend::with_buffer(&mut pixels, size), 2 * shrink, Form::Png)
            .map_err(|e| e.to_string())?;
        if shrink == 2 {
            pixels = halve(&pixels, size.0 as usize);
        }
        let (width, height) = self.size(2);
        let mut png = Vec::new();
        // Filters are for photographs; flat colours repeat as they are.
        PngEncoder::new_with_quality(&mut png, CompressionType::Default, FilterType::NoFilter)
            .write_image(&pixels, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|e| e.to_string())?;
        Ok(png)
    }

    /// The picture as SVG.
    ///
    /// # Errors
    /// What stands in the way, in words.
    pub fn svg(&self) -> Result<String, String> {
        const UNITS: u32 = 4;
        let size = self.size(UNITS);
        let mut drawn = String::new();
        self.replay(&mut SVGBackend::with_string(&mut drawn, size), UNITS, Form::Svg)
            .map_err(|e| e.to_string())?;
        // The backend counts in whole units: a quarter of a point each, which its own first line cannot say.
        let (_, body) = drawn.split_once('\n').unwrap_or_default();
        let (width, height) = self.size(1);
        Ok(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {} {}\" stroke-linejoin=\"round\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>\n{body}",
            size.0, size.1
        ))
    }

    fn size(&self, units: u32) -> (u32, u32) {
        (self.width.ceil() as u32 * units, self.height.ceil() as u32 * units)
    }

    fn replay<B: DrawingBackend>(
        &self,
        backend: &mut B,
        units: u32,
        form: Form,
    ) -> Result<(), DrawingErrorKind<B::ErrorType>> {
        let units = f64::from(units);
        let at = |p: Point| ((p.0 * units).round() as i32, (p.1 * units).round() as i32);
        for mark in &self.marks {
            match mark {
                Mark::Line { points, width, colour } => {
                    let pen = Pen { colour: *colour, width: (width * units).round().max(1.0) as u32 };
                    backend.draw_path(distinct(points.iter().map(|&p| at(p))), &pen)?;
                }
                Mark::Area { corner, opposite, colour } => {
                    backend.draw_rect(at(*corner), at(*opposite), &Pen::fill(*colour), true)?;
                }
                Mark::Disc { centre, radius, colour } => {
                    let radius = (radius * units).round() as u32;
                    backend.draw_circle(at(*centre), radius, &Pen::fill(*colour), true)?;
                }
                Mark::Text(label) if label.form.is_some_and(|only| only != form) => {}
                Mark::Text(label) => {
                    let style = Lettering { font: self.font, label, size: label.size * units };
                    backend.draw_text(&label.text, &style, at(label.at))?;
                }
            }
        }
        backend.present()
    }
}

/// Without points that fall on the one before; two points at least, which plotters' lines need.
fn distinct(points: impl Iterator<Item = (i32, i32)>) -> Vec<(i32, i32)> {
    let mut points: Vec<_> = points.collect();
    points.dedup();
    if let [point] = points[..] {
        points.push((point.0 + 1, point.1));
    }
    points
}

/// Means of two by two pixels.
fn halve(pixels: &[u8], width: usize) -> Vec<u8> {
    /// Bytes of two rows that are looked at together: most of them are paper, which is its own mean.
    const BLOCK: usize = 6 * 32;
    let mut out = Vec::with_capacity(pixels.len() / 4);
    for rows in pixels.chunks_exact(6 * width) {
        let (upper, lower) = rows.split_at(3 * width);
        for (upper, lower) in upper.chunks(BLOCK).zip(lower.chunks(BLOCK)) {
            let paper = &[255; BLOCK][..upper.len()];
            if upper == paper && lower == paper {
                out.extend_from_slice(&paper[..upper.len() / 2]);
            } else {
                halve_block(upper, lower, &mut out);
            }
        }
    }
    out
}

fn halve_block(upper: &[u8], lower: &[u8], out: &mut Vec<u8>) {
    for i in (0..upper.len()).step_by(6) {
        for c in [i, i + 1, i + 2] {
            let pair = |row: &[u8]| u16::from(row[c]) + u16::from(row[c + 3]);
            out.push(((pair(upper) + pair(lower) + 2) / 4) as u8);
        }
    }
}

struct Pen {
    colour: Colour,
    width: u32,
}

impl Pen {
    fn fill(colour: Colour) -> Self {
        Pen { colour, width: 0 }
    }
}

impl BackendStyle for Pen {
    fn color(&self) -> BackendColor {
        backend_colour(self.colour, 1.0)
    }

    fn stroke_width(&self) -> u32 {
        self.width
    }
}

fn backend_colour(colour: Colour, alpha: f64) -> BackendColor {
    BackendColor { alpha, rgb: (colour.0, colour.1, colour.2) }
}

/// A label in the units of a backend.
struct Lettering<'a> {
    font: &'a Typeface,
    label: &'a Label,
    size: f64,
}

/// Half the height of DejaVu's x, in em: where SVG has the middle of a text.
const HALF_X: f64 = 0.2735;

impl BackendTextStyle for Lettering<'_> {
    type FontError = std::convert::Infallible;

    fn color(&self) -> BackendColor {
        backend_colour(self.label.colour, 1.0)
    }

    fn size(&self) -> f64 {
        // What the SVG backend divides by to have the em.
        self.size * 1.24
    }

    fn transform(&self) -> FontTransform {
        if self.label.turned { FontTransform::Rotate270 } else { FontTransform::None }
    }

    fn anchor(&self) -> Pos {
        let horizontal = match self.label.anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        Pos::new(horizontal, VPos::Center)
    }

    fn family(&self) -> FontFamily<'_> {
        FontFamily::Name(FAMILY)
    }

    fn layout_box(&self, text: &str) -> Result<((i32, i32), (i32, i32)), Self::FontError> {
        // Without a height: `draw` sets the baseline itself.
        Ok(((0, 0), (self.font.width(text, self.size).round() as i32, 0)))
    }

    fn draw<E, DrawFunc: FnMut(i32, i32, BackendColor) -> Result<(), E>>(
        &self,
        text: &str,
        (x, y): (i32, i32),
        mut draw: DrawFunc,
    ) -> Result<Result<(), E>, Self::FontError> {
        let baseline = y + (HALF_X * self.size).round() as i32;
        Ok(self.font.draw(text, self.size, |dx, dy, ink| {
            let colour = match ink {
                Ink::Own(share) => backend_colour(self.label.colour, f64::from(share)),
                Ink::Other([r, g, b], share) => backend_colour(Colour(r, g, b), f64::from(share)),
            };
            draw(x + dx, baseline + dy, colour)
        }))
    }
}
